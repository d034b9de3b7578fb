// The map of embeddings: up to 100,000 points on a canvas, a lasso, zoom, and colours by verdict or score.
//
// /api/map --header as JSON, then arrays--> points --lasso--> seqs --POST /api/selections--> the gallery with them

import { ask, question, reason, say } from "./uploads.js";

const canvas = document.getElementById("plane-canvas");
const text = document.getElementById("plane-text");
const legend = document.getElementById("plane-legend");
const colour = document.getElementById("plane-colour");
const open = document.getElementById("plane-open");
const frame = document.getElementById("plane");
const query = frame.dataset.query.replace("/uploads", "").replace(/^\?/, "");
const context = canvas.getContext("2d");
const STEPS = 65535;
const MOST = 20000;
const dark = matchMedia("(prefers-color-scheme: dark)");

let points = null; // {count, seq, x, y, verdict, level, loss, random}
let chosen = new Uint8Array(0);
let view = { x: 0, y: 0, scale: 1 }; // of the canvas: left and top in 0..1, and how often it is enlarged
let lasso = [];
let dragging = null;

const VERDICTS = ["not judged", "right", "wrong", "missed", "ignored"];
const palette = () => ({
  verdict: dark.matches ? ["#5d6878", "#46c07e", "#ff6a4d", "#ffb84d", "#9aa5b5"] : ["#a9b3c0", "#1f8a4f", "#d23a1f", "#b87400", "#6a7688"],
  random: dark.matches ? ["#ff8a50", "#74aee8"] : ["#c2480f", "#2f6fb2"],
});

// From cold to hot, in steps: readable for people who do not see red and green apart.
function ramp(share) {
  const stops = dark.matches ? [[59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]] : [[68, 1, 84], [49, 104, 142], [53, 183, 121], [220, 150, 10]];
  const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
  const low = stops[Math.floor(at)], high = stops[Math.floor(at) + 1], rest = at - Math.floor(at);
  return `rgb(${low.map((value, n) => Math.round(value + (high[n] - value) * rest)).join(" ")})`;
}

const LEVELS = 32;
function classes() {
  const kind = colour.value;
  const sets = palette();
  if (kind === "verdict") return { colours: sets.verdict, of: (n) => points.verdict[n], order: [0, 4, 1, 3, 2] };
  if (kind === "random") return { colours: sets.random, of: (n) => points.random[n], order: [0, 1] };
  const values = points[kind];
  const colours = Array.from({ length: LEVELS }, (_, n) => ramp(n / (LEVELS - 1)));
  if (kind === "loss") {
    return { colours: [dark.matches ? "#3a4250" : "#c9d0d9", ...colours], of: (n) => (values[n] === 0 ? 0 : 1 + Math.min(LEVELS - 1, Math.floor((values[n] - 1) * LEVELS / 255))), order: null };
  }
  return { colours, of: (n) => Math.min(LEVELS - 1, Math.floor(values[n] * LEVELS / 256)), order: null };
}

function draw() {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!points) return;
  const { colours, of, order } = classes();
  const buckets = colours.map(() => []);
  for (let n = 0; n < points.count; n += 1) buckets[of(n)].push(n);
  const size = points.count > 20000 ? 2 : points.count > 2000 ? 3 : 5;
  const picked = chosen.some(Boolean);
  (order ?? buckets.keys()).forEach((bucket) => {
    context.fillStyle = colours[bucket];
    for (const n of buckets[bucket]) {
      const [x, y] = place(n, width, height);
      if (x < -4 || y < -4 || x > width + 4 || y > height + 4) continue;
      context.globalAlpha = picked && !chosen[n] ? 0.15 : 0.85;
      context.fillRect(x - size / 2, y - size / 2, size, size);
    }
  });
  context.globalAlpha = 1;
  if (lasso.length > 1) {
    context.strokeStyle = dark.matches ? "#fff" : "#111";
    context.setLineDash([5, 4]);
    context.beginPath();
    lasso.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.stroke();
    context.setLineDash([]);
  }
}

const place = (n, width, height) => [
  (points.x[n] / STEPS - view.x) * view.scale * width,
  (points.y[n] / STEPS - view.y) * view.scale * height,
];

function explain() {
  const sets = palette();
  legend.replaceChildren();
  const add = (tint, words) => {
    const sample = document.createElement("span");
    const spot = document.createElement("i");
    spot.style.background = tint;
    sample.append(spot, words);
    legend.append(sample);
  };
  if (colour.value === "verdict") VERDICTS.forEach((words, n) => add(sets.verdict[n], words));
  else if (colour.value === "random") ["chosen", "random"].forEach((words, n) => add(sets.random[n], words));
  else [[0, "low"], [0.5, "middle"], [1, "high"]].forEach(([share, words]) => add(ramp(share), words));
}

function inside(x, y) {
  let within = false;
  for (let a = 0, b = lasso.length - 1; a < lasso.length; b = a, a += 1) {
    const [xa, ya] = lasso[a], [xb, yb] = lasso[b];
    if (ya > y !== yb > y && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) within = !within;
  }
  return within;
}

