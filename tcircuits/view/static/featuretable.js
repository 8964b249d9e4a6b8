// The table: sorted by a click on a column's head, filled a few hundred rows at a time.

const TABLE_ROWS = 200;
const COLUMNS = [
  ["layer", "Layer", "Layer of the model"],
  ["feature", "Feature", "Number of the feature in its layer"],
  ["density", "Density", "Share of positions where it is on"],
  ["largest", "Largest", "Largest activation"],
  ["mean", "Mean", "Mean activation where it is on"],
  ["tokens", "Strongest at", "Tokens at which it is strongest"],
  ["promoted", "Promotes", "Tokens whose logits it raises most"],
];

function headCells(data, view, actions) {
  return columnsOf(data).map(([name, title, meaning]) => {
    const sorted = view.sort === name;
    const text = name === "tokens" || name === "promoted";
    return html(
      "th",
      { scope: "col", className: text ? "words" : "", "aria-sort": sorted ? (view.rising ? "ascending" : "descending") : null },
      html(
        "button",
        { type: "button", title: meaning, "data-focus": `head ${name}`, onclick: () => actions.sort(name) },
        title,
        sorted ? (view.rising ? " ↑" : " ↓") : "",
      ),
    );
  });
}

/** Without the column of layers on the page of one. */
function columnsOf(data) {
  return data.layer === null ? COLUMNS : COLUMNS.filter(([name]) => name !== "layer");
}

function tableRow(data, view, i, actions) {
  const table = data.table;
  const cells = {
    layer: () => html("td", {}, String(table.layer[i])),
    feature: () => html("td", {}, String(table.feature[i])),
    density: () => html("td", {}, table.density[i] ? formatPart(table.density[i]) : "dead"),
    largest: () => html("td", {}, table.density[i] ? formatNumber(table.largest[i]) : "–"),
    mean: () => html("td", {}, table.density[i] ? formatNumber(table.mean[i]) : "–"),
    tokens: () => html("td", { className: "words" }, ...table.tokens[i].map((w) => tokenElement(wordOf(data, w)))),
    promoted: () => html("td", { className: "words" }, ...table.promoted[i].map((w) => tokenElement(wordOf(data, w)))),
  };
  const key = `${table.layer[i]}/${table.feature[i]}`;
  const row = html("tr", { tabIndex: 0, "data-key": key, "data-focus": `row ${key}` }, ...columnsOf(data).map(([name]) => cells[name]()));
  if (view.selected === key) row.setAttribute("aria-selected", "true");
  row.addEventListener("click", () => actions.open(table.layer[i], table.feature[i]));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter") actions.open(table.layer[i], table.feature[i]);
    const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
    if (next) {
      next.focus();
      event.preventDefault();
    }
  });
  return row;
}

/** A share as percent with three digits. */
function formatPart(x) {
  const percent = 100 * x;
  return percent >= 0.01 ? `${percent.toPrecision(3)}%` : `${percent.toExponential(1).replace("e-", "e−")}%`;
}

function drawTable(data, view, actions) {
  const rows = listed(data, view);
  const head = document.querySelector(".table thead tr");
  keepFocus(head, () => head.replaceChildren(...headCells(data, view, actions)));
  const body = document.querySelector(".table tbody");
  const put = (from, to) => body.append(...rows.slice(from, to).map((i) => tableRow(data, view, i, actions)));
  body.replaceChildren();
  put(0, TABLE_ROWS);
  const more = document.querySelector(".more");
  more.replaceChildren();
  if (rows.length > TABLE_ROWS) {
    let shown = TABLE_ROWS;
    const text = () => `Show ${formatCount(Math.min(TABLE_ROWS, rows.length - shown))} more of ${formatCount(rows.length)}`;
    const button = html("button", { type: "button", className: "quiet" }, text());
    button.addEventListener("click", () => {
      put(shown, shown + TABLE_ROWS);
      shown += TABLE_ROWS;
      if (shown >= rows.length) button.remove();
      else button.textContent = text();
    });
    more.append(button);
  }
  document.querySelector("#found").textContent = `${formatCount(rows.length)} of ${formatCount(data.n)}`;
  return rows;
}
