// Where each node stands: one column a token, one row a layer, the nodes of a (layer, token) cell side by side.

const MIN_COLUMN = 30;
const MIN_ROW = 9.5;
const TIGHT = 4.8;
const TARGET_STEP = 21;
const PAD = { top: 34, bottom: 32, right: 16, left: 6 };

/** Nodes by cell, strongest first, with the selected and pinned ones never in the overflow. */
function cellsOf(graph, shown, first) {
  const cells = new Map();
  for (const node of graph.nodes) {
    if (!shown[node.index]) continue;
    const id = node.row * graph.nTokens + node.pos;
    if (!cells.has(id)) cells.set(id, { row: node.row, pos: node.pos, nodes: [] });
    cells.get(id).nodes.push(node);
  }
  for (const cell of cells.values()) {
    cell.nodes.sort((a, b) => first.has(b.key) - first.has(a.key) || b.score - a.score || a.index - b.index);
  }
  return cells;
}

/** The least width of each column. Labels lie flat where they and the nodes have room, else they are slanted. */
function leastWidths(graph, cells, labels, available) {
  const nodes = new Float64Array(graph.nTokens);
  const base = new Float64Array(graph.nTokens).fill(MIN_COLUMN);
  for (const cell of cells.values()) {
    if (cell.row === graph.nRows - 1)
      base[cell.pos] = Math.max(base[cell.pos], Math.min(cell.nodes.length, 5) * TARGET_STEP);
    else nodes[cell.pos] = Math.max(nodes[cell.pos], Math.min(cell.nodes.length, 12) * TIGHT + 8);
  }
  const flat = Array.from(base, (w, t) => Math.max(w, labels[t] + 12));
  const wanted = flat.reduce((sum, w, t) => sum + Math.max(w, nodes[t]), 0);
  return wanted > available ? { widths: Array.from(base), slanted: true } : { widths: flat, slanted: false };
}

/** Column widths: what each needs above its least width, with the room shared out. */
function columnWidths(graph, cells, step, rowsInCell, available, least) {
  const wish = new Float64Array(graph.nTokens);
  for (const cell of cells.values()) {
    const across = Math.min(Math.ceil(cell.nodes.length / rowsInCell), 24) * step + 12;
    wish[cell.pos] = Math.max(wish[cell.pos], across - least[cell.pos]);
  }
  const spare = Math.max(0, available - least.reduce((a, b) => a + b, 0));
  const wished = wish.reduce((a, b) => a + b, 0);
  const part = wished > spare ? spare / wished : 1;
  const rest = Math.max(0, spare - wished) / graph.nTokens;
  return least.map((w, t) => w + wish[t] * part + rest);
}

/** Places one cell: nodes strongest first, closer together where there are many, and the rest behind a mark. */
function placeCell(cell, box, size, out) {
  const { x, y, width } = box;
  const n = cell.nodes.length;
  const across = Math.ceil(n / size.rows);
  const step = clamp((width - 8) / Math.max(1, across), size.tight, size.step);
  const perRow = Math.max(1, Math.floor((width - 6) / step + 1e-9));
  const over = n > perRow * size.rows;
  // The mark takes the end of the first line.
  const taken = over ? Math.min(perRow - 1, Math.ceil(15 / step)) : 0;
  const kept = over ? Math.max(1, perRow * size.rows - taken) : n;
  const lines = over ? size.rows : Math.ceil(n / perRow);
  for (let k = 0; k < kept; k++) {
    const line = Math.floor((k + taken) / perRow);
    const [first, last] = [
      Math.max(line * perRow, taken),
      over ? (line + 1) * perRow : Math.min((line + 1) * perRow, n),
    ];
    const place = over ? ((k + taken) % perRow) - (line === 0 ? taken : 0) : k - first;
    const middle = over ? (perRow - 1) / 2 : (last - first - 1) / 2;
    out.nodes.push({
      node: cell.nodes[k],
      x: x + width / 2 + (place - middle) * step,
      y: y + ((lines - 1) / 2 - line) * step,
    });
  }
  if (over) out.more.push({ cell, hidden: cell.nodes.slice(kept), x: x + width - 14, y: y + ((lines - 1) / 2) * step });
}

/**
 * Positions for the nodes that are shown, in pixels.
 *
 * `labels` are the token labels' widths; `size` the room {width, height}; `zoom` stretches both. A cell that cannot show
 * all its nodes ends in a "+n" mark, which is where links of the nodes behind it start and end.
 */
function layoutGraph(graph, shown, first, labels, size, zoom) {
  const cells = cellsOf(graph, shown, first);
  const available = size.width * zoom - PAD.left - PAD.right;
  const targets = [...cells.values()].filter((cell) => cell.row === graph.nRows - 1);
  const slantTargets = targets.some((cell) => cell.nodes.length > 1);
  const least = leastWidths(graph, cells, labels, available);
  const slantTokens = least.slanted;
  // Slanted labels are as high as they are long, times the sine of their angle.
  const longest = Math.max(
    0,
    ...targets.flatMap((cell) => cell.nodes.map((node) => Math.min(14, nodeName(node).length) + 6)),
  );
  const top = slantTargets ? 22 + longest * 6 * 0.64 : PAD.top;
  const bottom = slantTokens ? 26 + Math.min(80, Math.max(...labels)) * 0.67 : PAD.bottom;
  // The embeddings and the targets stand a little apart from the layers.
  const gap = Math.max(MIN_ROW, (size.height * zoom - top - bottom) / (graph.nRows - 1 + 0.8));
  const radius = clamp(gap * 0.3, 2.7, 5.5);
  const rowsInCell = Math.max(1, Math.floor((gap * 0.86) / (2 * radius + 2)));
  const widths = columnWidths(graph, cells, 2 * radius + 2, rowsInCell, available, least.widths);
  const starts = [];
  let x = PAD.left;
  for (const w of widths) {
    starts.push(x);
    x += w;
  }
  const rowY = (row) => {
    const steps = row === 0 ? 0 : row === graph.nRows - 1 ? row + 0.8 : row + 0.4;
    return top + gap * (graph.nRows - 1 + 0.8 - steps);
  };
  const out = { nodes: [], more: [], cells, starts, widths, rowY, gap, radius, slantTargets, slantTokens };
  for (const cell of cells.values()) {
    const step = 2 * radius + 2;
    const target = cell.row === graph.nRows - 1;
    const size = target
      ? { step: TARGET_STEP, tight: TARGET_STEP, rows: 1 }
      : { step, tight: Math.min(step, TIGHT), rows: rowsInCell };
    placeCell(cell, { x: starts[cell.pos], y: rowY(cell.row), width: widths[cell.pos] + (target ? 8 : 0) }, size, out);
  }
  out.width = Math.ceil(x + PAD.right);
  out.height = Math.ceil(rowY(0) + bottom);
  out.x = new Float64Array(graph.nodes.length).fill(NaN);
  out.y = new Float64Array(graph.nodes.length).fill(NaN);
  for (const { node, x: px, y: py } of out.nodes) [out.x[node.index], out.y[node.index]] = [px, py];
  for (const mark of out.more) {
    for (const node of mark.hidden) [out.x[node.index], out.y[node.index]] = [mark.x + 5, mark.y];
  }
  return out;
}