function choose() {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  let count = 0;
  for (let n = 0; n < points.count; n += 1) {
    const [x, y] = place(n, width, height);
    chosen[n] = inside(x, y) ? 1 : 0;
    count += chosen[n];
  }
  tell(count);
}

function tell(count) {
  open.disabled = count === 0 || count > MOST;
  open.textContent = count ? `Open ${count.toLocaleString("en")} in the gallery` : "Open the selection";
  if (count > MOST) say(`A selection has at most ${MOST.toLocaleString("en")} samples.`, true);
}

canvas.addEventListener("pointerdown", (event) => {
  if (!points) return;
  canvas.setPointerCapture(event.pointerId);
  dragging = event.shiftKey ? { x: event.offsetX, y: event.offsetY, view: { ...view } } : "lasso";
  if (dragging === "lasso") { lasso = [[event.offsetX, event.offsetY]]; chosen.fill(0); }
});
canvas.addEventListener("pointermove", (event) => {
  if (!dragging) return;
  if (dragging === "lasso") lasso.push([event.offsetX, event.offsetY]);
  else {
    view.x = dragging.view.x - (event.offsetX - dragging.x) / canvas.clientWidth / view.scale;
    view.y = dragging.view.y - (event.offsetY - dragging.y) / canvas.clientHeight / view.scale;
  }
  requestAnimationFrame(draw);
});
canvas.addEventListener("pointerup", () => {
  if (dragging === "lasso" && points) { if (lasso.length > 2) choose(); lasso = []; }
  dragging = null;
  requestAnimationFrame(draw);
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight);
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in steps) { const [x, y] = steps[event.key]; view.x += 0.1 * x / view.scale; view.y += 0.1 * y / view.scale; }
  else if (event.key === "+" || event.key === "=") { zoom(1.25, 0.5, 0.5); return; }
  else if (event.key === "-") { zoom(0.8, 0.5, 0.5); return; }
  else if (event.key === "Escape") { chosen.fill(0); tell(0); }
  // Enter selects what is in view, for people without a pointer.
  else if (event.key === "Enter") { const [w, h] = [canvas.clientWidth, canvas.clientHeight]; lasso = [[0, 0], [w, 0], [w, h], [0, h]]; choose(); lasso = []; }
  else return;
  event.preventDefault();
  requestAnimationFrame(draw);
});

function zoom(factor, x, y) {
  const scale = Math.min(200, Math.max(1, view.scale * factor));
  view.x += x / view.scale - x / scale;
  view.y += y / view.scale - y / scale;
  view.scale = scale;
  if (scale === 1) view = { x: 0, y: 0, scale: 1 };
  requestAnimationFrame(draw);
}

open.addEventListener("click", async () => {
  const seqs = [];
  for (let n = 0; n < points.count; n += 1) if (chosen[n]) seqs.push(points.seq[n]);
  const stamp = new Date().toISOString().slice(0, 19).replace("T", " ").replaceAll(":", ".");
  const answer = await question({ title: `Open ${seqs.length} samples`, text: "They become a selection, so that the link to them lasts.", label: "Selection", value: `lasso ${stamp}`, yes: "Open" });
  if (!answer?.text) return;
  const made = await ask("POST", `/api/selections/${encodeURIComponent(answer.text)}`, { seqs });
  if (made.ok) location.href = `/uploads?selection=${encodeURIComponent(answer.text)}`;
  else say(`Not opened: ${reason(made)}`, true);
});
document.getElementById("plane-reset").addEventListener("click", () => { view = { x: 0, y: 0, scale: 1 }; chosen.fill(0); tell(0); draw(); });
colour.addEventListener("change", () => { explain(); draw(); });
dark.addEventListener("change", () => { explain(); draw(); });
new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);

async function load() {
  const answer = await fetch(`/api/map?${query}`, { cache: "no-store" }).catch(() => null);
  if (!answer?.ok) { text.textContent = "The map cannot be read now."; return; }
  const data = await answer.arrayBuffer();
  const size = new DataView(data).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
  let at = 4 + size; // the header is padded, so that arrays start at multiples of 8
  points = { count: head.count };
  for (const [name, kind, bytes] of [["seq", Float64Array, 8], ["x", Uint16Array, 2], ["y", Uint16Array, 2], ["verdict", Uint8Array, 1], ["level", Uint8Array, 1], ["loss", Uint8Array, 1], ["random", Uint8Array, 1]]) {
    points[name] = new kind(data, at, head.count);
    at += bytes * head.count;
  }
  chosen = new Uint8Array(head.count);
  const number = (value) => value.toLocaleString("en");
  text.textContent = head.count
    ? `${number(head.count)} points of ${head.bundle}; ${number(head.compared)} of ${number(head.matching)} samples have embeddings of this bundle. The two axes hold ${Math.round(100 * head.explained)} % of their variance.`
    : "None of these samples has an embedding.";
  frame.dataset.points = String(head.count);
  explain();
  draw();
}
load();
