// The page: reads the file, keeps the state, connects the parts.

const graph = readGraph(JSON.parse(document.getElementById("graph-json").textContent));
const page = document.getElementById("page");
const base = stateFromFile(graph);
let state = stateFromHash(graph, location.hash, base);
let openCell = null;
let linkGraph;
let subgraph;
let saving = 0;

/** Writes the state to the URL; where that is not allowed (a frame without an address) it stays in memory. */
function saveHash() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    const hash = hashOf(state, base);
    if (hash === location.hash) return;
    try {
      history.replaceState(null, "", hash || location.pathname + location.search);
    } catch {
      page.classList.add("no-address");
    }
  }, 60);
}

/** Changes the state and redraws what depends on it. `what`: all, paint (colours only) or detail. */
function update(change, what = "all") {
  state = cleaned(graph, { ...state, groups: state.groups.map((group) => [group.name, ...group.members]), ...change });
  if (what === "all") linkGraph.draw(state);
  else linkGraph.paint(state);
  if (what !== "detail") subgraph.draw(state);
  drawDetail();
  drawControls();
  saveHash();
}

function drawDetail() {
  const panel = page.querySelector(".detail");
  const top = panel.scrollTop;
  const same = panel.dataset.key === (state.selected ?? "");
  keepFocus(panel, () =>
    panel.replaceChildren(...detailContent(graph, state, linkGraph, openCell, actions).filter(Boolean)),
  );
  panel.dataset.key = state.selected ?? "";
  panel.scrollTop = same ? top : 0;
}

const groupLists = () => state.groups.map((group) => [group.name, ...group.members]);

const actions = {
  select(key) {
    openCell = null;
    const inOverflow =
      key !== null &&
      linkGraph.now.shown[graph.byKey.get(key)?.index] &&
      !linkGraph.elements.has(graph.byKey.get(key).index);
    update({ selected: key }, inOverflow ? "all" : "paint");
  },
  togglePin(key) {
    if (state.pinned.includes(key)) return actions.unpin([key]);
    return update({ pinned: [...state.pinned, key] }, "paint");
  },
  unpin(keys) {
    const gone = new Set(keys);
    update(
      {
        pinned: state.pinned.filter((key) => !gone.has(key)),
        groups: groupLists()
          .map(([name, ...members]) => [name, ...members.filter((key) => !gone.has(key))])
          .filter((group) => group.length > 1),
      },
      "paint",
    );
  },
  pinPath() {
    const start = state.selected ?? targetsOf(graph)[0]?.node.key ?? null;
    if (start === null) return;
    const path = strongestPath(graph, graph.byKey.get(start).index).map((i) => graph.nodes[i].key);
    update({ pinned: [...new Set([...state.pinned, ...path])] }, "paint");
  },
  group(keys) {
    const joined = new Set(keys);
    const rest = groupLists()
      .map(([name, ...members]) => [name, ...members.filter((key) => !joined.has(key))])
      .filter((group) => group.length > 1);
    const names = keys.map((key) => nodeName(graph.byKey.get(key), state.labels));
    const index = rest.length;
    update({ groups: [...rest, [shorten(names.slice(0, 2).join(" + "), 30), ...keys]] }, "paint");
    subgraph.marked = new Set([`group:${index}`]);
    subgraph.draw(state);
    subgraph.bar.querySelector(".group-name")?.select();
  },
  renameGroup(index, name) {
    update({ groups: groupLists().map((group, k) => (k === index ? [name, ...group.slice(1)] : group)) }, "paint");
  },
  ungroup(indices) {
    subgraph.marked.clear();
    update({ groups: groupLists().filter((_, k) => !indices.includes(k)) }, "paint");
  },
  setLabel(key, label) {
    const labels = { ...state.labels, [key]: label };
    if (!label) delete labels[key];
    update({ labels }, "all");
  },
  place(id, at) {
    update({ places: { ...state.places, [id]: at } }, "paint");
  },
  point(node) {
    linkGraph.hover(node);
    for (const element of linkGraph.elements.values()) element.classList.remove("pointed");
    if (node) linkGraph.elements.get(node.index)?.classList.add("pointed");
  },
  openCell(cell) {
    openCell = cell;
    state = { ...state, selected: null, query: "" };
    update({}, "paint");
  },
  exportSubgraph() {
    download(fileName(graph, "-subgraph.svg"), "image/svg+xml", subgraphSvg(subgraph, state));
  },
};

const control = (id) => document.getElementById(id);

/** Shows the state in the controls and says what is drawn. */
function drawControls() {
  const { nodeCount, linkCount, links } = linkGraph.now;
  const set = (id, value) => document.activeElement !== control(id) && (control(id).value = value);
  control("node-threshold").value = state.node;
  control("edge-threshold").value = state.edge;
  control("node-value").textContent = formatThreshold(state.node);
  control("edge-value").textContent = formatThreshold(state.edge);
  control("node-count").textContent = `${formatCount(nodeCount)} of ${formatCount(graph.nodes.length)}`;
  control("edge-count").textContent = `${formatCount(linkCount)} of ${formatCount(graph.links.n)}`;
  control("drawn").textContent =
    links.length < linkCount
      ? `The strongest ${formatCount(links.length)} are drawn; select a node to see all of its links.`
      : "";
  control("errors").checked = state.errors;
  set("search", state.query);
  for (const button of page.querySelectorAll("[data-type]"))
    button.setAttribute("aria-pressed", button.dataset.type === state.linkType);
}

