// The panel about one node: what it is, what it reads from and writes to, what it does to the vocabulary.

const LIST_ROWS = 12;

/** One row of a list of nodes: a bar with a sign and a size, the name, the place. */
function nodeRow(graph, node, { weight = null, share = null, part = 0, hidden = false }, labels, actions) {
  const sign = weight !== null && weight < 0 ? "negative" : "positive";
  const bar = html("span", { className: `bar ${sign}`, "aria-hidden": "true" });
  if (weight !== null) bar.style.setProperty("--part", `${(100 * Math.abs(part)).toFixed(1)}%`);
  const place = nodePlace(graph, node);
  const where = node.kind === "token" ? "emb" : node.kind === "logit" ? "out" : `L${node.layer}`;
  const row = html(
    "button",
    {
      type: "button",
      className: `row ${node.kind}${hidden ? " hidden-node" : ""}`,
      title: hidden ? "Hidden by the thresholds" : describe(graph, node, labels),
    },
    glyph(node.kind),
    html(
      "span",
      { className: "row-name" },
      html("bdi", { dir: "auto" }, nodeName(node, labels)),
      promotedHint(node, labels),
    ),
    html(
      "span",
      { className: "row-place" },
      where,
      node.kind === "token" ? ` ${node.pos}` : [" ", tokenElement(place.token)],
    ),
    weight === null ? null : html("span", { className: "row-bar" }, bar),
    weight === null ? null : html("span", { className: `row-weight ${sign}` }, formatNumber(weight, true)),
    share === null ? null : html("span", { className: "row-share" }, formatShare(share)),
  );
  row.dataset.key = node.key;
  row.dataset.focus = `row ${node.key}`;
  row.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) actions.togglePin(node.key);
    else actions.select(node.key);
  });
  row.addEventListener("mouseenter", () => actions.point(node));
  row.addEventListener("mouseleave", () => actions.point(null));
  return row;
}

/** For a feature without a label, the two tokens that it promotes most. */
function promotedHint(node, labels) {
  if (node.kind !== "feature" || node.label || labels[node.key]) return null;
  const tokens = vocabulary(node.raw.top_logits).slice(0, 2);
  return tokens.length
    ? html("span", { className: "hint" }, ...tokens.flatMap(([token]) => [" ", tokenElement(token)]))
    : null;
}

