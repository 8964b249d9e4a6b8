// A finished case study, read from top to bottom.

const data = JSON.parse(document.querySelector("#graph-json").textContent);
const put = (selector, ...children) => document.querySelector(selector).replaceChildren(...children);

function chip([token, value]) {
  return html("span", { className: "weight" }, tokenElement(token), html("span", { className: value < 0 ? "negative" : "positive" }, formatNumber(value, true)));
}

function cell({ text, value, tokens }) {
  if (tokens.length) return html("td", { className: "chips" }, ...tokens.map(chip));
  if (value !== null) return html("td", { className: `number ${value < 0 ? "negative" : ""}` }, formatNumber(value, true));
  return html("td", {}, visible(text));
}

function answer({ lines, rows }) {
  if (rows.length) return html("table", {}, html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map(cell)))));
  return lines.length ? html("pre", { tabIndex: 0 }, lines.map(visible).join("\n")) : null;
}

function step(one) {
  const shown = answer(one);
  const title = html("span", { className: "question" }, visible(one.question));
  const time = html("time", { className: "dim" }, visible(one.time));
  if (!shown) return html("li", {}, html("div", { className: "line-only" }, title, time));
  return html("li", {}, html("details", { open: one.rows.length <= 20 }, html("summary", {}, title, time), shown));
}

function passage({ words, values, chosen, cut }) {
  return exampleElement(words, values, chosen, largest, { before: cut });
}

const largest = Math.max(1e-30, ...data.prompts.flatMap((p) => p.values.map(Math.abs)));
document.title = `Case study ${visible(data.title)}`;
put("h1", `Case study ${visible(data.title)}`);
put(".verdict", visible(data.verdict));
document.querySelector(".verdict").dataset.verdict = data.verdict;
put(".said", html("span", { className: "dim" }, "Hypothesis: "), html("bdi", { dir: "auto" }, visible(data.hypothesis)));
put(".figures", ...data.facts.map(([name, value]) => html("div", { className: "fact" }, html("dt", {}, name), html("dd", {}, visible(value)))));
put(".hidden-part ul", ...data.hidden.map((what) => html("li", {}, visible(what))));
put(".steps", ...data.steps.map(step));
put(".passages", ...data.prompts.map(passage));
document.querySelector("#page").removeAttribute("aria-busy");
