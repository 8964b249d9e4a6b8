// The link graph on the page: layers upward, tokens across. Links on canvas, nodes as SVG elements.

function sizeCanvas(canvas, width, height) {
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

/** Strokes links in few passes: weak ones first, one stroke per sign and level. */
function strokeLinks(context, graph, layout, list, strength, palette) {
  const buckets = Array.from({ length: 2 * LEVELS }, () => []);
  for (const e of list) buckets[2 * linkLevel(strength(e)) + (graph.links.weight[e] < 0 ? 1 : 0)].push(e);
  buckets.forEach((bucket, k) => {
    const paint = linkPaint(k >> 1, list.length);
    context.beginPath();
    for (const e of bucket) {
      const [s, t] = [graph.links.source[e], graph.links.target[e]];
      const bend = (layout.y[s] - layout.y[t]) * 0.45;
      context.moveTo(layout.x[s], layout.y[s]);
      context.bezierCurveTo(layout.x[s], layout.y[s] - bend, layout.x[t], layout.y[t] + bend, layout.x[t], layout.y[t]);
    }
    context.strokeStyle = k % 2 ? palette.negative : palette.positive;
    context.globalAlpha = paint.opacity;
    context.lineWidth = paint.width;
    context.stroke();
  });
  context.globalAlpha = 1;
}

/** The view on the page. `actions` are the page's; the view keeps what it last drew. */
class LinkGraph {
  constructor(graph, root, actions) {
    Object.assign(this, { graph, actions, zoom: 1, hovered: null, focusIndex: null, elements: new Map() });
    this.scroller = root.querySelector(".plot-scroll");
    this.base = root.querySelector("canvas.base");
    this.overlay = root.querySelector("canvas.overlay");
    this.svg = root.querySelector("svg.nodes");
    this.axis = root.querySelector("svg.axis");
    this.tip = root.querySelector(".tip");
    const measure = document.createElement("canvas").getContext("2d");
    measure.font = `11px ${FONT}`;
    this.labelWidths = Array.from(
      { length: graph.nTokens },
      (_, t) => measure.measureText(shorten(tokenText(graph.tokens[t] ?? ""), 18)).width,
    );
    this.listen();
  }

  get size() {
    return {
      width: Math.max(200, this.scroller.clientWidth - 48),
      height: Math.max(200, this.scroller.clientHeight - 2),
    };
  }

  /** Draws all; called after the thresholds, the size or the colours change. */
  draw(state) {
    this.state = state;
    this.palette = currentPalette();
    this.now = picture(this.graph, state, this);
    const { layout, links } = this.now;
    const top = (links.length && this.graph.links.score[links[0]]) || 1;
    this.baseContext = sizeCanvas(this.base, layout.width, layout.height);
    this.overlayContext = sizeCanvas(this.overlay, layout.width, layout.height);
    strokeLinks(this.baseContext, this.graph, layout, links, (e) => this.graph.links.score[e] / top, this.palette);
    const [frame, axis] = frameOf(this.graph, layout, this.palette);
    for (const [element, width] of [
      [this.svg, layout.width],
      [this.axis, 48],
    ]) {
      element.setAttribute("width", width);
      element.setAttribute("height", layout.height);
    }
    this.axis.replaceChildren(axis);
    const nodes = svg("g", { class: "node-layer" });
    this.elements = new Map();
    // The strongest of a cell stand first in it and are drawn last, on top.
    for (const { node, x, y } of [...layout.nodes].reverse()) nodes.append(this.nodeElement(node, x, y));
    this.svg.replaceChildren(frame, targetLabels(this.graph, layout, this.palette), nodes, this.moreMarks());
    this.grid = hitGrid(layout.nodes);
    this.setRovingStop();
    this.paint(state);
    // The targets stand at the last token: begin there when the picture is wider than the window.
    if (!this.begun) this.scroller.scrollLeft = this.scroller.scrollWidth;
    this.begun = true;
  }

  nodeElement(node, x, y) {
    const r = nodeRadius(this.graph, node, this.now.layout.radius);
    const element = svg("path", {
      class: `node ${node.kind}`,
      d: shapePath(node.kind, r),
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      tabindex: -1,
      role: "button",
      "aria-label": describe(this.graph, node, this.state.labels),
    });
    element.dataset.key = node.key;
    this.elements.set(node.index, element);
    return element;
  }

  moreMarks() {
    const group = svg("g", { "font-size": 8, fill: this.palette.muted });
    for (const mark of this.now.layout.more) {
      const text = svg(
        "text",
        {
          class: "more",
          x: mark.x,
          y: mark.y + 2.8,
          role: "button",
          tabindex: 0,
          "aria-label": `${mark.hidden.length} more nodes in this cell`,
        },
        `+${mark.hidden.length}`,
      );
      text.dataset.count = mark.hidden.length;
      text.addEventListener("click", (event) => {
        event.stopPropagation();
        this.actions.openCell(mark.cell);
      });
      text.addEventListener("keydown", (event) => event.key === "Enter" && this.actions.openCell(mark.cell));
      group.append(text);
    }
    return group;
  }

  /** Colours nodes and draws the links of the selected (else the hovered) node; cheap enough for every mouse move. */
  paint(state) {
    this.state = state;
    const { graph, palette } = this;
    const { layout, shown } = this.now;
    const active = state.selected !== null ? graph.byKey.get(state.selected) : this.hovered;
    let focus = null;
    this.overlayContext.clearRect(0, 0, layout.width, layout.height);
    if (active) {
      const list = focusLinks(graph, state, shown, active.index);
      focus = { index: active.index, weights: neighbourWeights(graph, list, active.index), list };
      if (shown[active.index]) {
        const other = (e) => (graph.links.source[e] === active.index ? graph.links.target[e] : graph.links.source[e]);
        strokeLinks(
          this.overlayContext,
          graph,
          layout,
          list.slice(0, MAX_FOCUS_LINKS),
          (e) => Math.abs(focus.weights.get(other(e))),
          palette,
        );
      }
    }
    this.focus = focus;
    this.base.classList.toggle("faded", Boolean(focus));
    for (const [index, element] of this.elements) {
      const paint = paintOf(graph, state, palette, graph.nodes[index], focus);
      for (const [name, value] of Object.entries(paint)) element.setAttribute(name, value);
      element.setAttribute("aria-pressed", graph.nodes[index].key === state.selected);
    }
  }

  /** The node under or near a point of the picture. */
  nearest(event) {
    const box = this.svg.getBoundingClientRect();
    return this.grid(event.clientX - box.left, event.clientY - box.top, 11);
  }

  hover(node, event) {
    if (node !== this.hovered) {
      this.hovered = node;
      if (this.state.selected === null) this.paint(this.state);
    }
    this.svg.classList.toggle("over-node", Boolean(node));
    if (node && event) this.showTip(node, event.clientX, event.clientY);
    else this.tip.hidden = true;
  }

  showTip(node, clientX, clientY) {
    const place = nodePlace(this.graph, node);
    const weight = this.linkToSelected(node);
    const promotes = vocabulary(node.raw.top_logits).slice(0, 3);
    this.tip.replaceChildren(
      html(
        "div",
        { className: "tip-name" },
        html("bdi", { dir: "auto" }, shorten(nodeName(node, this.state.labels), 60)),
      ),
      html(
        "div",
        { className: "tip-place" },
        `${KIND_NAMES[node.kind]} · ${place.where} · ${place.pos} `,
        tokenElement(place.token),
      ),
      promotes.length
        ? html(
            "div",
            { className: "tip-place" },
            "promotes ",
            ...promotes.flatMap(([token]) => [tokenElement(token), " "]),
          )
        : "",
      weight === null
        ? ""
        : html("div", { className: weight < 0 ? "negative" : "positive" }, `link ${formatNumber(weight, true)}`),
    );
    this.tip.hidden = false;
    const { offsetWidth: w, offsetHeight: h } = this.tip;
    this.tip.style.left = `${clamp(clientX + 14, 4, innerWidth - w - 4)}px`;
    this.tip.style.top = `${clientY + 18 + h > innerHeight ? clientY - h - 10 : clientY + 18}px`;
  }

  linkToSelected(node) {
    const selected = this.graph.byKey.get(this.state.selected);
    if (!selected || selected === node) return null;
    const { links } = this.graph;
    for (const e of this.graph.inputs(selected.index)) if (links.source[e] === node.index) return links.weight[e];
    for (const e of this.graph.outputs(selected.index)) if (links.target[e] === node.index) return links.weight[e];
    return null;
  }

  listen() {
    this.svg.addEventListener("mousemove", (event) => this.hover(this.nearest(event), event));
    this.svg.addEventListener("mouseleave", () => this.hover(null));
    this.svg.addEventListener("click", (event) => {
      const node = this.nearest(event);
      if (node && (event.ctrlKey || event.metaKey || event.shiftKey)) this.actions.togglePin(node.key);
      else this.actions.select(node ? node.key : null);
    });
    this.svg.addEventListener("focusin", (event) => {
      const node = this.graph.byKey.get(event.target.dataset.key);
      if (!node || !event.target.matches(":focus-visible")) return;
      const box = event.target.getBoundingClientRect();
      this.hovered = null;
      this.hover(node, { clientX: box.right, clientY: box.bottom });
    });
    this.svg.addEventListener("focusout", () => this.hover(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    const node = this.graph.byKey.get(event.target.dataset?.key);
    if (!node) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step) this.move(node, ...step);
    else if (event.key === "Enter" || event.key === " ") this.actions.select(node.key);
    else if (event.key === "p") this.actions.togglePin(node.key);
    else return;
    event.preventDefault();
  }

  /** Arrow keys: along the row, or to the nearest node of the next row that has one. */
  move(node, across, up) {
    const { layout } = this.now;
    const [x, y] = [layout.x[node.index], layout.y[node.index]];
    let best = null;
    for (const other of layout.nodes) {
      if (other.node === node) continue;
      const [dx, dy] = [other.x - x, y - other.y];
      if (across ? other.node.row !== node.row || dx * across <= 0 : dy * up <= 0 || other.node.row === node.row)
        continue;
      const far = across ? Math.abs(dx) + 3 * Math.abs(dy) : 6 * Math.abs(dy) + Math.abs(dx);
      if (!best || far < best.far) best = { far, node: other.node };
    }
    if (best) this.focusNode(best.node);
  }

  focusNode(node) {
    this.setRovingStop(node.index);
    this.elements.get(node.index)?.focus({ preventScroll: false });
  }

  /** One node is in the tab order; the arrow keys move on from there. */
  setRovingStop(index = null) {
    const top = this.now.layout.nodes.find(({ node }) => node.kind === "logit") ?? this.now.layout.nodes[0];
    const wanted =
      index ?? (this.state.selected === null ? undefined : this.graph.byKey.get(this.state.selected).index);
    this.elements.get(this.stop)?.setAttribute("tabindex", -1);
    this.stop = wanted !== undefined && this.elements.has(wanted) ? wanted : top?.node.index;
    this.elements.get(this.stop)?.setAttribute("tabindex", 0);
  }
}

/** A function (x, y, reach) -> the nearest placed node within reach, by buckets. */
function hitGrid(placed) {
  const size = 24;
  const buckets = new Map();
  for (const item of placed) {
    const id = `${Math.floor(item.x / size)},${Math.floor(item.y / size)}`;
    if (!buckets.has(id)) buckets.set(id, []);
    buckets.get(id).push(item);
  }
  return (x, y, reach) => {
    let best = null;
    for (let i = -1; i <= 1; i++) {
      for (let j = -1; j <= 1; j++) {
        for (const item of buckets.get(`${Math.floor(x / size) + i},${Math.floor(y / size) + j}`) ?? []) {
          const far = Math.hypot(item.x - x, item.y - y);
          if (far <= reach && (!best || far < best.far)) best = { far, node: item.node };
        }
      }
    }
    return best ? best.node : null;
  };
}
