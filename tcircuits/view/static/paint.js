// Colours and shapes, the same on the screen and in exported pictures.

const LIGHT = {
  paper: "#ffffff",
  ink: "#1b1f24",
  muted: "#6a7280",
  hair: "#e9ebee",
  feature: "#8f98a5",
  token: "#3f4650",
  error: "#a7aeb8",
  box: "#ffffff",
  boxLine: "#9aa2ad",
  group: "#f4f5f7",
  positive: "#2166ac",
  negative: "#cc5a12",
  mark: "#1b1f24",
};
const DARK = {
  paper: "#14171a",
  ink: "#e9ebee",
  muted: "#979faa",
  hair: "#262a2f",
  feature: "#78818d",
  token: "#c3c9d1",
  error: "#69717c",
  box: "#1b1f23",
  boxLine: "#5c6570",
  group: "#23282d",
  positive: "#6db3f2",
  negative: "#f29559",
  mark: "#ffffff",
};
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

function currentPalette() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? DARK : LIGHT;
}

function signColour(weight, palette) {
  return weight < 0 ? palette.negative : palette.positive;
}

/** The outline of a node about the origin: circles, squares for tokens and targets, diamonds for errors, triangles. */
function shapePath(kind, r) {
  if (kind === "error") return `M0 ${-r * 1.15}L${r * 1.15} 0L0 ${r * 1.15}L${-r * 1.15} 0Z`;
  if (kind === "token") return `M${-r * 0.9} ${-r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}Z`;
  if (kind === "logit") return `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}Z`;
  if (kind === "bias" || kind === "unexpanded") return `M0 ${-r * 1.1}L${r * 1.1} ${r * 0.85}H${-r * 1.1}Z`;
  return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
}

const HOLLOW = new Set(["error", "bias", "unexpanded"]);

/** Radius by the node's part of the influence, so that what matters is seen first. */
function nodeRadius(graph, node, radius) {
  if (node.kind === "token" || node.kind === "logit") return Math.min(radius, 4.6);
  return radius * (0.62 + 0.38 * Math.sqrt(Math.min(1, node.score / graph.topScore)));
}

/**
 * Fill, line and opacity of a node. `link` is the weight between it and the selected node relative to the strongest
 * (signed, null without a link); `focus` is true while some node is selected.
 */
function nodePaint(node, palette, { link = null, focus = false, selected = false, matches = true, pinned = false }) {
  const hollow = HOLLOW.has(node.kind);
  const base =
    node.kind === "token" || node.kind === "logit" ? palette.token : hollow ? palette.error : palette.feature;
  const linked = link !== null && !selected;
  const colour = linked ? signColour(link, palette) : selected ? palette.mark : base;
  const faded = !matches ? 0.12 : linked ? 0.45 + 0.55 * Math.sqrt(Math.abs(link)) : focus && !selected ? 0.28 : 1;
  const ring = pinned || selected;
  return {
    fill: hollow ? palette.paper : colour,
    stroke: hollow ? colour : ring ? palette.mark : palette.paper,
    "stroke-width": ring ? 1.6 : hollow ? 1.2 : 0.6,
    opacity: faded,
  };
}

/** A link from (x0, y0) below to (x1, y1) above, leaving and arriving upright. */
function linkPath(x0, y0, x1, y1) {
  const bend = (y0 - y1) * 0.45;
  return `M${x0.toFixed(1)} ${y0.toFixed(1)}C${x0.toFixed(1)} ${(y0 - bend).toFixed(1)} ${x1.toFixed(1)} ${(y1 + bend).toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
}

/** Width and opacity in one of LEVELS steps; few steps, so that a canvas draws each with one stroke. */
const LEVELS = 6;

function linkLevel(strength) {
  return Math.min(LEVELS - 1, Math.floor(Math.sqrt(clamp(strength, 0, 1)) * LEVELS));
}

function linkPaint(level, crowd) {
  const at = level / (LEVELS - 1);
  // Many links on one page need lighter ink.
  const ink = clamp(1.3 - 0.22 * Math.log10(Math.max(10, crowd)), 0.4, 1);
  return { width: 0.6 + 1.9 * at, opacity: Math.min(1, ink * (0.2 + 0.66 * at)) };
}
