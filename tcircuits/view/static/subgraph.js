// The pinned subgraph: boxes for pinned nodes and supernodes, links between them summed.

/** Boxes: a supernode for each group, then every other pinned node. */
function boxesOf(graph, state) {
  const grouped = new Set(state.groups.flatMap((group) => group.members));
  const groups = state.groups.map((group, index) => ({
    id: `group:${index}`,
    group,
    members: group.members.map((key) => graph.byKey.get(key)),
  }));
  const single = state.pinned
    .filter((key) => !grouped.has(key))
    .map((key) => ({ id: key, group: null, members: [graph.byKey.get(key)] }));
  return [...groups, ...single].map((box) => ({
    ...box,
    row: box.members.reduce((sum, node) => sum + node.row, 0) / box.members.length,
    pos: box.members.reduce((sum, node) => sum + node.pos, 0) / box.members.length,
    name: box.group ? visible(box.group.name) : nodeName(box.members[0], state.labels),
  }));
}

/** Links between boxes: the sum of the weights, and its part of all that enters the target's members in the file. */
function boxLinks(graph, boxes) {
  const owner = new Map();
  boxes.forEach((box, b) => box.members.forEach((node) => owner.set(node.index, b)));
  const sums = new Map();
  const totals = new Float64Array(boxes.length);
  boxes.forEach((box, t) => {
    for (const node of box.members) {
      for (const e of graph.inputs(node.index)) {
        const weight = graph.links.weight[e];
        const s = owner.get(graph.links.source[e]);
        if (s !== t) totals[t] += Math.abs(weight);
        if (s !== undefined && s !== t) sums.set(`${s},${t}`, (sums.get(`${s},${t}`) ?? 0) + weight);
      }
    }
  });
  return [...sums].map(([key, weight]) => {
    const [source, target] = key.split(",").map(Number);
    return { source, target, weight, share: totals[target] > 0 ? Math.abs(weight) / totals[target] : 0 };
  });
}

const BOX_HEIGHT = 36;

function textWidth(text, size) {
  textWidth.context ??= document.createElement("canvas").getContext("2d");
  textWidth.context.font = `${size}px ${FONT}`;
  return textWidth.context.measureText(text).width;
}

function boxSubtitle(graph, box) {
  if (box.group) return `${box.members.length} nodes`;
  const node = box.members[0];
  if (node.kind === "token") return `token ${node.pos}`;
  const token = shorten(tokenText(graph.tokens[node.pos] ?? ""), 12);
  if (node.kind === "logit") return node.prob > 0 ? `target ${formatShare(node.prob)}` : "target";
  return `${node.kind === "error" ? "error " : ""}L${node.layer} ${token}`;
}

/** Pushes the boxes of one row apart, keeping their order, inside 0..width. */
function spread(row, width) {
  row.sort((a, b) => a.x - b.x || a.pos - b.pos);
  const gap = 16;
  for (let k = 1; k < row.length; k++)
    row[k].x = Math.max(row[k].x, row[k - 1].x + (row[k - 1].w + row[k].w) / 2 + gap);
  const over = row.at(-1).x + row.at(-1).w / 2 - width;
  if (over > 0) {
    row.at(-1).x -= over;
    for (let k = row.length - 2; k >= 0; k--)
      row[k].x = Math.min(row[k].x, row[k + 1].x - (row[k + 1].w + row[k].w) / 2 - gap);
  }
  const under = row[0].w / 2 - row[0].x;
  if (under > 0) for (const box of row) box.x += under;
}

/** Moves a box a little aside where its column has boxes above and below, so that links do not hide behind boxes. */
function stagger(row, k, columns, rows) {
  for (const box of row) {
    const column = Math.round(box.pos);
    const others = rows
      .map((other) => other.some((b) => Math.round(b.pos) === column))
      .flatMap((has, level) => (has ? [level] : []));
    if (others.length > 2) box.x += (others.indexOf(k) % 2 ? 0.62 : -0.62) * box.w;
  }
}

/** Places boxes: rows by layer, across by token; a dragged box stays where it was put. */
function placeBoxes(graph, boxes, state, size) {
  for (const box of boxes) {
    box.title = shorten(box.name, 26);
    box.subtitle = boxSubtitle(graph, box);
    box.w = Math.max(64, textWidth(box.title, 12) + 24, textWidth(box.subtitle, 10) + 24);
  }
  const levels = [...new Set(boxes.map((box) => Math.round(box.row)))].sort((a, b) => a - b);
  const least = levels.length * (BOX_HEIGHT + 20);
  const height = Math.max(size.height, least);
  const rows = levels.map((level) => boxes.filter((box) => Math.round(box.row) === level));
  const width = Math.max(size.width, ...rows.map((row) => row.reduce((sum, box) => sum + box.w + 16, 16)));
  const columns = [...new Set(boxes.map((box) => Math.round(box.pos)))].sort((a, b) => a - b);
  rows.forEach((row, k) => {
    for (const box of row) {
      box.x = ((columns.indexOf(Math.round(box.pos)) + 0.5) / columns.length) * width;
      box.y = height - ((k + 0.5) / levels.length) * height;
    }
    stagger(row, k, columns, rows);
    spread(row, width);
  });
  for (const box of boxes) {
    const at = state.places[box.id];
    if (at)
      [box.x, box.y] = [
        clamp(at[0] * width, box.w / 2, width - box.w / 2),
        clamp(at[1] * height, BOX_HEIGHT / 2, height - BOX_HEIGHT / 2),
      ];
  }
  return { width, height };
}

