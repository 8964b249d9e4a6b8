// What the reader chose. It lives in the URL's fragment and in the file's qParams, so both can be sent to someone else.

const LINK_TYPES = ["both", "input", "output"];
const LINK_STEPS = [1, 0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3];
const READABLE_LINKS = 1200;

function parseList(value) {
  if (Array.isArray(value)) return value;
  if (typeof value !== "string" || value.trim() === "") return [];
  try {
    const parsed = JSON.parse(value);
    return Array.isArray(parsed) ? parsed : [];
  } catch {
    return value.split(",");
  }
}

function parseObject(value) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  try {
    const parsed = JSON.parse(value);
    return parsed !== null && typeof parsed === "object" && !Array.isArray(parsed) ? parsed : {};
  } catch {
    return {};
  }
}

function fraction(value, fallback) {
  const x = typeof value === "string" && value.trim() === "" ? NaN : Number(value ?? NaN);
  return Number.isFinite(x) ? clamp(x, 0, 1) : fallback;
}

/** The largest step with few enough links to read. */
function defaultEdgeThreshold(graph) {
  for (const step of LINK_STEPS) {
    let count = 0;
    for (let e = 0; e < graph.links.n; e++) if (graph.links.before[e] < step) count += 1;
    if (count <= READABLE_LINKS) return step;
  }
  return LINK_STEPS.at(-1);
}

/** Keeps what names nodes of this graph; members of a supernode are pinned, and belong to one supernode only. */
function cleaned(graph, state) {
  const known = (key) => typeof key === "string" && graph.byKey.has(key);
  const taken = new Set();
  const groups = [];
  for (const group of state.groups) {
    if (!Array.isArray(group)) continue;
    const [name, ...ids] = group.map(String);
    const members = [...new Set(ids)].filter((key) => known(key) && !taken.has(key));
    for (const key of members) taken.add(key);
    if (members.length) groups.push({ name, members });
  }
  const labels = {};
  for (const [key, label] of Object.entries(state.labels))
    if (known(key) && typeof label === "string") labels[key] = label;
  const places = {};
  for (const [key, at] of Object.entries(state.places)) {
    if (Array.isArray(at) && at.length === 2 && at.every((x) => typeof x === "number" && Number.isFinite(x))) {
      places[key] = at.map((x) => clamp(x, 0, 1));
    }
  }
  return {
    ...state,
    groups,
    labels,
    places,
    pinned: [...new Set([...state.pinned.filter(known), ...taken])],
    selected: known(state.selected) ? state.selected : null,
    linkType: LINK_TYPES.includes(state.linkType) ? state.linkType : "both",
  };
}

/** Labels in `clerps`, which other viewers save as pairs of a node id (or feature number) and a text. */
function savedLabels(graph, value) {
  const labels = {};
  for (const item of parseList(value)) {
    if (!Array.isArray(item) || item.length < 2) continue;
    for (const node of graph.nodes) {
      if (node.key === String(item[0]) || (node.kind === "feature" && String(node.raw.feature) === String(item[0]))) {
        labels[node.key] = String(item[1]);
      }
    }
  }
  return labels;
}

function stateFromFile(graph) {
  const q = graph.file.qParams ?? {};
  const own = parseObject(q.tcircuits ?? {});
  return cleaned(graph, {
    node: fraction(q.pruningThreshold, fraction(graph.metadata.node_threshold, 1)),
    edge: fraction(own.edgeThreshold, defaultEdgeThreshold(graph)),
    selected: typeof q.clickedId === "string" ? q.clickedId : null,
    pinned: parseList(q.pinnedIds).map(String),
    groups: parseList(q.supernodes),
    linkType: q.linkType ?? "both",
    labels: { ...savedLabels(graph, q.clerps), ...parseObject(own.labels ?? {}) },
    places: parseObject(own.places ?? {}),
    errors: own.errors !== false,
    query: "",
  });
}

/** The state in a URL's fragment, over `base`. */
function stateFromHash(graph, hash, base) {
  const p = new URLSearchParams(hash.replace(/^#/, ""));
  const get = (name, read, otherwise) => (p.has(name) ? read(p.get(name)) : otherwise);
  const groupLists = base.groups.map((group) => [group.name, ...group.members]);
  return cleaned(graph, {
    node: get("nodes", (v) => fraction(v, base.node), base.node),
    edge: get("links", (v) => fraction(v, base.edge), base.edge),
    selected: get("selected", (v) => v || null, base.selected),
    pinned: get("pinned", parseList, base.pinned),
    groups: get("groups", parseList, groupLists),
    linkType: get("type", String, base.linkType),
    labels: get("labels", parseObject, base.labels),
    places: get("places", parseObject, base.places),
    errors: get("errors", (v) => v !== "0", base.errors),
    query: get("find", String, base.query),
  });
}

/** The fragment that says how `state` differs from the file's own. */
function hashOf(state, base) {
  const p = new URLSearchParams();
  const groups = (s) => JSON.stringify(s.groups.map((group) => [group.name, ...group.members]));
  const put = (name, read) => {
    if (read(state) !== read(base)) p.set(name, read(state));
  };
  put("nodes", (s) => String(s.node));
  put("links", (s) => String(s.edge));
  put("selected", (s) => s.selected ?? "");
  put("pinned", (s) => JSON.stringify(s.pinned));
  put("groups", groups);
  put("type", (s) => s.linkType);
  put("labels", (s) => JSON.stringify(s.labels));
  put("places", (s) => JSON.stringify(s.places));
  put("errors", (s) => (s.errors ? "1" : "0"));
  put("find", (s) => s.query);
  const text = p.toString();
  return text ? `#${text}` : "";
}

/** The file with the state in its qParams, for this page and for other viewers. */
function fileWithState(graph, state) {
  const id = (key) => graph.byKey.get(key).raw.node_id;
  const file = structuredClone(graph.file);
  file.qParams = {
    ...file.qParams,
    pinnedIds: state.pinned.map(id),
    supernodes: state.groups.map((group) => [group.name, ...group.members.map(id)]),
    linkType: state.linkType,
    clickedId: state.selected === null ? "" : id(state.selected),
    pruningThreshold: state.node,
    sg_pos: file.qParams?.sg_pos ?? "",
    tcircuits: { edgeThreshold: state.edge, errors: state.errors, labels: state.labels, places: state.places },
  };
  for (const [key, label] of Object.entries(state.labels)) {
    const { index, kind } = graph.byKey.get(key);
    // Other viewers read a target's probability out of its label, so that one stays.
    if (kind !== "logit") file.nodes[index].clerp = label;
  }
  return file;
}
