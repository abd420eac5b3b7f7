// Maps of the same samples side by side. Everything that is shown comes from Python; what a person does goes there as a
// message (a polygon, a point under the pointer) and comes back as what is to be shown. Nothing is kept here but the
// tool and the zoom, and those are Python's too.

const RADIUS = [2.6, 4.2]; // of a training and a held-out sample, CSS pixels
const FAINT = 0.07; // of what is not selected
const NEAR = 9; // pixels, at most, from the pointer to the sample that it means
const TOOLS = { box: "▭ box", lasso: "◌ lasso", move: "✥ move" };

const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const ints = (view) => new Uint32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

// Shapes of about radius 1 around (0, 0), y downwards, in the order of GLYPHS in maps.py.
const upright = (x, y) => y < 0.75 && Math.abs(x) < (y + 1.15) * 0.6;
const plus = (x, y) => Math.min(Math.abs(x), Math.abs(y)) < 0.36 && Math.max(Math.abs(x), Math.abs(y)) < 1.1;
const SHAPES = [
  (x, y) => Math.hypot(x, y) < 1,
  (x, y) => Math.max(Math.abs(x), Math.abs(y)) < 0.88,
  upright,
  (x, y) => Math.abs(x) + Math.abs(y) < 1.3,
  (x, y) => upright(x, -y),
  plus,
  (x, y) => plus((x + y) * Math.SQRT1_2, (x - y) * Math.SQRT1_2),
];

// How far a shape covers the pixels around (0, 0), from 16 places of each: [dx, dy, share] one after the other.
function stamp(inside, radius) {
  const out = [], far = Math.ceil(1.3 * radius), quarters = [-0.375, -0.125, 0.125, 0.375];
  for (let y = -far; y <= far; y++)
    for (let x = -far; x <= far; x++) {
      let share = 0;
      for (const v of quarters) for (const u of quarters) share += inside((x + u) / radius, (y + v) / radius) / 16;
      if (share > 0) out.push(x, y, share);
    }
  return out;
}

class Map2D {
  constructor(model, which, say) {
    Object.assign(this, { model, which, say });
    this.root = document.createElement("div");
    this.root.className = "rgb2pc-map";
    this.points = document.createElement("canvas");
    this.over = document.createElement("canvas");
    const title = document.createElement("b");
    title.textContent = model.get("titles")[which];
    this.root.append(title, this.points, this.over);
    this.over.title = "";
    this.drag = null;
    this.over.addEventListener("pointerdown", (e) => this.down(e));
    this.over.addEventListener("pointermove", (e) => this.move(e));
    this.over.addEventListener("pointerup", (e) => this.up(e));
    this.over.addEventListener("pointerleave", () => this.say({ leave: true }));
    this.over.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
    this.over.addEventListener("dblclick", () => this.say({ clear: true }));
  }

  // -- places: of the unit square on the screen, and back

  get view() { return this.model.get("views")[this.which]; } // [left, top, width] of the unit square that is seen
  set view(v) {
    const views = this.model.get("views").slice();
    views[this.which] = v;
    this.model.set("views", views);
    this.model.save_changes();
  }
  get side() { return this.over.clientWidth || 1; }
  place(e) {
    const box = this.over.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  }
  inside([x, y]) {
    const [left, top, width] = this.view, scale = width / this.side;
    return [left + x * scale, top + y * scale];
  }

  // -- what people do

