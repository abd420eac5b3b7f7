// Plays an episode. Everything that is shown came from Python at once; which step, and how far the teacher is shifted,
// is Python's too, and a change of either is drawn here without waiting for it.

const CELLS = { rgb: "RGB", over: "teacher's points over the frame", space: "its points in space", tokens: "tokens", gates: "gates", fit: "fit by the shift of the teacher, steps" };
const SIDE = 260; // CSS pixels of a picture's width

const make = (kind, parts = {}) => Object.assign(document.createElement(kind), parts);
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// One clock a page, however often the player is shown.
function initialize({ model }) {
  let clock = 0;
  const tick = () => {
    const n = model.get("steps").length;
    if (n) { model.set("at", (model.get("at") + 1) % n); model.save_changes(); }
  };
  const run = () => {
    clearInterval(clock);
    if (model.get("playing")) clock = setInterval(tick, 1000 / clamp(model.get("speed"), 0.2, 30));
  };
  model.on("change:playing change:speed", run);
  run();
  return () => clearInterval(clock);
}

function render({ model, el }) {
  const root = make("div", { className: "rgb2pc-player", tabIndex: 0 });
  root.dataset.lmSuppressShortcuts = "true"; // the notebook's own arrows and spaces are not meant
  const set = (what) => { for (const [k, v] of Object.entries(what)) model.set(k, v); model.save_changes(); };
  const n = () => model.get("steps").length, at = () => clamp(model.get("at"), 0, Math.max(n() - 1, 0));
  const by = (d) => set({ at: clamp(at() + d, 0, n() - 1), playing: false });
  const shiftBy = (d) => set({ shift: clamp(model.get("shift") + d, -model.get("reach"), model.get("reach")) });

  // -- controls
  const bar = make("div", { className: "rgb2pc-player-bar" }), below = make("div", { className: "rgb2pc-player-bar" });
  const button = (text, title, act) => {
    const b = make("button", { textContent: text, title });
    b.ariaLabel = title;
    b.onclick = act;
    return b;
  };
  const play = button("▶ play", "play (space)", () => set({ playing: !model.get("playing") }));
  const when = make("input", { type: "range", min: 0, className: "rgb2pc-player-at" });
  when.ariaLabel = "step";
  when.oninput = () => set({ at: +when.value, playing: false });
  const name = make("code", { className: "rgb2pc-step" }), speed = make("select", { title: "steps a second" });
  for (const s of [1, 2, 5, 10, 20]) speed.append(make("option", { value: s, textContent: `${s} steps/s` }));
  speed.onchange = () => set({ speed: +speed.value });
  bar.append(button("‹", "step back (left arrow)", () => by(-1)), play, button("›", "step on (right arrow)", () => by(1)), when, name, speed);
  const shift = make("input", { type: "range", className: "rgb2pc-player-shift" }), shifted = make("span", { className: "rgb2pc-player-shifted" });
  shift.ariaLabel = "shift of the teacher, steps";
  shift.oninput = () => set({ shift: +shift.value });
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05 });
  opacity.ariaLabel = "opacity of tokens and gates";
  opacity.oninput = () => set({ opacity: +opacity.value });
  below.append(make("span", { textContent: "shift the teacher" }), shift, shifted, button("0", "as filed (0)", () => set({ shift: 0 })),
    make("span", { textContent: "opacity" }), opacity);
  root.addEventListener("keydown", (e) => {
    e.stopPropagation();
    if (e.target.tagName === "SELECT" || e.ctrlKey || e.metaKey || e.altKey) return;
    const acts = { ArrowLeft: () => (e.shiftKey ? shiftBy(-1) : by(-1)), ArrowRight: () => (e.shiftKey ? shiftBy(1) : by(1)),
      Home: () => by(-n()), End: () => by(n()), " ": () => set({ playing: !model.get("playing") }), 0: () => set({ shift: 0 }) };
    if (!acts[e.key] || (e.key === " " && e.target.tagName === "BUTTON")) return;
    e.preventDefault();
    acts[e.key]();
  });

  // -- pictures
  const cells = {}, captions = {}, row = make("div", { className: "rgb2pc-player-row" });
  for (const [key, text] of Object.entries(CELLS)) {
    const cell = make("figure"), canvas = make("canvas");
    captions[key] = make("figcaption", { textContent: text });
    canvas.className = `rgb2pc-player-${key}`;
    cell.append(captions[key], canvas);
    row.append(cell);
    cells[key] = canvas;
  }
  const trust = make("div", { className: "rgb2pc-player-trust" }), verdict = make("div", { className: "rgb2pc-player-verdict" });
  cells.gates.parentElement.append(trust);
  cells.fit.parentElement.append(verdict);
  const said = make("p", { className: "rgb2pc-player-said" });
  said.role = "status";
  const keys = make("p", { className: "rgb2pc-player-keys", textContent: "Click here, then: ← → step, space plays, shift + ← → shifts the teacher, 0 as filed. Drag the points to turn them." });
  root.append(bar, below, said, row, keys);
  el.append(root);

  // -- what came from Python, made ready once
  let data = {}, view = { yaw: 0.35, pitch: -0.3, zoom: 1 }, gone = false;
  const part = (ends, i, of) => of.subarray((i ? ends[i - 1] : 0), ends[i]);
  const read = () => {
    const all = bytes(model.get("frames")), ends = model.get("frame_ends"), pictures = ends.map(() => null);
    data = { xyz: floats(model.get("xyz")), uv: floats(model.get("uv")), tint: bytes(model.get("tint")), ends: model.get("point_ends"), pictures };
    ends.forEach((_, i) => {
      const jpeg = part(ends, i, all);
      if (jpeg.length) createImageBitmap(new Blob([jpeg])).then((p) => { if (data.pictures === pictures && !gone) { pictures[i] = p; if (i === at()) draw(); } });
    });
    const { xyz } = data, m = xyz.length / 3, low = [1e9, 1e9, 1e9], high = [-1e9, -1e9, -1e9];
    for (let i = 0; i < m; i++) for (let a = 0; a < 3; a++) { low[a] = Math.min(low[a], xyz[3 * i + a]); high[a] = Math.max(high[a], xyz[3 * i + a]); }
    data.middle = low.map((v, a) => (v + high[a]) / 2);
    data.size = Math.max(Math.hypot(...high.map((v, a) => v - low[a])), 1e-6);
  };
  const pen = (key, height) => { // a canvas of the right size, and its pen in CSS pixels
    const canvas = cells[key], ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || SIDE;
    const tall = Math.round(height(width));
    canvas.style.height = `${tall}px`;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(tall * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(tall * ratio); }
    const p = canvas.getContext("2d");
    p.setTransform(ratio, 0, 0, ratio, 0, 0);
    p.clearRect(0, 0, width, tall);
    return [p, width, tall];
  };
  const shape = (width) => width * model.get("shape")[0] / model.get("shape")[1];
  const frame = (p, w, h, filter = "none") => {
    const picture = data.pictures[at()];
    p.filter = filter;
    if (picture) p.drawImage(picture, 0, 0, w, h);
    else { p.fillStyle = "#9a9a9a"; p.fillRect(0, 0, w, h); }
    p.filter = "none";
  };
  const points = (i) => (i >= 0 && i < data.ends.length ? [i ? data.ends[i - 1] : 0, data.ends[i]] : [0, 0]);
  const drawOver = () => {
    const [p, w, h] = pen("over", shape), [from, to] = points(at() + model.get("shift")), { uv, tint } = data;
    frame(p, w, h, "grayscale(1) brightness(1.25) contrast(.5)");
    const side = Math.max(w / 90, 2);
    let inside = 0;
    for (let i = from; i < to; i++) {
      const x = uv[2 * i], y = uv[2 * i + 1];
      if (!(x >= 0 && x < 1 && y >= 0 && y < 1)) continue;
      inside += 1;
      p.fillStyle = `rgb(${tint[3 * i]},${tint[3 * i + 1]},${tint[3 * i + 2]})`;
      p.fillRect(x * w - side / 2, y * h - side / 2, side, side);
    }
    if (!inside) note(p, w, h, from < to ? "its points know no pixels" : "no points at that step");
  };
  const note = (p, w, h, text) => { p.fillStyle = getComputedStyle(root).color; p.textAlign = "center"; p.font = "13px sans-serif"; p.fillText(text, w / 2, h / 2); };
  const drawSpace = () => {
    const [p, w, h] = pen("space", shape), [from, to] = points(at() + model.get("shift")), { xyz, tint, middle, size } = data;
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)], m = to - from;
    const depth = new Float32Array(m), place = new Float32Array(2 * m), scale = view.zoom * 1.15 * Math.min(w, h) / size;
    for (let k = 0; k < m; k++) {
      const i = 3 * (from + k), x = xyz[i] - middle[0], y = xyz[i + 1] - middle[1], z = xyz[i + 2] - middle[2];
      const x1 = cy * x + sy * z, z1 = cy * z - sy * x;
      place[2 * k] = w / 2 + scale * x1;
      place[2 * k + 1] = h / 2 + scale * (cp * y - sp * z1);
      depth[k] = sp * y + cp * z1;
    }
    const side = Math.max(w / 110, 2);
    for (const k of Array.from(depth.keys()).sort((a, b) => depth[b] - depth[a])) {
      const i = 3 * (from + k);
      p.fillStyle = `rgb(${tint[i]},${tint[i + 1]},${tint[i + 2]})`;
      p.fillRect(place[2 * k] - side / 2, place[2 * k + 1] - side / 2, side, side);
    }
    if (!m) note(p, w, h, "no points at that step");
  };
  const drawLayer = (key) => {
    const layer = model.get("layers")[key];
    cells[key].parentElement.hidden = !layer;
    if (!layer) return;
    captions[key].textContent = layer.title;
    const [p, w, h] = pen(key, shape), [gh, gw] = layer.grid, [x0, y0, x1, y1] = layer.box, i = at();
    frame(p, w, h, "grayscale(1)");
    if (!layer.there[i]) return note(p, w, h, "none at this step");
    const small = make("canvas", { width: gw, height: gh }), brush = small.getContext("2d"), image = brush.createImageData(gw, gh);
    const from = bytes(model.get(key)).subarray(3 * gh * gw * i, 3 * gh * gw * (i + 1));
    for (let k = 0; k < gh * gw; k++) image.data.set([from[3 * k], from[3 * k + 1], from[3 * k + 2], 255], 4 * k);
    brush.putImageData(image, 0, 0);
    p.imageSmoothingEnabled = false;
    p.globalAlpha = model.get("opacity");
    p.drawImage(small, x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h);
    p.globalAlpha = 1;
  };
  const drawTrust = () => { // mean gates of the step, as one bar
    const { experts = [], colours, means } = model.get("trust"), mean = means?.[at()];
    trust.replaceChildren(...(mean ? experts.map((e, m) => {
      const line = make("div", { textContent: `${e} ${mean[m].toFixed(2)}` });
      line.style.setProperty("--share", `${100 * mean[m]}%`);
      line.style.setProperty("--tint", colours[m]);
      return line;
    }) : []));
  };
  const drawFit = () => {
    const checks = model.get("checks"), now = model.get("shift");
    cells.fit.parentElement.hidden = !checks.length;
    if (!checks.length) return;
    const [p, w, h] = pen("fit", (width) => 0.62 * width), ink = getComputedStyle(root).color, reach = Math.max(...checks[0].shifts);
    const x = (s) => 14 + (w - 28) * (s + reach) / (2 * reach), tints = ["#0072b2", "#009e73", "#cc79a7"];
    p.strokeStyle = p.fillStyle = ink;
    p.font = "11px sans-serif";
    p.textAlign = "center";
    for (let s = -reach; s <= reach; s += Math.max(Math.round(reach / 4), 1)) p.fillText(s > 0 ? `+${s}` : s, x(s), h - 2);
    p.setLineDash([3, 3]);
    p.beginPath(); p.moveTo(x(now), 4); p.lineTo(x(now), h - 16); p.stroke();
    p.setLineDash([]);
    checks.forEach(({ shifts, fits }, c) => {
      const known = fits.filter((v) => v !== null), low = Math.min(...known), high = Math.max(...known);
      const y = (v) => 10 + (h - 34) * (1 - (v - low) / (high - low || 1));
      p.strokeStyle = p.fillStyle = tints[c % 3];
      p.lineWidth = 2;
      p.beginPath();
      let pen_down = false;
      fits.forEach((v, i) => { if (v === null) { pen_down = false; return; } if (pen_down) p.lineTo(x(shifts[i]), y(v)); else p.moveTo(x(shifts[i]), y(v)); pen_down = true; });
      p.stroke();
      const v = fits[shifts.indexOf(now)];
      if (v != null) { p.beginPath(); p.arc(x(now), y(v), 4, 0, 7); p.fill(); }
    });
    verdict.replaceChildren(...checks.map(({ name: by, said: word, alarm, shifts, fits, unit }, c) => {
      const line = make("div", { className: alarm ? "alarm" : "" }), dot = make("span", { textContent: "● " }), v = fits[shifts.indexOf(now)];
      dot.style.color = tints[c % 3];
      line.append(dot, `by ${by}: `, make("b", { textContent: word }), v == null ? "" : `; ${unit} ${v.toFixed(2)} here`);
      return line;
    }));
  };
  const draw = () => {
    if (gone || !root.isConnected || !n()) return;
    const [p, w, h] = pen("rgb", shape);
    frame(p, w, h);
    drawOver();
    drawSpace();
    drawLayer("tokens");
    drawLayer("gates");
    drawTrust();
    drawFit();
    const by = model.get("shift"), steps = model.get("steps"), other = steps[at() + by];
    name.textContent = steps[at()];
    shifted.textContent = by ? `${by > 0 ? "+" : ""}${by}: ${other ? `points of ${other}` : "beyond the episode"}` : "0: as filed";
    Object.assign(when, { max: n() - 1 });
    when.value = at();
    Object.assign(shift, { min: -model.get("reach"), max: model.get("reach") });
    shift.value = by;
    speed.value = model.get("speed");
    opacity.value = model.get("opacity");
    play.textContent = model.get("playing") ? "‖ pause" : "▶ play";
    play.title = play.ariaLabel = model.get("playing") ? "pause (space)" : "play (space)";
    root.dataset.shown = `${at()} ${by}`; // what is painted, for whoever asks the page
  };
  const tell = () => { said.textContent = model.get("said"); };
  cells.space.onpointerdown = (e) => { cells.space.setPointerCapture(e.pointerId); cells.space.onpointermove = (m) => {
    view.yaw -= m.movementX * 0.01; view.pitch = clamp(view.pitch + m.movementY * 0.01, -1.5, 1.5); drawSpace(); }; };
  cells.space.onpointerup = () => { cells.space.onpointermove = null; };
  cells.space.onwheel = (e) => { e.preventDefault(); view.zoom = clamp(view.zoom * Math.exp(-e.deltaY * 0.0015), 0.3, 10); drawSpace(); };

  let due = 0;
  const soon = () => { due ||= requestAnimationFrame(() => { due = 0; draw(); }); };
  const anew = () => { read(); soon(); };
  model.on("change:frames change:xyz change:uv change:tint change:point_ends change:frame_ends", anew);
  model.on("change:steps change:at change:playing change:speed change:shift change:reach change:opacity change:shape change:layers change:tokens change:gates change:trust change:checks", soon);
  model.on("change:said", tell);
  const seen = new ResizeObserver(soon);
  seen.observe(root);
  read();
  tell();
  soon();
  return () => { gone = true; seen.disconnect(); model.off(null, anew); model.off(null, soon); model.off(null, tell); };
}

export default { initialize, render };