function formatThreshold(x) {
  return `${(100 * x).toFixed(1).replace(/\.0$/, "")}%`;
}

/** Runs `work` once per frame, however often it is asked for. */
function eachFrame(work) {
  let waiting = false;
  return (...args) => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work(...args);
    });
  };
}

function zoomBy(factor) {
  linkGraph.zoom = clamp(linkGraph.zoom * factor, 1, 6);
  linkGraph.draw(state);
  drawControls();
}

async function copyLink(button) {
  clearTimeout(saving);
  const address = location.href.split("#")[0] + hashOf(state, base);
  try {
    await navigator.clipboard.writeText(address);
    button.textContent = "Copied";
  } catch {
    button.textContent = "In the address bar";
  }
  setTimeout(() => (button.textContent = "Copy link"), 1500);
}

function listenToControls() {
  const readSliders = eachFrame(() =>
    update({ node: Number(control("node-threshold").value), edge: Number(control("edge-threshold").value) }),
  );
  control("node-threshold").addEventListener("input", readSliders);
  control("edge-threshold").addEventListener("input", readSliders);
  control("search").addEventListener("input", () => {
    openCell = null;
    update({ query: control("search").value, selected: null }, "paint");
  });
  control("errors").addEventListener("change", () => update({ errors: control("errors").checked }));
  for (const button of page.querySelectorAll("[data-type]"))
    button.addEventListener("click", () => update({ linkType: button.dataset.type }, "paint"));
  control("zoom-in").addEventListener("click", () => zoomBy(1.4));
  control("zoom-out").addEventListener("click", () => zoomBy(1 / 1.4));
  control("copy-link").addEventListener("click", (event) => copyLink(event.currentTarget));
  control("export-svg").addEventListener("click", () =>
    download(fileName(graph, ".svg"), "image/svg+xml", graphSvg(linkGraph, state)),
  );
  control("export-json").addEventListener("click", () =>
    download(fileName(graph, ".json"), "application/json", JSON.stringify(fileWithState(graph, state), null, 1)),
  );
  control("help").addEventListener("click", () => control("help-text").showModal());
}

function listenToPage() {
  addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input[type=text], input[type=search]");
    if (event.key === "Escape") {
      if (typing) event.target.blur();
      if (state.selected !== null || state.query || openCell) {
        openCell = null;
        control("search").value = "";
        update({ selected: null, query: "" }, "paint");
      }
    } else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "/") {
      event.preventDefault();
      control("search").focus();
    } else if (event.key === "p" && state.selected !== null && !event.defaultPrevented)
      actions.togglePin(state.selected);
    else if (event.key === "+" || event.key === "=") zoomBy(1.4);
    else if (event.key === "-") zoomBy(1 / 1.4);
    else if (event.key === "?") control("help-text").showModal();
  });
  addEventListener("hashchange", () => {
    state = stateFromHash(graph, location.hash, base);
    update({});
  });
  // Another size changes the drawings only: text fields are left alone, someone may be typing in one.
  const resized = new ResizeObserver(
    eachFrame(() => {
      linkGraph.draw(state);
      subgraph.drawStage();
    }),
  );
  resized.observe(page.querySelector(".plot-scroll"));
  resized.observe(page.querySelector(".sub-stage"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawLegend();
    update({});
  });
}

function drawLegend() {
  const key = legend(currentPalette());
  const picture = svg("svg", { width: key.dataset.width, height: 14, viewBox: `0 -7 ${key.dataset.width} 14` }, key);
  page.querySelector(".legend").replaceChildren(picture);
}

function start() {
  fillHeader(graph, page, actions);
  linkGraph = new LinkGraph(graph, page.querySelector(".plot"), actions);
  subgraph = new Subgraph(graph, page.querySelector(".subgraph"), actions);
  linkGraph.draw(state);
  subgraph.draw(state);
  drawLegend();
  drawDetail();
  drawControls();
  listenToControls();
  listenToPage();
  page.removeAttribute("aria-busy");
}

start();

// What tests and scripts ask for.
window.tcircuits = Object.freeze({
  counts: () => ({
    nodes: linkGraph.now.nodeCount,
    links: linkGraph.now.linkCount,
    drawnNodes: linkGraph.now.layout.nodes.length,
    drawnLinks: linkGraph.now.links.length,
    boxes: subgraph.boxes.length,
    boxLinks: subgraph.links.length,
  }),
  state: () => structuredClone(state),
  select: actions.select,
  togglePin: actions.togglePin,
  file: () => fileWithState(graph, state),
  graphSvg: () => graphSvg(linkGraph, state),
  subgraphSvg: () => subgraphSvg(subgraph, state),
  boxLinks: () =>
    subgraph.links.map(({ source, target, weight, share }) => ({
      source: subgraph.boxes[source].id,
      target: subgraph.boxes[target].id,
      weight,
      share,
    })),
});