/** The node's shape as a small picture. */
function glyph(kind) {
  return svg(
    "svg",
    { class: `glyph ${kind}`, width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" },
    svg("path", { d: shapePath(kind, 4.2) }),
  );
}

function linkSection(graph, state, view, node, side, actions) {
  const list = side === "input" ? graph.inputs(node.index) : graph.outputs(node.index);
  const title = side === "input" ? "Inputs" : "Outputs";
  const section = html("section", { className: "links", "aria-label": title });
  const total = list.reduce((sum, e) => sum + Math.abs(graph.links.weight[e]), 0);
  section.append(
    html(
      "h3",
      {},
      title,
      " ",
      html("span", { className: "count" }, formatCount(list.length)),
      list.length
        ? html(
            "span",
            { className: "columns" },
            html("span", {}, "weight"),
            html(
              "span",
              {
                title:
                  side === "input"
                    ? "Part of the total size of this node's inputs in the file"
                    : "Part of the target's inputs that comes from this node",
              },
              "share",
            ),
          )
        : null,
    ),
  );
  if (!list.length) {
    const leaf = ["token", "error", "bias", "unexpanded"].includes(node.kind);
    section.append(
      html(
        "p",
        { className: "empty" },
        side === "input" && leaf ? "A leaf: the trace ends here." : "None in this file.",
      ),
    );
    return section;
  }
  const top = Math.abs(graph.links.weight[list[0]]) || 1;
  const rows = html("div", { className: "rows" });
  const put = (from, to) => {
    for (const e of list.slice(from, to)) {
      const other = graph.nodes[side === "input" ? graph.links.source[e] : graph.links.target[e]];
      const weight = graph.links.weight[e];
      const share = side === "input" ? Math.abs(weight) / (total || 1) : graph.links.share[e];
      rows.append(
        nodeRow(
          graph,
          other,
          { weight, share, part: weight / top, hidden: !view.now.shown[other.index] },
          state.labels,
          actions,
        ),
      );
    }
  };
  put(0, LIST_ROWS);
  section.append(rows);
  if (list.length > LIST_ROWS) section.append(moreButton(list.length, LIST_ROWS, put));
  return section;
}

/** A button that adds the next hundred rows. */
function moreButton(n, from, put) {
  let shown = from;
  const text = () => `Show ${formatCount(Math.min(100, n - shown))} more of ${formatCount(n)}`;
  const button = html("button", { type: "button", className: "quiet" }, text());
  button.addEventListener("click", () => {
    put(shown, shown + 100);
    shown += 100;
    if (shown >= n) button.remove();
    else button.textContent = text();
  });
  return button;
}

function vocabularySection(node) {
  const lists = [
    ["Promotes", vocabulary(node.raw.top_logits)],
    ["Suppresses", vocabulary(node.raw.bottom_logits)],
  ];
  if (lists.every(([, list]) => !list.length)) return null;
  const top = Math.max(1e-300, ...lists.flatMap(([, list]) => list.map(([, value]) => Math.abs(value ?? 0))));
  const column = ([title, list]) => {
    const rows = list.map(([token, value]) => {
      const bar = html("span", {
        className: `bar ${(value ?? (title === "Promotes" ? 1 : -1)) < 0 ? "negative" : "positive"}`,
        "aria-hidden": "true",
      });
      bar.style.setProperty("--part", `${((100 * Math.abs(value ?? 0)) / top).toFixed(1)}%`);
      return html(
        "li",
        {},
        bar,
        tokenElement(token),
        html("span", { className: "value" }, value === null ? "" : formatNumber(value, true)),
      );
    });
    return html("div", {}, html("h3", {}, title), html("ol", { className: "vocabulary" }, ...rows));
  };
  return html(
    "section",
    { className: "promotes", "aria-label": "Effect on the vocabulary" },
    ...lists.filter(([, list]) => list.length).map(column),
  );
}

/** Where a feature is strongest in a corpus, from `tcircuits features`. */
function examplesSection(node) {
  const list = Array.isArray(node.raw.examples) ? node.raw.examples : [];
  if (!list.length) return null;
  const largest = Math.max(1e-30, ...list.map(([, values, chosen]) => Math.abs(values[chosen])));
  return html(
    "section",
    { className: "examples", "aria-label": "Strongest in the corpus" },
    html("h3", {}, "Strongest in the corpus"),
    ...list.map(([tokens, values, chosen]) => exampleElement(tokens, values, chosen, largest)),
  );
}

const FACTS = [
  ["Activation", (node) => node.activation, formatNumber, "The node's value on this prompt"],
  [
    "Probability",
    (node) => (node.kind === "logit" ? node.prob : null),
    formatShare,
    "The model's probability of this token",
  ],
  [
    "Rank",
    (node) => node.influence,
    formatShare,
    "Part of the total influence that this node and all stronger ones hold together; the node slider compares with it",
  ],
  [
    "Influence",
    (node, graph) => (node.kind === "logit" ? null : node.score / graph.totalStart),
    formatShare,
    "Part of the targets' input, followed through the links of this file, that passes through this node",
  ],
  [
    "Bias",
    (node) => node.bias,
    (x) => formatNumber(x, true),
    "Constant part of the node's value: biases of the model and the dictionary pulled back to this node",
  ],
  [
    "Unexpanded",
    (node) => node.unexpanded,
    (x) => formatNumber(x, true),
    "Input from active features that this graph does not expand",
  ],
];

function factList(graph, node) {
  const items = FACTS.map(([name, read, format, title]) => {
    const value = read(node, graph);
    return value === null || value === undefined
      ? null
      : html("div", { title }, html("dt", {}, name), html("dd", {}, format(value)));
  });
  return html("dl", { className: "facts" }, ...items);
}

function nodeHeading(graph, state, node, actions) {
  const place = nodePlace(graph, node);
  const parts = node.kind === "feature" && node.feature !== null ? ` ${node.feature}` : "";
  const pinned = state.pinned.includes(node.key);
  const label = html("input", {
    type: "text",
    className: "label-input",
    "data-focus": "label",
    dir: "auto",
    value: state.labels[node.key] ?? "",
    placeholder: "Give this node a label",
    "aria-label": "Label of this node",
    maxLength: 200,
    onchange: (event) => actions.setLabel(node.key, event.target.value),
  });
  return html(
    "header",
    { className: "node-heading" },
    html(
      "p",
      { className: "kind" },
      glyph(node.kind),
      ` ${KIND_NAMES[node.kind]}${parts} · ${place.where} · position ${place.pos} · id ${node.key} `,
      node.kind === "token" ? null : tokenElement(place.token),
    ),
    html(
      "h2",
      {},
      node.kind === "token" || (node.kind === "logit" && node.token !== null)
        ? tokenElement(node.token)
        : html("bdi", { dir: "auto" }, nodeName(node, state.labels)),
    ),
    html(
      "div",
      { className: "node-actions" },
      html(
        "button",
        {
          type: "button",
          className: "pin",
          "data-focus": "pin",
          "aria-pressed": String(pinned),
          title: "Pin to the subgraph (p)",
          onclick: () => actions.togglePin(node.key),
        },
        pinned ? "Unpin" : "Pin",
      ),
      label,
    ),
  );
}

/** The overview that stands in the panel while no node is selected: the strongest nodes and search results. */
function nodeList(graph, view, state, title, nodes, actions, note = null) {
  const rows = html("div", { className: "rows plain" });
  const put = (from, to) =>
    rows.append(
      ...nodes.slice(from, to).map((node) => {
        const share = node.kind === "logit" ? node.prob : node.score / graph.totalStart;
        return nodeRow(graph, node, { share, hidden: !view.now.shown[node.index] }, state.labels, actions);
      }),
    );
  put(0, 40);
  return [
    html(
      "header",
      { className: "node-heading" },
      html("h2", { className: "list-title" }, title),
      note ? html("p", { className: "empty" }, note) : null,
    ),
    rows,
    nodes.length > 40 ? moreButton(nodes.length, 40, put) : null,
  ];
}

function detailContent(graph, state, view, cell, actions) {
  const node = state.selected === null ? null : graph.byKey.get(state.selected);
  if (node) {
    return [
      nodeHeading(graph, state, node, actions),
      factList(graph, node),
      vocabularySection(node),
      examplesSection(node),
      linkSection(graph, state, view, node, "input", actions),
      linkSection(graph, state, view, node, "output", actions),
    ];
  }
  if (state.query) {
    const found = graph.nodes
      .filter((n) => matchesQuery(graph, n, state.labels, state.query))
      .sort((a, b) => b.score - a.score);
    return nodeList(
      graph,
      view,
      state,
      `${formatCount(found.length)} found`,
      found,
      actions,
      found.length ? null : "No token, feature, or label holds this text.",
    );
  }
  if (cell) {
    const where = cell.row === 0 ? "Tokens" : cell.row === graph.nRows - 1 ? "Targets" : `Layer ${cell.row - 1}`;
    return nodeList(
      graph,
      view,
      state,
      [`${where} at `, tokenElement(graph.tokens[cell.pos] ?? `${cell.pos}`)],
      cell.nodes,
      actions,
    );
  }
  const top = graph.nodes
    .filter((n) => n.kind !== "logit" && view.now.shown[n.index])
    .sort((a, b) => b.score - a.score)
    .slice(0, 200);
  return nodeList(
    graph,
    view,
    state,
    "Strongest nodes",
    top,
    actions,
    "By the part of the targets' input that passes through them.",
  );
}
