// The summary above the graph: prompt, targets, scores.

const SCORES = [
  [
    "replacement_score",
    "Replacement",
    formatShare,
    "Part of the influence on the targets that comes from the tokens; the rest starts in errors and unexpanded features. Followed from end to end.",
  ],
  [
    "completeness_score",
    "Completeness",
    formatShare,
    "Part of each node's input that comes from features or tokens rather than errors, averaged over all nodes by influence (leaves count as complete).",
  ],
  [
    "completeness_score_inputs",
    "Completeness, inputs",
    formatShare,
    "The completeness score over the nodes that have inputs only, which leaves cannot inflate.",
  ],
  [
    "unexpanded_share",
    "Unexpanded",
    formatShare,
    "Part of the influence that ends in active features which this graph does not expand.",
  ],
  [
    "bias_share",
    "Bias",
    formatShare,
    "Part of the input that is constant: biases of the model and the dictionaries. It takes no part in the influence.",
  ],
  [
    "max_row_gap",
    "Row gap",
    formatNumber,
    "Largest gap between a node's value and the sum of its inputs and bias, relative to their total size. It measures rounding only.",
  ],
];

const REST =
  "Part of the input that the edges of the file do not account for: its rows carry no biases, and nothing at position 0.";

function hasNumber(x) {
  return typeof x === "number" && Number.isFinite(x);
}

/** A figure with a name and an explanation that shows on hover and on focus. */
function figure(name, value, explanation) {
  const id = `tip-${name.replace(/\W+/g, "-").toLowerCase()}`;
  return html(
    "div",
    { className: "figure", tabIndex: 0, "aria-describedby": id },
    html("dt", {}, name),
    html("dd", {}, value),
    html("span", { className: "explain", role: "tooltip", id }, explanation),
  );
}

function summaryFigures(graph) {
  const { extra, nodes, links } = graph;
  const rest = extra.bias === "rest"; // another tool's rows, which carry no constants
  const list = SCORES.filter(([key]) => hasNumber(extra[key])).map(([key, name, format, text]) =>
    rest && key === "bias_share" ? figure("Rest", format(extra[key]), REST) : figure(name, format(extra[key]), text),
  );
  if (hasNumber(extra.n_features)) {
    const part = hasNumber(extra.n_selected)
      ? `${formatCount(extra.n_selected)} / ${formatCount(extra.n_features)}`
      : formatCount(extra.n_features);
    list.push(
      figure(
        "Features",
        part,
        "Active features on this prompt, and how many of them the graph expands, before pruning.",
      ),
    );
  }
  const linkText =
    hasNumber(extra.n_edges) && extra.n_edges > links.n
      ? `${formatCount(links.n)} / ${formatCount(extra.n_edges)}`
      : formatCount(links.n);
  list.push(figure("Nodes", formatCount(nodes.length), "Nodes in this file, after pruning."));
  list.push(
    figure("Links", linkText, "Links in this file, after pruning; a second number is how many the pruned graph has."),
  );
  return list;
}

/** Targets with their probabilities: from the extras, else from the nodes. */
function targetsOf(graph) {
  const nodes = graph.nodes.filter((node) => node.kind === "logit").sort((a, b) => (b.prob ?? 0) - (a.prob ?? 0));
  return nodes.map((node) => ({ node, prob: node.prob > 0 ? node.prob : null }));
}

function targetElement(graph, target, actions) {
  const { node, prob } = target;
  const bar = html("span", { className: "prob-bar", "aria-hidden": "true" });
  bar.style.setProperty("--part", `${(100 * clamp(prob ?? 0, 0, 1)).toFixed(1)}%`);
  return html(
    "button",
    { type: "button", className: "target", onclick: () => actions.select(node.key), title: "Show this target" },
    node.token === null ? html("bdi", { dir: "auto" }, nodeName(node)) : tokenElement(node.token),
    html("span", { className: "prob" }, prob === null ? "" : formatShare(prob), prob === null ? null : bar),
  );
}

function promptElement(graph, actions) {
  const byPos = new Map(graph.nodes.filter((node) => node.kind === "token").map((node) => [node.pos, node]));
  return html(
    "div",
    { className: "prompt", role: "list", "aria-label": "Prompt" },
    graph.tokens.map((token, t) => {
      const node = byPos.get(t);
      const chip = html(
        "button",
        { type: "button", className: "chip", title: `position ${t}`, disabled: !node },
        tokenElement(token),
      );
      if (node) {
        chip.addEventListener("click", () => actions.select(node.key));
        chip.addEventListener("mouseenter", () => actions.point(node));
        chip.addEventListener("mouseleave", () => actions.point(null));
      }
      return html("span", { role: "listitem" }, chip);
    }),
  );
}

function fillHeader(graph, root, actions) {
  const { metadata, extra } = graph;
  const model = String(extra.model ?? metadata.scan ?? "");
  const dictionary =
    extra.transcoders ?? (Array.isArray(metadata.transcoder_list) ? metadata.transcoder_list.join(", ") : "");
  root
    .querySelector(".model")
    .replaceChildren(
      html("bdi", { dir: "auto" }, visible(model)),
      dictionary
        ? html("span", { className: "dim" }, " with ", html("bdi", { dir: "auto" }, visible(String(dictionary))))
        : "",
    );
  root.querySelector(".prompt-line").replaceChildren(promptElement(graph, actions));
  const targets = targetsOf(graph);
  root
    .querySelector(".targets")
    .replaceChildren(
      ...targets.slice(0, 5).map((target) => targetElement(graph, target, actions)),
      targets.length > 5 ? html("span", { className: "dim" }, `+${targets.length - 5}`) : "",
    );
  root.querySelector(".figures").replaceChildren(...summaryFigures(graph));
  root.querySelector(".notices").replaceChildren(...graph.notices.map((text) => html("p", {}, text)));
  document.title = `${shorten(visible(metadata.prompt ?? metadata.slug ?? ""), 70)} · tcircuits`;
}
