// One feature at a time, and what a person says of it. Nothing here knows what kind of feature it is.

const data = JSON.parse(document.querySelector("#graph-json").textContent);
const KEY = `tcircuits-rating-${data.page}`;
const said = new Map();
let at = 0;

/** What was said before in this browser; a page from disk may be denied a store, then it lasts as long as the page. */
function restore() {
  try {
    for (const [name, rating] of Object.entries(JSON.parse(localStorage.getItem(KEY) ?? "{}"))) said.set(name, rating);
  } catch {
    said.clear();
  }
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(said)));
  } catch {
    // the saved file is what counts
  }
}

function own() {
  return said.get(data.items[at].name) ?? { rating: null, context_free: false, note: "" };
}

function say(change) {
  said.set(data.items[at].name, { ...own(), ...change });
  keep();
  draw();
}

function go(number) {
  at = Math.max(0, Math.min(data.items.length - 1, number));
  draw();
  document.querySelector(".examples").scrollTop = 0;
}

function rate(rating) {
  say({ rating });
  const next = data.items.findIndex((item, i) => i > at && !said.get(item.name)?.rating);
  if (next >= 0) go(next);
}

function exampleLine([words, parts, chosen]) {
  const line = html("p", { className: "passage", dir: "auto" });
  words.forEach((word, i) => {
    const token = html("bdi", { className: "tok", dir: "auto" }, visible(data.words[word]));
    if (parts[i] > 0) {
      token.classList.add("on");
      token.style.setProperty("--part", `${Math.round(100 * parts[i])}%`);
    }
    if (i === chosen) token.classList.add("chosen");
    line.append(token);
  });
  return line;
}

function drawItems() {
  const buttons = data.items.map((item, i) =>
    html(
      "button",
      {
        "data-rating": said.get(item.name)?.rating ?? null,
        "data-focus": item.name,
        "aria-current": i === at ? "true" : null,
        "aria-label": `Feature ${i + 1}, ${said.get(item.name)?.rating ?? "not rated"}`,
        onclick: () => go(i),
      },
      String(i + 1),
    ),
  );
  const list = document.querySelector(".items");
  keepFocus(list, () => list.replaceChildren(...buttons));
}

function drawAnswer() {
  const now = own();
  const choices = data.ratings.map((rating, i) =>
    html("button", { "aria-pressed": String(now.rating === rating), "data-focus": rating, title: `Key ${i + 1}`, onclick: () => rate(rating) }, rating),
  );
  const free = html("input", { type: "checkbox", id: "context-free", checked: now.context_free, onchange: (e) => say({ context_free: e.target.checked }) });
  const note = html("input", { type: "text", id: "note", value: now.note, placeholder: "What it is, in your words", "aria-label": "Note", maxLength: 300 });
  note.addEventListener("change", (event) => say({ note: event.target.value }));
  const bar = document.querySelector(".answer");
  keepFocus(bar, () => bar.replaceChildren(...choices, html("label", {}, free, "one token says it all"), note));
}

function draw() {
  const item = data.items[at];
  drawItems();
  drawAnswer();
  const rated = data.items.filter((i) => said.get(i.name)?.rating).length;
  document.querySelector("#progress").textContent = `${rated} of ${data.items.length} rated`;
  document.querySelector(".examples").replaceChildren(html("h2", {}, `Feature ${at + 1}`), ...item.examples.map(exampleLine));
}

document.querySelector("#save").addEventListener("click", () => {
  const text = JSON.stringify({ page: data.page, ratings: Object.fromEntries(said) }, null, 1);
  download("ratings.json", "application/json", `${text}\n`);
});
document.addEventListener("keydown", (event) => {
  if (event.target.id === "note" || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = Number(event.key);
  if (number >= 1 && number <= data.ratings.length) rate(data.ratings[number - 1]);
  else if (event.key === "ArrowRight") go(at + 1);
  else if (event.key === "ArrowLeft") go(at - 1);
});

restore();
draw();
document.querySelector("#page").removeAttribute("aria-busy");