  down(e) {
    if (e.button) return;
    this.over.setPointerCapture(e.pointerId);
    this.drag = { from: this.place(e), path: [this.place(e)], view: this.view, moved: false };
  }
  move(e) {
    const at = this.place(e);
    if (!this.drag) return this.hover(at);
    const { from, path, view } = this.drag, tool = this.model.get("tool");
    if (Math.hypot(at[0] - from[0], at[1] - from[1]) > 4) this.drag.moved = true;
    if (!this.drag.moved) return;
    if (tool === "move") {
      const scale = view[2] / this.side;
      this.view = [view[0] - (at[0] - from[0]) * scale, view[1] - (at[1] - from[1]) * scale, view[2]];
    } else {
      if (tool === "box") this.drag.path = [from, [at[0], from[1]], at, [from[0], at[1]]];
      else path.push(at);
      this.mark();
    }
  }
  up(e) {
    const drag = this.drag;
    this.drag = null;
    if (!drag) return;
    const row = this.nearest(this.place(e));
    if (!drag.moved) { if (row >= 0) this.say({ click: row }); }
    else if (this.model.get("tool") !== "move")
      this.say({ map: this.which, polygon: drag.path.map((p) => this.inside(p)) });
    this.mark();
  }
  wheel(e) {
    e.preventDefault();
    const [x, y] = this.place(e), [left, top, width] = this.view;
    const wider = Math.min(Math.max(width * Math.exp(e.deltaY * 0.0015), 0.01), 1.5);
    const gained = (width - wider) / this.side;
    this.view = [left + x * gained, top + y * gained, wider];
  }
  hover(at) {
    const row = this.nearest(at);
    if (row !== this.hovered) this.say({ hover: row });
    this.hovered = row;
  }
  nearest([x, y]) {
    const { xy, lit, n } = this.data, [left, top, width] = this.view, scale = this.side / width;
    let best = -1, least = NEAR * NEAR;
    for (let i = 0; i < n; i++) {
      if (lit && !lit[i]) continue;
      const dx = (xy[2 * i] - left) * scale - x, dy = (xy[2 * i + 1] - top) * scale - y, d = dx * dx + dy * dy;
      if (d <= least) { least = d; best = i; }
    }
    return best;
  }

  // -- how it looks

  draw(data) {
    this.data = data;
    const ratio = window.devicePixelRatio || 1, side = Math.round(this.side * ratio);
    for (const canvas of [this.points, this.over]) if (canvas.width !== side) canvas.width = canvas.height = side;
    const pen = this.points.getContext("2d", { willReadFrequently: true });
    pen.fillStyle = getComputedStyle(this.root).backgroundColor;
    pen.fillRect(0, 0, side, side);
    const image = pen.getImageData(0, 0, side, side), pixels = image.data;
    const { xy, tint, shape, large, lit, n } = data, [left, top, width] = this.view, scale = side / width;
    const shrink = Math.max(Math.min(Math.sqrt(10000 / n), 1), 0.35); // many samples, small dots
    const stamps = RADIUS.map((r) => SHAPES.map((inside) => stamp(inside, (r + 0.25) * ratio * shrink)));
    for (const pass of lit ? [0, 1, 2, 3] : [2, 3]) { // what is selected above what is not, held out above training
      for (let i = 0; i < n; i++) {
        if (large[i] !== (pass & 1) || (lit && lit[i] !== pass >> 1)) continue;
        const strength = pass < 2 ? FAINT : large[i] ? 1 : 0.55;
        const x = Math.round((xy[2 * i] - left) * scale), y = Math.round((xy[2 * i + 1] - top) * scale);
        if (x < -20 || y < -20 || x > side + 20 || y > side + 20) continue;
        const d = stamps[large[i]][shape[i]];
        for (let k = 0; k < d.length; k += 3) {
          const px = x + d[k], py = y + d[k + 1];
          if (px < 0 || py < 0 || px >= side || py >= side) continue;
          const at = 4 * (py * side + px), a = strength * d[k + 2];
          pixels[at] += (tint[3 * i] - pixels[at]) * a;
          pixels[at + 1] += (tint[3 * i + 1] - pixels[at + 1]) * a;
          pixels[at + 2] += (tint[3 * i + 2] - pixels[at + 2]) * a;
        }
      }
    }
    pen.putImageData(image, 0, 0);
    this.root.lit = data.rows; // what this map shows as selected, for whoever asks the page; null: all
    this.mark();
  }

  mark() { // the ring of the step that is open, the line through its episode, and what is being drawn
    const ratio = window.devicePixelRatio || 1, pen = this.over.getContext("2d");
    const [left, top, width] = this.view, scale = this.side / width, { xy } = this.data;
    const at = (i) => [(xy[2 * i] - left) * scale, (xy[2 * i + 1] - top) * scale];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.side, this.side);
    pen.strokeStyle = getComputedStyle(this.root).color;
    const thread = this.data.thread;
    pen.lineWidth = 1;
    pen.beginPath();
    thread.forEach((row, i) => (i ? pen.lineTo(...at(row)) : pen.moveTo(...at(row))));
    pen.stroke();
    const open = this.model.get("opened");
    if (open >= 0) {
      pen.lineWidth = 2.5;
      pen.beginPath();
      pen.arc(...at(open), 9, 0, 7);
      pen.stroke();
    }
    if (this.drag?.moved && this.model.get("tool") !== "move") {
      pen.lineWidth = 1.5;
      pen.setLineDash([5, 4]);
      pen.beginPath();
      this.drag.path.forEach((p, i) => (i ? pen.lineTo(...p) : pen.moveTo(...p)));
      pen.closePath();
      pen.stroke();
      pen.setLineDash([]);
    }
  }
}

