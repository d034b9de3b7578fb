// Boxes over a picture: drawn, dragged and resized by mouse, touch or keyboard, in pixels of the stored picture.

const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [["x0", "y0"], ["x1", "y0"], ["x0", "y1"], ["x1", "y1"]];
const MIN_SIDE = 1;
const TOUCH_PX = 22; // half of what a finger needs

// Characters without a glyph, and those that change the direction, are written out.
export const visible = (text) => String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export class Boxes {
  constructor(stage, item, { changed, defaultClass }) {
    this.item = item;
    this.changed = changed;
    this.defaultClass = defaultClass;
    this.editable = item.kind === "boxes" && !item.clip;
    this.svg = shape("svg", { viewBox: `0 0 ${item.width} ${item.height}`, preserveAspectRatio: "xMidYMid meet", role: "group", "aria-label": "Boxes" });
    stage.append(this.svg);
    this.unit = Math.max(item.width, item.height) / 400;
    if (item.kind === "points") {
      for (const [x, y] of item.answer.points) this.svg.append(shape("circle", { class: "joint", cx: x, cy: y, r: 3 * this.unit }));
      return;
    }
    this.reset(false);
    if (this.editable) this.svg.addEventListener("pointerdown", (event) => this.down(event));
  }

  reset(told = true) {
    this.list = this.item.answer.boxes.map((box) => ({ ...box, from: box }));
    this.removed = 0;
    this.chosen = null;
    this.draw();
    if (told) this.changed();
  }

  load(boxes) {
    const own = this.item.answer.boxes;
    this.list = boxes.map((box) => ({ ...box, from: own.find((each) => same(each, box)) ?? null }));
    this.removed = own.filter((each) => !boxes.some((box) => same(each, box))).length;
    this.draw();
  }

  all() {
    return this.list.map(({ name, x0, y0, x1, y1 }) => ({ name, x0, y0, x1, y1 }));
  }

  edited() {
    return this.editable && (this.removed > 0 || this.list.some((box) => !box.from || !same(box, box.from)));
  }

  onlyAdded() {
    return this.removed === 0 && this.list.every((box) => !box.from || same(box, box.from));
  }

  chosenClass() {
    return this.chosen?.name ?? null;
  }

  setClass(name) {
    if (!this.chosen) return;
    this.chosen.name = name;
    this.draw();
    this.changed();
  }

  addInTheMiddle() {
    if (!this.editable) return;
    const { width, height } = this.item;
    this.add({ x0: 0.4 * width, y0: 0.4 * height, x1: 0.6 * width, y1: 0.6 * height });
  }

  add(corners) {
    const box = { name: this.defaultClass(), ...corners, from: null };
    if (!box.name) return;
    this.list.push(box);
    this.choose(box);
    this.changed();
  }

  remove() {
    if (!this.chosen) return;
    const place = this.list.indexOf(this.chosen);
    this.list.splice(place, 1);
    if (this.chosen.from) this.removed += 1;
    this.chosen = null;
    this.draw();
    this.changed();
  }

  choose(box, focus = true) {
    this.chosen = box;
    this.draw();
    if (focus) this.svg.querySelector(".chosen")?.focus({ preventScroll: true });
  }

  // Returns true if the key was one for boxes.
  key(event) {
    if (!this.editable) return false;
    if (event.key === "Escape" && (this.edited() || this.chosen)) { this.reset(); return true; }
    if (!this.chosen) return false;
    if (event.key === "Delete" || event.key === "Backspace") { this.remove(); return true; }
    const step = event.altKey ? 10 : 1;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!move) return false;
    if (event.shiftKey) this.place({ ...this.chosen, x1: this.chosen.x1 + move[0], y1: this.chosen.y1 + move[1] });
    else this.shift(this.chosen, ...move);
    return true;
  }

  shift(start, across, down) {
    const { width, height } = this.item;
    const dx = Math.min(Math.max(across, -start.x0), width - start.x1);
    const dy = Math.min(Math.max(down, -start.y0), height - start.y1);
    this.place({ x0: start.x0 + dx, x1: start.x1 + dx, y0: start.y0 + dy, y1: start.y1 + dy });
  }

  // Corners may have changed sides, or lie outside.
  place({ x0, y0, x1, y1 }) {
    const { width, height } = this.item;
    const inside = (value, limit) => Math.min(Math.max(value, 0), limit);
    const xs = [inside(x0, width), inside(x1, width)].sort((a, b) => a - b);
    const ys = [inside(y0, height), inside(y1, height)].sort((a, b) => a - b);
    if (xs[1] - xs[0] < MIN_SIDE || ys[1] - ys[0] < MIN_SIDE) return;
    Object.assign(this.chosen, { x0: xs[0], x1: xs[1], y0: ys[0], y1: ys[1] });
    this.draw();
    this.changed();
  }

  point(event) {
    const matrix = this.svg.getScreenCTM().inverse();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return { x: at.x, y: at.y };
  }

  down(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    const grip = event.target.closest?.("[data-corner]");
    const group = event.target.closest?.("[data-box]");
    const start = this.point(event);
    let action;
    if (grip) {
      const [x, y] = CORNERS[Number(grip.dataset.corner)];
      const from = { ...this.chosen };
      action = (at) => this.place({ ...from, [x]: at.x, [y]: at.y });
    } else if (group) {
      const box = this.list[Number(group.dataset.box)];
      if (box !== this.chosen) { this.choose(box); this.changed(); }
      const from = { ...box };
      action = (at) => this.shift(from, at.x - start.x, at.y - start.y);
    } else {
      action = (at) => {
        const corners = { x0: start.x, y0: start.y, x1: at.x, y1: at.y };
        // A touch that slips is no box.
        if (!this.drawn && Math.hypot(at.x - start.x, at.y - start.y) < 4 * this.unit) return;
        if (!this.drawn) { this.drawn = true; this.add({ x0: start.x, y0: start.y, x1: start.x + MIN_SIDE, y1: start.y + MIN_SIDE }); }
        if (this.chosen) this.place(corners);
      };
    }
    this.drawn = false;
    const moved = (each) => action(this.point(each));
    const up = () => {
      this.svg.removeEventListener("pointermove", moved);
      this.svg.removeEventListener("pointerup", up);
      this.svg.removeEventListener("pointercancel", up);
      if (!grip && !group && !this.drawn) { this.chosen = null; this.draw(); this.changed(); }
    };
    this.svg.addEventListener("pointermove", moved);
    this.svg.addEventListener("pointerup", up);
    this.svg.addEventListener("pointercancel", up);
  }

  draw() {
    const focused = this.svg.contains(document.activeElement);
    const pixel = this.item.width / Math.max(1, this.svg.getBoundingClientRect().width);
    this.svg.replaceChildren(...this.list.map((box, number) => {
      const state = !box.from ? "new" : same(box, box.from) ? "" : "moved";
      const group = shape("g", { class: `drawn ${state} ${box === this.chosen ? "chosen" : ""}`, "data-box": number, tabindex: this.editable ? 0 : -1, role: this.editable ? "button" : "img", "aria-label": `box ${number + 1}, ${box.name}`, "aria-pressed": box === this.chosen });
      const place = { x: box.x0, y: box.y0, width: box.x1 - box.x0, height: box.y1 - box.y0 };
      const text = shape("text", { x: box.x0, y: box.y0 > 11 * this.unit ? box.y0 - 3 * this.unit : box.y0 + 10 * this.unit, "font-size": 8 * this.unit, "stroke-width": 2 * this.unit });
      const name = visible(box.name);
      text.textContent = name.length > 40 ? `${name.slice(0, 40)}…` : name;
      group.append(shape("rect", { class: "edge", ...place }), shape("rect", place), text);
      if (box === this.chosen) {
        CORNERS.forEach(([x, y], corner) => {
          const size = TOUCH_PX * pixel;
          group.append(shape("circle", { class: "handle", cx: box[x], cy: box[y], r: 5 * pixel }), shape("circle", { class: "grip", cx: box[x], cy: box[y], r: size, "data-corner": corner }));
        });
      }
      group.addEventListener("focus", () => { if (this.editable && this.chosen !== box) { this.choose(box); this.changed(); } });
      return group;
    }));
    // The drawn group replaces the one that had the focus.
    if (focused) this.svg.querySelector(".chosen")?.focus({ preventScroll: true });
  }
}

function same(a, b) {
  return a.name === b.name && ["x0", "y0", "x1", "y1"].every((key) => Math.abs(a[key] - b[key]) < 1e-6);
}
