// Files that a reader takes away: pictures as SVG, the graph with the present state as JSON.

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = html("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A file name made of a graph's slug. */
function fileName(graph, ending) {
  const slug = String(graph.metadata.slug ?? "graph")
    .replace(/[^\w.-]+/g, "-")
    .replace(/^[-.]+|[-.]+$/g, "")
    .slice(0, 80);
  return `${slug || "graph"}${ending}`;
}

function serialise(root) {
  for (const element of root.querySelectorAll("*")) {
    for (const name of ["tabindex", "role", "aria-label", "aria-pressed", "class"]) element.removeAttribute(name);
  }
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(root)}\n`;
}

function svgLinks(graph, layout, list, strength, palette) {
  const group = svg("g", { fill: "none" });
  const { links } = graph;
  for (const e of [...list].reverse()) {
    const paint = linkPaint(linkLevel(strength(e)), list.length);
    const [s, t] = [links.source[e], links.target[e]];
    const d = linkPath(layout.x[s], layout.y[s], layout.x[t], layout.y[t]);
    group.append(
      svg("path", {
        d,
        stroke: signColour(links.weight[e], palette),
        "stroke-width": paint.width.toFixed(2),
        opacity: paint.opacity.toFixed(2),
      }),
    );
  }
  return group;
}

function svgNodes(graph, state, layout, palette, focus) {
  const group = svg("g");
  for (const { node, x, y } of [...layout.nodes].reverse()) {
    const path = svg("path", {
      d: shapePath(node.kind, nodeRadius(graph, node, layout.radius)),
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      "data-node": visible(node.raw.node_id),
      ...paintOf(graph, state, palette, node, focus),
    });
    path.append(svg("title", {}, describe(graph, node, state.labels)));
    group.append(path);
  }
  const more = svg("g", { "font-size": 8, fill: palette.muted });
  for (const mark of layout.more) more.append(svg("text", { x: mark.x, y: mark.y + 2.8 }, `+${mark.hidden.length}`));
  return [group, more];
}

/** Shapes and colours explained, for the page's corner and the exported picture. */
function legend(palette) {
  const items = [
    ["feature", "feature"],
    ["token", "token"],
    ["logit", "target"],
    ["error", "error"],
  ];
  const group = svg("g", { "font-size": 10.5, fill: palette.muted });
  let x = 0;
  for (const [kind, name] of items) {
    const paint = nodePaint({ kind }, palette, {});
    group.append(
      svg("path", { d: shapePath(kind, 4.2), transform: `translate(${x + 5} 0)`, ...paint }),
      svg("text", { x: x + 14, y: 3.5 }, name),
    );
    x += 14 + textWidth(name, 10.5) + 16;
  }
  for (const [colour, name] of [
    [palette.positive, "raises"],
    [palette.negative, "lowers"],
  ]) {
    group.append(
      svg("line", { x1: x, x2: x + 16, y1: 0, y2: 0, stroke: colour, "stroke-width": 2 }),
      svg("text", { x: x + 21, y: 3.5 }, name),
    );
    x += 21 + textWidth(name, 10.5) + 16;
  }
  group.dataset.width = x;
  return group;
}

/** The link graph as one sees it, in the light colours, as an SVG document. */
function graphSvg(view, state) {
  const { graph } = view;
  const { layout, links, shown } = view.now;
  const palette = LIGHT;
  const [frame, axis] = frameOf(graph, layout, palette);
  const [width, height] = [layout.width + 48, layout.height + 26];
  const root = svg("svg", { xmlns: SVG_NS, width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT });
  const top = (links.length && graph.links.score[links[0]]) || 1;
  const active = state.selected === null ? null : graph.byKey.get(state.selected);
  const base = svgLinks(graph, layout, links, (e) => graph.links.score[e] / top, palette);
  const plot = svg("g", { transform: "translate(48 0)" }, frame, base);
  let focus = null;
  if (active) {
    base.setAttribute("opacity", 0.18);
    const list = focusLinks(graph, state, shown, active.index);
    focus = { index: active.index, weights: neighbourWeights(graph, list, active.index) };
    const other = (e) => (graph.links.source[e] === active.index ? graph.links.target[e] : graph.links.source[e]);
    if (shown[active.index])
      plot.append(
        svgLinks(graph, layout, list.slice(0, MAX_FOCUS_LINKS), (e) => Math.abs(focus.weights.get(other(e))), palette),
      );
  }
  plot.append(targetLabels(graph, layout, palette), ...svgNodes(graph, state, layout, palette, focus));
  const key = legend(palette);
  key.setAttribute("transform", `translate(${Math.max(8, width - 16 - key.dataset.width)} ${height - 14})`);
  root.append(
    svg("title", {}, visible(graph.metadata.prompt ?? "")),
    svg("rect", { width, height, fill: palette.paper }),
    axis,
    plot,
    key,
  );
  return serialise(root);
}

function subgraphSvg(view, state) {
  const { width, height } = view.size;
  const root = svg("svg", { xmlns: SVG_NS, width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT });
  root.append(
    svg("rect", { width, height, fill: LIGHT.paper }),
    ...drawSubgraph(view.graph, view.boxes, view.links, LIGHT, new Set(), null),
  );
  return serialise(root);
}
