// Text and numbers as a reader sees them. Everything from files goes through textContent, never through markup.

const SVG_NS = "http://www.w3.org/2000/svg";

// Characters that are invisible, reorder their neighbours, or are not allowed in XML: shown by their code point.
const HIDDEN = new RegExp(
  "[\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f" +
    "\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffc\\ufffe\\uffff]|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g",
);

/** An HTML element; `props` are properties or aria-/data- attributes; children that are strings become text nodes. */
function html(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element with attributes. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG_NS, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

/** Rebuilds a container and gives the focus back to the element that stands for the same thing (`data-focus`). */
function keepFocus(container, rebuild) {
  const old = container.contains(document.activeElement) ? document.activeElement : null;
  const name = old?.dataset.focus;
  rebuild();
  if (!old || container.contains(document.activeElement)) return;
  const same = name === undefined ? null : container.querySelector(`[data-focus="${CSS.escape(name)}"]`);
  (same ?? container).focus({ preventScroll: true });
}

/** Replaces characters that cannot be seen: line ends, tabs, and everything in HIDDEN. */
function visible(text) {
  return String(text)
    .replace(/\r\n|\n/g, "⏎")
    .replace(/\r/g, "␍")
    .replace(/\t/g, "⇥")
    .replace(HIDDEN, (c) => `⟨${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A token: as `visible`, with its outer spaces (and a token of spaces only) shown as middle dots. */
function tokenText(token) {
  const text = visible(token);
  if (text === "") return "∅";
  return text.replace(/^[ \u00a0]+|[ \u00a0]+$/g, (run) => "·".repeat(run.length));
}

/** A token as an element that keeps its own writing direction. */
function tokenElement(token, className = "token") {
  const text = tokenText(token);
  const lead = /^·+/.exec(text);
  const rest = lead ? text.slice(lead[0].length) : text;
  return html("bdi", { className, dir: "auto" }, lead ? html("span", { className: "space" }, lead[0]) : null, rest);
}

/** Cuts a text to `n` characters (code points) with an ellipsis. */
function shorten(text, n) {
  const points = Array.from(text);
  return points.length <= n ? text : `${points.slice(0, Math.max(1, n - 1)).join("")}…`;
}

/** A number with three significant digits and a true minus sign. */
function formatNumber(x, sign = false) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e5 || size < 1e-3) text = size.toExponential(1).replace("e+", "e").replace("e-", "e−");
  else text = size >= 1000 ? Math.round(size).toLocaleString("en-US") : size.toPrecision(3);
  return (x < 0 ? "−" : sign && size > 0 ? "+" : "") + text;
}

function formatShare(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const percent = 100 * x;
  const size = Math.abs(percent);
  if (size !== 0 && size < 0.1) return `${percent < 0 ? "−" : ""}<0.1%`;
  return `${percent < 0 ? "−" : ""}${size.toFixed(size >= 99.95 || size === 0 ? 0 : 1)}%`;
}

function formatCount(n) {
  return Number(n).toLocaleString("en-US");
}

function clamp(x, low, high) {
  return Math.min(high, Math.max(low, x));
}

/** A token as running text: spaces as they are, everything that cannot be seen as marks. */
function plainToken(token) {
  const text = visible(token);
  const parts = text.split(/(⏎|␍|⇥|⟨[0-9A-F]{4,6}⟩)/);
  return parts.filter((p) => p !== "").map((p, k) => (k % 2 || /^(⏎|␍|⇥|⟨)/.test(p) ? html("span", { className: "mark" }, p) : p));
}

/** An example of a feature: its activation, and the text around it, shaded by activation. */
function exampleElement(texts, values, chosen, largest, { before = false, after = false } = {}) {
  const line = html("span", { className: "line", dir: "auto" });
  if (before) line.append(html("span", { className: "mark" }, "… "));
  texts.forEach((text, k) => {
    const token = html("bdi", { className: "tok", dir: "auto" }, ...plainToken(text));
    if (values[k]) {
      token.classList.add("on");
      token.style.setProperty("--part", `${(100 * clamp(Math.abs(values[k]) / largest, 0.08, 1)).toFixed(0)}%`);
      token.title = `${tokenText(text)}  ${formatNumber(values[k])}`;
    }
    if (k === chosen) token.classList.add("chosen");
    line.append(token);
  });
  if (after) line.append(html("span", { className: "mark" }, " …"));
  return html("div", { className: "example" }, html("span", { className: "peak" }, formatNumber(values[chosen])), line);
}
