// The graph file as nodes (objects, by index) and links (typed arrays), whatever tool wrote it.

/** feature, error, token, logit, bias or unexpanded. */
function kindOf(raw) {
  const type = String(raw.feature_type ?? "").toLowerCase();
  if (raw.kind === "unexpanded" || type.includes("unexpanded")) return "unexpanded";
  if (type.includes("error")) return "error";
  if (type === "embedding") return "token";
  if (type === "logit") return "logit";
  if (type === "bias") return "bias";
  return "feature";
}

const KIND_NAMES = {
  feature: "Feature",
  error: "Reconstruction error",
  token: "Token embedding",
  logit: "Target",
  bias: "Bias",
  unexpanded: "Unexpanded features",
};

/** Index of a feature in its dictionary: from the node id `{layer}_{feature}_{pos}`, else from the Cantor pair in `feature`. */
function featureIndex(raw) {
  const parts = /^(\d+)_(\d+)_(\d+)$/.exec(raw.node_id);
  if (parts && Number(parts[1]) === Number(raw.layer)) return Number(parts[2]);
  const z = Number(raw.feature);
  if (!Number.isInteger(z) || z < 0) return null;
  const w = Math.floor((Math.sqrt(8 * z + 1) - 1) / 2);
  const second = z - (w * (w + 1)) / 2;
  return w - second === Number(raw.layer) ? second : z;
}

/** The token and probability inside a target's label, `Output "…" (p=…)`; null where the label has another form. */
function parseTarget(label) {
  const match = /^\s*(?:Output|Target)?\s*"([\s\S]*)"\s*\(p=([-+\d.eE]+)\)\s*$/.exec(label);
  return match ? { token: match[1], prob: Number(match[2]) } : null;
}

function number(x) {
  return typeof x === "number" && Number.isFinite(x) ? x : null;
}

function readNode(raw, index, tokens) {
  const kind = kindOf(raw);
  const layer = Number.parseInt(raw.layer, 10);
  const label = typeof raw.clerp === "string" ? raw.clerp : "";
  const node = {
    index,
    raw,
    kind,
    key: raw.node_id,
    layer: kind === "token" ? -1 : Number.isFinite(layer) ? layer : 0,
    pos: Math.max(0, Math.trunc(Number(raw.ctx_idx)) || 0),
    label,
    token: null,
    prob: null,
    row: 0,
    score: 0,
    influence: number(raw.influence),
    activation: number(raw.activation),
    bias: number(raw.bias),
    unexpanded: number(raw.unexpanded),
  };
  if (kind === "token") node.token = tokens[node.pos] ?? label;
  if (kind === "logit") {
    const target = parseTarget(label);
    node.token = target ? target.token : null;
    node.prob = number(raw.token_prob) ?? (target ? target.prob : null);
  }
  if (kind === "feature") node.feature = featureIndex(raw);
  return node;
}

/** Links by id may be ambiguous (old error ids equal ids of layer-0 features): errors take no input, sources lie below. */
function resolve(nodes, candidates, target, seen) {
  if (candidates.length === 1) return candidates[0];
  if (target === null) return candidates.find((i) => ["feature", "logit"].includes(nodes[i].kind)) ?? candidates[0];
  const below = candidates.filter((i) => nodes[i].row < nodes[target].row);
  const among = below.length ? below : candidates;
  const pair = `${among[0]}>${target}`;
  const count = seen.get(pair) ?? 0;
  seen.set(pair, count + 1);
  return among[Math.min(count, among.length - 1)];
}

function readLinks(file, nodes, byId) {
  const links = { source: [], target: [], weight: [] };
  const seen = new Map();
  let dropped = 0;
  for (const link of file.links) {
    const sources = byId.get(link.source);
    const targets = byId.get(link.target);
    const weight = number(link.weight);
    const target = targets ? resolve(nodes, targets, null, seen) : null;
    const source = sources && target !== null ? resolve(nodes, sources, target, seen) : null;
    if (source === null || target === null || source === target || weight === null) {
      dropped += 1;
      continue;
    }
    links.source.push(source);
    links.target.push(target);
    links.weight.push(weight);
  }
  const typed = {
    n: links.source.length,
    source: Int32Array.from(links.source),
    target: Int32Array.from(links.target),
    weight: Float64Array.from(links.weight),
  };
  return [typed, dropped];
}

