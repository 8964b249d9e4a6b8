// How much of the targets' input reaches each node and link: one pass from the top, since sources lie below targets.
//
//   share(s -> t) = |w| / sum of |w| into t,   score(s) = sum over t of score(t) share(s -> t),
//
// with the target nodes' probabilities at the top (1 where a file gives none). A link's score is score(t) share(s -> t);
// links are ranked by it, and `before` is the part of the total that stronger links hold.

function startingScores(graph) {
  const { nodes } = graph;
  const start = new Float64Array(nodes.length);
  let tops = nodes.filter((node) => node.kind === "logit");
  if (!tops.length) tops = nodes.filter((node) => !graph.outputs(node.index).length && graph.inputs(node.index).length);
  const known = tops.some((node) => node.prob > 0);
  for (const node of tops) start[node.index] = node.prob ?? 1;
  if (!known) for (const node of tops) start[node.index] = 1;
  return start;
}

/** Nodes ordered so that each comes after everything that it feeds; nodes on a cycle (a broken file) come last. */
function topDown(graph) {
  const { nodes, links } = graph;
  const waiting = new Int32Array(nodes.length);
  for (let e = 0; e < links.n; e++) waiting[links.source[e]] += 1;
  const order = nodes.filter((node) => waiting[node.index] === 0).map((node) => node.index);
  const done = new Uint8Array(nodes.length);
  for (let k = 0; k < order.length; k++) {
    done[order[k]] = 1;
    for (const e of graph.inputs(order[k])) {
      waiting[links.source[e]] -= 1;
      if (waiting[links.source[e]] === 0) order.push(links.source[e]);
    }
  }
  for (let i = 0; i < nodes.length; i++) if (!done[i]) order.push(i);
  return order;
}

function addInfluence(graph) {
  const { nodes, links } = graph;
  const score = startingScores(graph);
  links.share = new Float64Array(links.n);
  links.score = new Float64Array(links.n);
  graph.order = topDown(graph);
  for (const i of graph.order) {
    const inputs = graph.inputs(i);
    let total = 0;
    for (const e of inputs) total += Math.abs(links.weight[e]);
    if (total === 0) continue;
    for (const e of inputs) {
      links.share[e] = Math.abs(links.weight[e]) / total;
      links.score[e] = score[i] * links.share[e];
      score[links.source[e]] += links.score[e];
    }
  }
  for (const node of nodes) node.score = score[node.index];
  graph.totalStart = startingScores(graph).reduce((a, b) => a + b, 0) || 1;
  graph.topScore = score.reduce((a, b) => Math.max(a, b), 1e-300);
  rankLinks(links);
}

function rankLinks(links) {
  links.order = Int32Array.from(
    Array.from({ length: links.n }, (_, e) => e).sort((a, b) => links.score[b] - links.score[a] || a - b),
  );
  links.before = new Float64Array(links.n);
  let sum = 0;
  for (const e of links.order) {
    links.before[e] = sum;
    sum += links.score[e];
  }
  if (sum > 0) for (let e = 0; e < links.n; e++) links.before[e] /= sum;
}

/** The path down from `top` with the largest product of shares that ends in a token; all its nodes, top first. */
function strongestPath(graph, top) {
  const { nodes, links } = graph;
  const best = new Float64Array(nodes.length);
  const via = new Int32Array(nodes.length).fill(-1);
  best[top] = 1;
  for (const i of graph.order) {
    if (best[i] === 0) continue;
    for (const e of graph.inputs(i)) {
      const s = links.source[e];
      if (best[i] * links.share[e] > best[s]) {
        best[s] = best[i] * links.share[e];
        via[s] = i;
      }
    }
  }
  let end = -1;
  for (const node of nodes) if (node.kind === "token" && best[node.index] > (end < 0 ? 0 : best[end])) end = node.index;
  const path = [];
  for (let i = end; i >= 0 && path.length < nodes.length; i = via[i]) path.push(i);
  return path.reverse();
}
