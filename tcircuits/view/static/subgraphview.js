// The panel of the pinned subgraph: marking, naming, dragging.

class Subgraph {
  constructor(graph, root, actions) {
    Object.assign(this, { graph, root, actions, marked: new Set() });
    this.stage = root.querySelector(".sub-stage");
    this.bar = root.querySelector(".sub-bar");
    this.hint = root.querySelector(".sub-hint");
  }

  draw(state) {
    this.state = state;
    const boxes = boxesOf(this.graph, state);
    for (const id of this.marked) if (!boxes.some((box) => box.id === id)) this.marked.delete(id);
    this.root.classList.toggle("filled", boxes.length > 0);
    this.boxes = boxes;
    this.links = boxLinks(this.graph, boxes);
    this.drawBar(state, boxes);
    this.drawStage();
  }

  /** The boxes alone, as wide as there is room: a name that is being typed in the bar stays as it is. */
  drawStage() {
    const { boxes, state } = this;
    if (!boxes.length) {
      this.stage.replaceChildren();
      this.root.style.flexBasis = "";
      return;
    }
    // The panel is as high as its rows need, up to half of the room.
    const levels = new Set(boxes.map((box) => Math.round(box.row))).size;
    this.root.style.flexBasis = `${clamp(levels * 66 + 50, 150, this.root.parentElement.clientHeight * 0.5)}px`;
    this.size = placeBoxes(this.graph, boxes, state, {
      width: this.stage.clientWidth - 2,
      height: this.stage.clientHeight - 4,
    });
    const picture = svg("svg", {
      width: this.size.width,
      height: this.size.height,
      role: "group",
      "aria-label": "Pinned subgraph",
      "font-family": FONT,
    });
    picture.append(...drawSubgraph(this.graph, boxes, this.links, currentPalette(), this.marked, state.selected));
    for (const element of picture.querySelectorAll(".box"))
      this.listen(
        element,
        boxes.find((box) => box.id === element.dataset.id),
      );
    keepFocus(this.stage, () => this.stage.replaceChildren(picture));
  }

  drawBar(state, boxes) {
    const { actions } = this;
    const button = (text, title, onclick, disabled = false) =>
      html("button", { type: "button", title, onclick, disabled, "data-focus": text.split(" ")[0] }, text);
    const marked = [...this.marked];
    const groups = boxes.filter((box) => box.group && this.marked.has(box.id));
    const items = [
      button(
        "Pin strongest path",
        "Pins the strongest path from the selected node (else the first target) down to a token",
        () => actions.pinPath(),
      ),
    ];
    if (boxes.length) {
      items.push(
        button(
          `Group${marked.length ? ` ${marked.length}` : ""}`,
          "Joins the marked boxes into a supernode (mark boxes with Shift- or Ctrl-click, or Space)",
          () => actions.group(this.membersOf(marked)),
          this.membersOf(marked).length < 2,
        ),
        groups.length === 1 ? this.nameInput(groups[0]) : "",
        groups.length
          ? button("Ungroup", "Dissolves the marked supernodes", () =>
              actions.ungroup(groups.map((box) => state.groups.indexOf(box.group))),
            )
          : "",
        marked.length
          ? button("Unpin marked", "Takes the marked boxes out", () => actions.unpin(this.membersOf(marked)))
          : "",
        button("Clear", "Unpins everything", () => actions.unpin(state.pinned)),
        button("SVG", "Saves the subgraph as a picture", () => actions.exportSubgraph()),
      );
    }
    keepFocus(this.bar, () => this.bar.replaceChildren(...items.filter(Boolean)));
  }

  nameInput(box) {
    return html("input", {
      type: "text",
      className: "group-name",
      "data-focus": "name",
      value: box.group.name,
      dir: "auto",
      "aria-label": "Name of the supernode",
      maxLength: 200,
      onchange: (event) => this.actions.renameGroup(this.state.groups.indexOf(box.group), event.target.value),
    });
  }

  membersOf(ids) {
    return this.boxes.filter((box) => ids.includes(box.id)).flatMap((box) => box.members.map((node) => node.key));
  }

  toggleMark(box) {
    if (!this.marked.delete(box.id)) this.marked.add(box.id);
    this.draw(this.state);
  }

  listen(element, box) {
    let drag = null;
    element.addEventListener("pointerdown", (event) => {
      if (event.button === 0) drag = { x: event.clientX, y: event.clientY, moved: false };
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      drag.moved ||= Math.hypot(dx, dy) > 4;
      if (drag.moved) element.setAttribute("transform", `translate(${box.x + dx} ${box.y + dy})`);
    });
    element.addEventListener("pointerup", (event) => {
      const was = drag;
      drag = null;
      if (!was) return;
      if (was.moved) this.moveBox(box, event.clientX - was.x, event.clientY - was.y);
      else if (event.shiftKey || event.ctrlKey || event.metaKey) this.toggleMark(box);
      else this.clicked(box);
    });
    element.addEventListener("pointercancel", () => (drag = null));
    element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12] }[event.key];
      if (event.key === " ") this.toggleMark(box);
      else if (event.key === "Enter") this.clicked(box);
      else if (event.key === "Delete" || event.key === "Backspace")
        this.actions.unpin(box.members.map((node) => node.key));
      else if (step) this.moveBox(box, ...step);
      else return;
      event.preventDefault();
    });
  }

  /** A click shows a node; on a supernode it marks the box and so offers its name for editing. */
  clicked(box) {
    if (box.group) {
      this.marked = new Set(this.marked.has(box.id) && this.marked.size === 1 ? [] : [box.id]);
      this.draw(this.state);
    } else this.actions.select(box.members[0].key);
  }

  moveBox(box, dx, dy) {
    this.actions.place(box.id, [
      clamp((box.x + dx) / this.size.width, 0, 1),
      clamp((box.y + dy) / this.size.height, 0, 1),
    ]);
  }
}