/** For each node, its links by falling size, as one flat array and the start of each node's part. */
function adjacency(n, links, end) {
  const start = new Int32Array(n + 1);
  for (let e = 0; e < links.n; e++) start[links[end][e] + 1] += 1;
  for (let i = 0; i < n; i++) start[i + 1] += start[i];
  const order = Array.from({ length: links.n }, (_, e) => e).sort(
    (a, b) => Math.abs(links.weight[b]) - Math.abs(links.weight[a]) || a - b,
  );
  const at = start.slice();
  const list = new Int32Array(links.n);
  for (const e of order) list[at[links[end][e]]++] = e;
  return (i) => list.subarray(start[i], start[i + 1]);
}

/** Reads the file; `notices` are sentences about anything that a reader should know. */
function readGraph(file) {
  const metadata = file.metadata;
  const tokens = Array.isArray(metadata.prompt_tokens) ? metadata.prompt_tokens.map(String) : [];
  const nodes = file.nodes.map((raw, i) => readNode(raw, i, tokens));
  const extra = metadata.tcircuits ?? {};
  const hidden = nodes.filter((node) => node.kind !== "logit");
  const nLayers = Math.max(1, number(extra.n_layers) ?? 0, ...hidden.map((node) => node.layer + 1));
  const byId = new Map();
  for (const node of nodes) {
    node.row = node.kind === "token" ? 0 : node.kind === "logit" ? nLayers + 1 : node.layer + 1;
    const same = byId.get(node.key);
    if (same) {
      same.push(node.index);
      node.key = `${node.key}#${same.length}`;
    } else byId.set(node.key, [node.index]);
  }
  const byKey = new Map(nodes.map((node) => [node.key, node]));
  const [links, dropped] = readLinks(file, nodes, byId);
  const notices = [];
  const shared = [...byId.values()].filter((same) => same.length > 1).length;
  if (shared)
    notices.push(
      `${shared} node ${shared === 1 ? "id is" : "ids are"} used twice in this file; links of such nodes are matched by layer and order.`,
    );
  if (dropped)
    notices.push(
      `${dropped} ${dropped === 1 ? "link names" : "links name"} no pair of nodes of this file and ${dropped === 1 ? "is" : "are"} left out.`,
    );
  const graph = {
    file,
    metadata,
    extra,
    tokens,
    nodes,
    links,
    byKey,
    byId,
    notices,
    nLayers,
    nRows: nLayers + 2,
    nTokens: nodes.reduce((n, node) => Math.max(n, node.pos + 1), Math.max(1, tokens.length)),
    inputs: adjacency(nodes.length, links, "target"),
    outputs: adjacency(nodes.length, links, "source"),
  };
  addInfluence(graph);
  return graph;
}

/** What a node is called: its label, else what is known about it. */
function nodeName(node, labels = {}) {
  const own = labels[node.key];
  if (own) return visible(own);
  if (node.kind === "token") return tokenText(node.token);
  if (node.kind === "logit") return node.token === null ? visible(node.label || "target") : tokenText(node.token);
  if (node.label) return visible(node.label);
  if (node.kind === "feature") return node.feature === null ? "feature" : `feature ${node.feature}`;
  return node.kind === "error" ? "error" : KIND_NAMES[node.kind].toLowerCase();
}

/** Where a node is: `L3 · pos 5`, with the token apart. */
function nodePlace(graph, node) {
  const where = node.kind === "token" ? "input" : node.kind === "logit" ? "output" : `layer ${node.layer}`;
  return { where, pos: node.pos, token: graph.tokens[node.pos] ?? "" };
}

/** The tokens of a node's extras, `[[token, value], ...]`; anything else is left out. */
function vocabulary(list) {
  if (!Array.isArray(list)) return [];
  return list
    .map((item) => (Array.isArray(item) ? [String(item[0]), number(item[1])] : [String(item), null]))
    .slice(0, 10);
}