/** Where a link leaves and arrives: upright at the boxes' edges, and beside its reverse where there is one. */
function linkEnds(s, t, twoWay) {
  const level = Math.abs(s.y - t.y) < BOX_HEIGHT;
  const up = s.y >= t.y;
  const half = BOX_HEIGHT / 2;
  if (level) {
    const y = Math.min(s.y, t.y) - half - 34;
    const to = [t.x, t.y - half];
    return { path: `M${s.x} ${s.y - half}C${s.x} ${y} ${t.x} ${y} ${to[0]} ${to[1]}`, to, up: false, level };
  }
  const aside = twoWay ? (up ? -9 : 9) : 0;
  const from = [s.x + aside, s.y + (up ? -half : half)];
  const to = [t.x + aside, t.y + (up ? half : -half)];
  return { path: linkPath(...from, ...to), from, to, up, level };
}

function arrowPath([x, y], up, size) {
  const back = up ? size * 1.5 : -size * 1.5;
  return `M${x} ${y}L${x - size} ${y + back}H${x + size}Z`;
}

/** A point of the curve that `linkPath` draws. */
function alongLink([x0, y0], [x1, y1], t) {
  const bend = (y0 - y1) * 0.45;
  const mix = (a, b, c, d) => a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t * t * (1 - t) + d * t ** 3;
  return [mix(x0, x0, x1, x1), mix(y0, y0 - bend, y1 + bend, y1)];
}

/** Weights beside their links, strongest first, each where it covers no box and no other weight. */
function linkLabels(wanted, boxes, palette) {
  const group = svg("g", { "font-size": 9.5, "text-anchor": "middle" });
  const taken = boxes.map((box) => ({ x: box.x, y: box.y, w: box.w, h: BOX_HEIGHT }));
  for (const { link, colour, from, to } of wanted) {
    const text = formatNumber(link.weight, true);
    const size = { w: textWidth(text, 9.5) + 6, h: 13 };
    for (const t of [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8]) {
      const [x, y] = alongLink(from, to, t);
      if (taken.some((o) => Math.abs(o.x - x) < (o.w + size.w) / 2 && Math.abs(o.y - y) < (o.h + size.h) / 2)) continue;
      taken.push({ x, y, ...size });
      group.append(
        svg("rect", { x: x - size.w / 2, y: y - 6.5, width: size.w, height: 13, rx: 3, fill: palette.paper }),
        svg("text", { x, y: y + 3.4, fill: colour }, text),
      );
      break;
    }
  }
  return group;
}

/** The subgraph as SVG elements: [links, boxes]. The same for the screen and the export. */
function drawSubgraph(graph, boxes, links, palette, marked, selected) {
  const lines = svg("g", { fill: "none", "stroke-linecap": "round" });
  const wanted = [];
  const few = links.length <= 24;
  const pairs = new Set(links.map((link) => `${link.source},${link.target}`));
  for (const link of [...links].sort((a, b) => a.share - b.share)) {
    const ends = linkEnds(boxes[link.source], boxes[link.target], pairs.has(`${link.target},${link.source}`));
    const colour = signColour(link.weight, palette);
    const text = `${boxes[link.source].name} → ${boxes[link.target].name}: ${formatNumber(link.weight, true)} (${formatShare(link.share)} of its input)`;
    const paint = { opacity: (0.4 + 0.55 * Math.sqrt(link.share)).toFixed(2) };
    const path = svg("path", {
      d: ends.path,
      stroke: colour,
      "stroke-width": (0.8 + 5.5 * Math.sqrt(link.share)).toFixed(2),
      class: "sub-link",
      ...paint,
    });
    path.append(svg("title", {}, text));
    path.dataset.weight = link.weight;
    const size = 4 + 3 * Math.sqrt(link.share);
    lines.append(path, svg("path", { d: arrowPath(ends.to, ends.up, size), fill: colour, ...paint }));
    if (few && link.share >= 0.02 && !ends.level) wanted.push({ link, colour, from: ends.from, to: ends.to });
  }
  const labels = linkLabels(wanted.reverse(), boxes, palette);
  return [
    lines,
    labels,
    svg(
      "g",
      {},
      boxes.map((box) =>
        boxElement(
          box,
          palette,
          marked.has(box.id),
          box.members.some((node) => node.key === selected),
        ),
      ),
    ),
  ];
}

function boxElement(box, palette, marked, selected) {
  const kind = box.group ? "group" : box.members[0].kind;
  const line = {
    x: -box.w / 2,
    y: -BOX_HEIGHT / 2,
    width: box.w,
    height: BOX_HEIGHT,
    rx: kind === "token" || kind === "logit" ? 2 : 8,
  };
  const stroke = marked || selected ? palette.mark : palette.boxLine;
  const element = svg("g", {
    class: `box ${kind}`,
    transform: `translate(${box.x.toFixed(1)} ${box.y.toFixed(1)})`,
    tabindex: 0,
    role: "button",
    "aria-label": `${box.name}, ${box.subtitle}${marked ? ", marked" : ""}`,
    "font-size": 12,
  });
  if (box.group) element.append(svg("rect", { ...line, x: line.x + 4, y: line.y - 4, fill: palette.group, stroke }));
  element.append(
    svg("rect", {
      ...line,
      fill: box.group ? palette.group : palette.box,
      stroke,
      "stroke-width": marked || selected ? 1.8 : 1,
      "stroke-dasharray": kind === "error" ? "4 3" : null,
    }),
    svg("text", { y: -2, "text-anchor": "middle", fill: palette.ink, "font-weight": 500 }, box.title),
    svg("text", { y: 12, "text-anchor": "middle", fill: palette.muted, "font-size": 10 }, box.subtitle),
  );
  for (const text of element.querySelectorAll("text")) text.style.unicodeBidi = "plaintext";
  element.append(svg("title", {}, box.members.map((node) => nodeName(node)).join("\n")));
  element.dataset.id = box.id;
  element.dataset.focus = box.id;
  return element;
}
