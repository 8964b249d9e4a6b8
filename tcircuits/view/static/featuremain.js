// Puts the page together: the address names the feature, the table and the panel follow.

const data = readFeatures(document.querySelector("#graph-json").textContent);
const view = { sort: "density", rising: false, query: "", dead: false, selected: null };

const actions = {
  sort(name) {
    const text = name === "tokens" || name === "promoted" || name === "feature" || name === "layer";
    view.rising = view.sort === name ? !view.rising : text;
    view.sort = name;
    drawTable(data, view, actions);
  },
  open(layer, feature) {
    if (data.layer === null) location.href = `layer_${layer}.html#${feature}`;
    else location.hash = String(feature);
  },
};

function drawHeader() {
  const figures = data.layers.filter((row) => data.layer === null || row.layer === data.layer);
  const sum = (name) => figures.reduce((total, row) => total + row[name], 0);
  document.querySelector(".model").textContent = visible(`${data.model} · ${data.dictionary}`);
  document.querySelector(".layers").replaceChildren(
    html("a", { href: "index.html", "aria-current": data.layer === null ? "page" : null }, "All layers"),
    ...data.layers.map((row) =>
      html("a", { href: `layer_${row.layer}.html`, "aria-current": row.layer === data.layer ? "page" : null }, `Layer ${row.layer}`),
    ),
  );
  const items = [
    ["Features", formatCount(sum("features")), "Features of the dictionaries"],
    ["Dead", formatCount(sum("dead")), "Features that are on nowhere in the corpus"],
    ["On for a token", formatNumber(sum("l0") / figures.length), "L0: mean number of features of a layer that are on"],
    ["Positions", formatCount(data.positions), "Positions of the corpus; the first of a row is not counted"],
  ];
  document.querySelector(".figures").replaceChildren(
    ...items.map(([name, value, title]) => html("div", { title }, html("dt", {}, name), html("dd", {}, value))),
  );
}

function drawDetail() {
  const feature = /^#(\d+)$/.exec(location.hash)?.[1];
  const panel = document.querySelector(".detail");
  const number = feature === undefined ? null : Number(feature);
  view.selected = number === null ? null : `${data.layer}/${number}`;
  for (const row of document.querySelectorAll(".table tbody tr")) {
    if (row.dataset.key === view.selected) {
      row.setAttribute("aria-selected", "true");
      row.scrollIntoView({ block: "nearest" });
    } else row.removeAttribute("aria-selected");
  }
  panel.replaceChildren(...(number === null ? [] : featureContent(data, data.layer, number)));
  panel.scrollTop = 0;
}

document.querySelector("#search").addEventListener("input", (event) => {
  view.query = event.target.value;
  drawTable(data, view, actions);
});
document.querySelector("#dead").addEventListener("change", (event) => {
  view.dead = event.target.checked;
  drawTable(data, view, actions);
});
document.addEventListener("keydown", (event) => {
  const search = document.querySelector("#search");
  if (event.key === "/" && document.activeElement !== search) {
    search.focus();
    event.preventDefault();
  }
});

drawHeader();
const shown = drawTable(data, view, actions);
document.title = data.layer === null ? "Features" : `Features of layer ${data.layer}`;
if (data.layer === null) document.querySelector("main.features").classList.add("whole");
else {
  window.addEventListener("hashchange", drawDetail);
  const first = shown.length ? data.table.feature[shown[0]] : null;
  if (!/^#\d+$/.test(location.hash) && first !== null) history.replaceState(null, "", `#${first}`);
  drawDetail();
}
document.querySelector("#page").removeAttribute("aria-busy");
