// A tree of sets as bars: the set that is looked at fills the width, its subsets lie below it.

const data = JSON.parse(document.querySelector("#graph-json").textContent);
const n = data.labels.length;
const ROW = 34;
const NARROW = 1.5; // bars of fewer pixels are left out
const SHOWN = 200; // members that are listed
let root = 0; // fills the width
let at = 0; // is described

const kids = data.parent.map(() => []);
data.parent.forEach((p, i) => p >= 0 && kids[p].push(i));
const depth = [];
data.parent.forEach((p, i) => depth.push(p < 0 ? 0 : depth[p] + 1));

/** Sums up to each unit, so that a set's are two of them apart. */
function sums(values) {
  const found = [0];
  for (const v of values) found.push(found[found.length - 1] + v);
  return found;
}
const worth = sums(data.value);
const kept = sums(data.inside);

function about(i) {
  const [a, b] = [data.start[i], data.stop[i]];
  const size = b - a;
  return { a, b, size, worth: (worth[b] - worth[a]) / Math.max(worth[n], 1e-300), kept: kept[b] - kept[a] };
}

/** How dark: the importance of a unit of the set, by how often it is twice the mean's. */
function heat(i) {
  const s = about(i);
  if (s.worth === 0) return 0;
  const times = (s.worth * n) / s.size;
  return Math.max(4, Math.min(92, 46 + 9 * Math.log2(times)));
}

function drawBars() {
  const box = document.querySelector("#bars");
  const width = box.clientWidth;
  const span = about(root);
  const bars = [];
  let deepest = 0;
  (function add(i) {
    const s = about(i);
    const wide = ((s.b - s.a) / span.size) * width;
    if (wide < NARROW) return;
    const level = depth[i] - depth[root];
    deepest = Math.max(deepest, level);
    const name = s.size === 1 ? data.labels[s.a] : `${s.size.toLocaleString("en")} units`;
    const dark = heat(i);
    const bar = html(
      "button",
      {
        className: dark > 60 ? "set hot" : "set",
        "data-focus": String(i),
        tabIndex: -1,
        role: "treeitem",
        title: `${name}: ${formatNumber(100 * s.worth)} % of the importance, ${s.kept} of ${s.size} units kept`,
        "aria-label": `${name}, level ${depth[i]}, ${s.kept} kept`,
        "aria-current": i === at ? "true" : null,
        onclick: () => look(i, i),
      },
      wide > 60 ? html("span", {}, name) : null,
      s.kept ? html("i") : null,
    );
    bar.style.left = `${((s.a - span.a) / span.size) * width}px`;
    bar.style.width = `${wide}px`;
    bar.style.top = `${level * ROW}px`;
    bar.style.setProperty("--heat", `${dark}%`);
    bar.style.setProperty("--kept", `${(100 * s.kept) / s.size}%`);
    bars.push(bar);
    kids[i].forEach(add);
  })(root);
  const floor = html("div");
  floor.style.height = `${(deepest + 1) * ROW}px`;
  keepFocus(box, () => box.replaceChildren(floor, ...bars));
}

function drawMembers() {
  const s = about(at);
  const order = Array.from({ length: s.size }, (_, k) => s.a + k);
  order.sort((x, y) => data.inside[y] - data.inside[x] || data.value[y] - data.value[x] || x - y);
  const lines = order.slice(0, SHOWN).map((k) =>
    html("li", { className: data.inside[k] ? "inside" : "" }, html("bdi", {}, visible(data.labels[k])), html("span", { className: "dim" }, formatNumber(data.value[k]))),
  );
  const path = [];
  for (let i = at; i >= 0; i = data.parent[i]) path.unshift(i);
  document.querySelector("#members").replaceChildren(
    html("h2", {}, at === 0 ? `All ${n.toLocaleString("en")} units of the tree` : `A set of ${s.size.toLocaleString("en")} ${s.size === 1 ? "unit" : "units"}`),
    html("p", { className: "dim" }, `Level ${path.length - 1}; ${s.kept} kept; ${formatNumber(100 * s.worth)} % of the importance`),
    html("ol", {}, ...lines),
    s.size > SHOWN ? html("p", { className: "dim" }, `and ${(s.size - SHOWN).toLocaleString("en")} more`) : null,
  );
}

/** Describe a set; the second fills the width, or the set that it was cut from where it is not cut itself. */
function look(described, whole) {
  at = described;
  root = kids[whole].length || whole === 0 ? whole : data.parent[whole];
  drawBars();
  drawMembers();
  document.querySelector("#up").disabled = root === 0;
  document.querySelector("#whole").disabled = root === 0;
}

function up() {
  if (root > 0) look(data.parent[root], data.parent[root]);
}

function move(key) {
  const beside = at === root ? [at] : kids[data.parent[at]];
  const place = beside.indexOf(at);
  if (key === "ArrowRight" && place + 1 < beside.length) look(beside[place + 1], root);
  else if (key === "ArrowLeft" && place > 0) look(beside[place - 1], root);
  else if (key === "ArrowDown" && kids[at].length) look(kids[at][0], root);
  else if (key === "ArrowUp" && at !== root) look(data.parent[at], root);
  else if (key === "Enter") look(at, at);
  else if (key === "Escape") up();
  else return false;
  return true;
}

document.querySelector("#title").textContent = `${visible(data.task)} in ${visible(data.model)}: a circuit of ${data.size.toLocaleString("en")} of ${data.of.toLocaleString("en")} units`;
const elsewhere = data.elsewhere ? `, ${data.elsewhere} of the circuit's are not in the tree` : "";
document.querySelector("#told").textContent = `${data.parent.length.toLocaleString("en")} sets of ${n.toLocaleString("en")} units${elsewhere}`;
document.querySelector("#up").addEventListener("click", up);
document.querySelector("#whole").addEventListener("click", () => look(0, 0));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  if (event.key === "Enter" && event.target.tagName === "BUTTON") return;
  if (move(event.key)) event.preventDefault();
});
new ResizeObserver(drawBars).observe(document.querySelector("#bars"));
look(0, 0);
document.querySelector("#page").removeAttribute("aria-busy");