export default {
  render({ model, el }) {
    const say = (what) => model.send(what), root = document.createElement("div");
    root.className = "rgb2pc-maps";
    const bar = document.createElement("div"), maps = document.createElement("div"), tip = document.createElement("div");
    bar.className = "rgb2pc-maps-bar";
    maps.className = "rgb2pc-maps-row";
    tip.className = "rgb2pc-maps-tip";
    const buttons = Object.fromEntries(Object.entries(TOOLS).map(([name, text]) => {
      const button = Object.assign(document.createElement("button"), { textContent: text });
      button.onclick = () => { model.set("tool", name); model.save_changes(); };
      return [name, button];
    }));
    const clear = Object.assign(document.createElement("button"), { textContent: "✕ clear" });
    clear.onclick = () => say({ clear: true });
    const whole = Object.assign(document.createElement("button"), { textContent: "⤢ whole map" });
    whole.onclick = () => { model.set("views", model.get("titles").map(() => [0, 0, 1])); model.save_changes(); };
    const count = document.createElement("span");
    bar.append(...Object.values(buttons), clear, whole, count);
    const both = model.get("titles").map((_, i) => new Map2D(model, i, say));
    maps.append(...both.map((map) => map.root));
    const picture = Object.assign(document.createElement("img"), { className: "rgb2pc-thumbnail" });
    const caption = Object.assign(document.createElement("div"), { className: "rgb2pc-spaces-caption" });
    tip.append(picture, caption);
    root.append(bar, maps, tip);
    el.append(root);

    let due = 0, url = "";
    const gather = () => {
      const large = bytes(model.get("large")), n = large.length, xy = floats(model.get("xy"));
      const chosen = model.get("selected"), rows = chosen && ints(chosen), lit = rows && new Uint8Array(n);
      rows?.forEach((i) => { lit[i] = 1; });
      const tint = bytes(model.get("tint")), shape = bytes(model.get("shape"));
      const thread = Array.from(ints(model.get("thread")));
      count.textContent = rows ? `${rows.length} of ${n} selected` : `all of ${n}; drag to select, wheel to zoom`;
      return both.map((_, i) => ({ xy: xy.subarray(2 * n * i, 2 * n * (i + 1)), tint, shape, large, rows, lit, n, thread }));
    };
    const draw = () => {
      due ||= requestAnimationFrame(() => {
        due = 0;
        if (!root.clientWidth) return; // not in the page, or hidden while the theme changes: the picture stays
        for (const [name, button] of Object.entries(buttons)) button.ariaPressed = name === model.get("tool");
        gather().forEach((data, i) => both[i].draw(data));
      });
    };
    const show = () => {
      const row = model.get("hovered");
      tip.style.display = row < 0 ? "none" : "block";
      caption.innerText = model.get("caption");
      URL.revokeObjectURL(url);
      const png = bytes(model.get("picture"));
      picture.style.display = png.length ? "block" : "none";
      picture.src = url = png.length ? URL.createObjectURL(new Blob([png])) : "";
    };
    root.addEventListener("pointermove", (e) => { // beside the pointer, inside the widget
      const box = root.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
      tip.style.left = `${x + (x + 270 > box.width ? -250 : 18)}px`;
      tip.style.top = `${Math.max(Math.min(y - 60, box.height - 300), 0)}px`;
    });
    const seen = new ResizeObserver(draw);
    seen.observe(root);
    for (const name of ["xy", "tint", "shape", "large", "selected", "thread", "views", "tool", "opened"])
      model.on(`change:${name}`, draw);
    model.on("change:hovered change:caption change:picture", show);
    draw();
    show();
    return () => { seen.disconnect(); model.off(); URL.revokeObjectURL(url); };
  },
};
