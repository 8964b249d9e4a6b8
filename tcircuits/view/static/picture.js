// What the link graph shows under a state, for the screen and for the export alike.

const MAX_DRAWN_LINKS = 5000;
const MAX_FOCUS_LINKS = 800;

/** Which nodes pass the thresholds; null influence always does. */
function shownNodes(graph, state) {
  const shown = new Uint8Array(graph.nodes.length);
  let count = 0;
  for (const node of graph.nodes) {
    const passes = node.influence === null || node.influence <= state.node;
    if (passes && (state.errors || node.kind !== "error")) {
      shown[node.index] = 1;
      count += 1;
    }
  }
  return [shown, count];
}

/** Links with both ends shown that pass the threshold, strongest first. */
function shownLinks(graph, state, shown) {
  const { links } = graph;
  const list = [];
  for (const e of links.order) {
    if (state.edge < 1 && links.before[e] >= state.edge) break;
    if (shown[links.source[e]] && shown[links.target[e]]) list.push(e);
  }
  return list;
}

/** Links of one node to shown nodes, strongest first, of the chosen direction. */
function focusLinks(graph, state, shown, index) {
  const list = [];
  if (state.linkType !== "output") for (const e of graph.inputs(index)) if (shown[graph.links.source[e]]) list.push(e);
  if (state.linkType !== "input") for (const e of graph.outputs(index)) if (shown[graph.links.target[e]]) list.push(e);
  return list;
}

/** Each neighbour's weight relative to the strongest, apart for inputs and outputs (their units differ). */
function neighbourWeights(graph, list, index) {
  const { links } = graph;
  const top = { input: 1e-300, output: 1e-300 };
  const side = (e) => (links.target[e] === index ? "input" : "output");
  for (const e of list) top[side(e)] = Math.max(top[side(e)], Math.abs(links.weight[e]));
  const weights = new Map();
  for (const e of list) {
    const other = side(e) === "input" ? links.source[e] : links.target[e];
    weights.set(other, links.weight[e] / top[side(e)]);
  }
  return weights;
}

function matchesQuery(graph, node, labels, query) {
  if (!query) return true;
  const promoted = [...vocabulary(node.raw.top_logits), ...vocabulary(node.raw.bottom_logits)].map(([token]) => token);
  const number =
    node.kind === "feature" && node.feature !== null
      ? `feature ${node.feature} L${node.layer} L${node.layer}/${node.feature}`
      : "";
  const text = [
    nodeName(node, labels),
    node.label,
    node.raw.node_id,
    number,
    graph.tokens[node.pos] ?? "",
    ...promoted,
  ].join("\n");
  return text.toLowerCase().includes(query.toLowerCase());
}

/** Everything that the picture of the link graph holds, in drawing order; the screen and the export both draw this. */
function picture(graph, state, view) {
  const [shown, nodeCount] = shownNodes(graph, state);
  const list = shownLinks(graph, state, shown);
  const first = new Set([...state.pinned, ...(state.selected ? [state.selected] : [])]);
  const layout = layoutGraph(graph, shown, first, view.labelWidths, view.size, view.zoom);
  return { shown, nodeCount, linkCount: list.length, links: list.slice(0, MAX_DRAWN_LINKS), layout };
}

/** Lines and labels that do not depend on the selection. Returns [frame, axis] as SVG groups. */
function frameOf(graph, layout, palette) {
  const frame = svg("g", { "font-size": 11, fill: palette.ink });
  const axis = svg("g", { "font-size": 10, fill: palette.muted });
  const every = layout.gap >= 13 && graph.nLayers <= 18 ? 1 : graph.nLayers <= 40 ? 5 : 10;
  for (let row = 0; row < graph.nRows; row++) {
    const y = layout.rowY(row);
    const name = row === 0 ? "tokens" : row === graph.nRows - 1 ? "targets" : `${row - 1}`;
    const labelled =
      row === 0 ||
      row > graph.nLayers ||
      (row - 1) % every === 0 ||
      (row === graph.nLayers && (row - 1) % every > every / 2);
    frame.append(
      svg("line", { x1: 0, x2: layout.width, y1: y, y2: y, stroke: palette.hair, "stroke-width": labelled ? 1 : 0.5 }),
    );
    if (labelled) axis.append(svg("text", { x: 44, y: y + 3.5, "text-anchor": "end" }, name));
  }
  const middle = (layout.rowY(1) + layout.rowY(graph.nLayers)) / 2;
  axis.append(
    svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${middle}) rotate(-90)` }, "layer"),
  );
  for (let t = 0; t < graph.nTokens; t++) frame.append(tokenLabel(graph, layout, t, palette));
  return [frame, axis];
}

function tokenLabel(graph, layout, t, palette) {
  const x = layout.starts[t] + layout.widths[t] / 2;
  const y = layout.rowY(0) + 20;
  const text = shorten(tokenText(graph.tokens[t] ?? `pos ${t}`), 18);
  const slanted = { transform: `translate(${x + 3} ${y - 6}) rotate(-42)`, "text-anchor": "end" };
  const label = svg(
    "text",
    layout.slantTokens ? slanted : { x, y, "text-anchor": "middle" },
    ...dotted(shorten(text, layout.slantTokens ? 13 : 18), palette),
  );
  return label;
}

/** A token's text with its leading dots in a lighter ink; its writing direction stays its own. */
function dotted(text, palette) {
  const lead = /^·+/.exec(text)?.[0] ?? "";
  const rest = svg("tspan", {}, text.slice(lead.length));
  rest.style.unicodeBidi = "plaintext";
  return lead && lead.length < text.length
    ? [svg("tspan", { fill: palette.muted }, lead), rest]
    : [text === lead ? svg("tspan", {}, text) : rest];
}

function targetLabels(graph, layout, palette) {
  const group = svg("g", { "font-size": 11, fill: palette.ink });
  for (const { node, x, y } of layout.nodes) {
    if (node.kind !== "logit") continue;
    const prob = node.prob !== null && node.prob > 0 ? ` ${formatShare(node.prob)}` : "";
    const name = shorten(nodeName(node), 14);
    const place = layout.slantTargets
      ? { transform: `translate(${x - 1} ${y - 9}) rotate(40)`, "text-anchor": "end" }
      : { x: x + 8, y: y - 11, "text-anchor": "end" };
    const label = svg("text", place, ...dotted(name, palette), svg("tspan", { fill: palette.muted }, prob));
    group.append(label);
  }
  return group;
}

/** How a node looks under the present selection and search. */
function paintOf(graph, state, palette, node, focus) {
  return nodePaint(node, palette, {
    link: focus?.weights.get(node.index) ?? null,
    focus: Boolean(focus),
    selected: node.index === focus?.index || node.key === state.selected,
    matches: matchesQuery(graph, node, state.labels, state.query),
    pinned: state.pinned.includes(node.key),
  });
}

function describe(graph, node, labels) {
  const place = nodePlace(graph, node);
  const influence = node.influence === null ? "" : `, influence ${formatNumber(node.influence)}`;
  return `${KIND_NAMES[node.kind]}: ${nodeName(node, labels)}, ${place.where}, position ${place.pos} ${tokenText(place.token)}${influence}`;
}
