// The verdict screen: one picture, one key, the next picture at once.
//
// queue --fetched ahead, pictures decoded ahead--> stage --key--> next picture shown, verdict kept until it is saved
//
// A verdict waits in the browser's storage until the server has recorded it, under a name of its own (`act`), so
// a repeated request, a reload or a second window records it once. Boxes are in pixels of the stored picture.

import { Boxes, visible } from "./boxes.js";

const MIN_SHOWN_MS = 150; // a second press of the same key must not judge a picture that nobody saw
const AHEAD = 6; // pictures decoded ahead
const REFILL = 10;
const TIMEOUT_MS = 15000;
const KEPT = "misfire.unsent.";

const $ = (id) => document.getElementById(id);
const notice = $("message"); // leaves the document while a picture is shown
const address = new URLSearchParams(location.search);
const order = $("judge").dataset.order;
const memory = new Map();

// Storage may be forbidden; then a verdict is kept for as long as the page is open.
const storage = {
  get: (key) => { try { return localStorage.getItem(key) ?? memory.get(key); } catch { return memory.get(key); } },
  set: (key, value) => { memory.set(key, value); try { localStorage.setItem(key, value); } catch { /* memory has it */ } },
  remove: (key) => { memory.delete(key); try { localStorage.removeItem(key); } catch { /* memory had it */ } },
  keys: () => { try { return [...new Set([...Object.keys(localStorage), ...memory.keys()])]; } catch { return [...memory.keys()]; } },
};

const account = $("judge").dataset.name ?? ""; // who is signed in; without accounts, the browser keeps a name
let name = account || (storage.get("misfire.name") ?? "");
let queue = [];
let handed = new Set();
let cursor = "";
let ended = false;
let filling = false;
let left = null;
let current = null;
let classes = { fleet: [], answered: [] };
let choice = null; // classes chosen for several classes
let boxes = null; // what is drawn over the picture
let boxClass = "";
let keyPage = 0; // which nine classes have keys
let history = []; // newest first: {act, item, sample, verdict, words, state, reveal, count}
let unsent = []; // oldest first: {path, body, pressed}
let sending = false;
let failures = 0;
let timer = 0;
let sticky = false; // the trouble on the page is about a verdict that was refused

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const act = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(15));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
};

const say = (text) => { $("status").textContent = text; };

async function ask(path, body) {
  const stop = new AbortController();
  const limit = setTimeout(() => stop.abort(), TIMEOUT_MS);
  try {
    const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, { ...options, signal: stop.signal, cache: "no-store" });
    const document_ = await answer.json().catch(() => ({}));
    return { status: answer.status, document: document_ };
  } catch (error) {
    return { status: 0, document: { detail: error.name === "AbortError" ? "the console does not answer in time" : "the console cannot be reached" } };
  } finally {
    clearTimeout(limit);
  }
}

const reason = (answer) => {
  const detail = answer.document.detail;
  return Array.isArray(detail) ? detail.map((each) => `${each.loc.at(-1)}: ${each.msg}`).join("; ") : detail || `status ${answer.status}`;
};

// --- the queue

function prepare(item) {
  if (item.ready) return;
  item.image = new Image();
  item.image.alt = "upload to judge";
  item.image.draggable = false;
  item.image.src = item.picture;
  item.ready = item.image.decode().then(() => true, () => false);
}

async function fill() {
  if (filling || ended || !name || queue.length >= REFILL) return;
  filling = true;
  const asked = new URLSearchParams(address);
  asked.set("by", name);
  asked.set("limit", "24");
  if (cursor) asked.set("cursor", cursor);
  const answer = await ask(`/api/verdicts/queue?${asked}`);
  filling = false;
  if (answer.status !== 200) {
    trouble(`The queue cannot be read: ${reason(answer)}.`, "Try again", () => fill());
    if (!current) message("The queue cannot be read.");
    return;
  }
  clearTrouble();
  const first = !cursor && left === null;
  if (first && answer.document.left !== null) left = answer.document.left;
  let fresh = 0;
  for (const item of answer.document.items) {
    if (handed.has(item.sample)) continue;
    item.others = item.others.filter((each) => !handed.has(each));
    handed.add(item.sample);
    item.others.forEach((each) => handed.add(each));
    queue.push(item);
    fresh += 1;
  }
  const before = cursor;
  cursor = answer.document.cursor ?? "";
  ended = answer.document.cursor === null || (!fresh && cursor === before);
  queue.slice(0, AHEAD).forEach(prepare);
  count();
  if (!current) next(0);
  else if (queue.length < REFILL && !ended) fill();
}

function count() {
  $("left").textContent = left === null ? "" : `${Math.max(0, left).toLocaleString("en")} left`;
}

async function next(pressed) {
  const item = queue.shift() ?? null;
  current = item;
  if (!item) {
    boxes = choice = null;
    $("stage").replaceChildren(notice);
    describe(null);
    if (ended) message("Nothing is left to judge in this queue.");
    else { message("Loading…"); fill(); }
    return;
  }
  prepare(item);
  item.shownAt = 0;
  const shown = (good) => {
    if (current !== item) return;
    show(item, good);
    requestAnimationFrame(() => {
      // A task after the frame's own: by then the picture is on the screen.
      const channel = new MessageChannel();
      channel.port1.onmessage = () => painted(item, pressed);
      channel.port2.postMessage(null);
    });
  };
  if (item.settled !== undefined) shown(item.settled);
  else {
    message("Loading…");
    $("stage").setAttribute("aria-busy", "true");
    shown((item.settled = await item.ready));
  }
  queue.slice(0, AHEAD).forEach((each) => { prepare(each); each.ready.then((good) => { each.settled = good; }); });
  fill();
}

function painted(item, pressed) {
  if (current !== item || item.shownAt) return;
  item.shownAt = performance.now();
  $("stage").dataset.sample = item.sample;
  $("stage").setAttribute("aria-busy", "false");
  if (pressed) $("stage").dataset.shownMs = String(item.shownAt - pressed);
}

function message(text) {
  notice.textContent = text;
  if (!notice.isConnected) $("stage").replaceChildren(notice);
}

// --- what is shown

function show(item, good) {
  const stage = $("stage");
  boxes = null;
  if (!good) {
    notice.textContent = "This picture cannot be shown. Ignore it, or skip it.";
    stage.replaceChildren(notice);
  } else {
    item.image.classList.toggle("pixels", item.width < 320);
    stage.replaceChildren(item.image);
    const shape = item.image.naturalWidth / item.image.naturalHeight / (item.width / item.height);
    const fits = Math.abs(shape - 1) < 0.05;
    if (fits && (item.kind === "boxes" || item.kind === "points")) {
      boxes = new Boxes(stage, item, { changed: boxesChanged, defaultClass: () => boxClass || classNames()[0] || "" });
      if (!boxClass) boxClass = classNames()[0] ?? "";
    }
  }
  stage.classList.toggle("drawing", boxes !== null && item.kind === "boxes" && !item.clip);
  if (item.edits && boxes) boxes.load(item.edits);
  choice = item.kind === "classes" ? new Set(item.chosen ?? item.answer.names) : null;
  describe(item);
}

function describe(item) {
  for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = !item;
  const answer = $("answer");
  answer.replaceChildren();
  $("caption").textContent = item ? `${item.width} × ${item.height}, ${visible(item.vehicle)}, ${item.captured}` : "\u00a0";
  if (item?.clip) $("caption").append(", the chosen frame of a ", element("a", { href: item.blob, target: "_blank", textContent: "clip" }));
  $("question").textContent = item ? "The vehicle answered" : "";
  if (item) {
    const kind = item.kind;
    if (kind === "class") answer.textContent = visible(item.answer.name);
    else if (kind === "classes") answer.textContent = item.answer.names.map(visible).join(", ") || "nothing";
    else if (kind === "boxes") answer.textContent = boxWords(item);
    else if (kind === "values") answer.textContent = item.answer.values.slice(0, 12).map((v) => v.toPrecision(4)).join(", ");
    else if (kind === "points") answer.textContent = `${item.answer.points.length} points`;
    else if (item.answer.shares) answer.append(element("ul", {}, ...Object.entries(item.answer.shares).map(([key, value]) => element("li", { textContent: `${visible(key)} ${(100 * value).toFixed(0)} % of the picture` }))));
    else answer.textContent = "no answer in this offer";
  }
  $("classes").hidden = !item || !["class", "classes", "boxes"].includes(item.kind);
  $("box-tools").hidden = !boxes || item.kind !== "boxes";
  $("classes-hint").textContent = !item ? "" : item.kind === "class" ? "Wrong? Choose the right class:" : item.kind === "classes" ? "Choose what is in the picture:" : "Class of the chosen box, and of new ones:";
  chips();
  cluster(item);
  ready();
}

function boxWords(item) {
  const counts = new Map();
  for (const box of item.answer.boxes) counts.set(box.name, (counts.get(box.name) ?? 0) + 1);
  const words = [...counts].map(([key, value]) => `${value} ${visible(key)}`).join(", ") || "nothing";
  return item.answer.more ? `${words}, and ${item.answer.more} more that are not drawn` : words;
}

const classNames = () => [...new Set([...classes.fleet, ...classes.answered])];

function shownClasses() {
  const names = classNames();
  const own = current?.kind === "class" ? [current.answer.name] : current?.kind === "classes" ? current.answer.names : [];
  return [...new Set([...own.filter((each) => !names.includes(each)), ...names])];
}

function pressedClass(text) {
  if (current.kind === "classes") return choice.has(text);
  if (current.kind === "boxes") return (boxes?.chosenClass() ?? boxClass) === text;
  return current.answer.name === text;
}

// Where a class is called by a digit, the digits are names: key 1 must not choose the class 0.
const namedByDigit = (names) => names.filter((each) => /^[0-9]$/.test(each));
const keyPages = (names) => (namedByDigit(names).length ? 1 : Math.max(1, Math.ceil(names.length / 9)));

function digitKeys(names) {
  const digits = namedByDigit(names);
  if (digits.length) return new Map(digits.map((each) => [each, each]));
  const first = 9 * (keyPage % keyPages(names));
  return new Map(names.slice(first, first + 9).map((each, number) => [each, String(number + 1)]));
}

function turnKeys() {
  const names = shownClasses();
  keyPage = (keyPage + 1) % keyPages(names);
  chips();
  say(`Keys 1 to 9: ${[...digitKeys(names).keys()].map(visible).join(", ")}.`);
}

function chip(text, digit) {
  const key = digit ? [element("kbd", { textContent: digit })] : [];
  return element("button", { type: "button", "aria-pressed": String(pressedClass(text)), onclick: (event) => pick(text, event.timeStamp) }, element("span", { textContent: visible(text) }), ...key);
}

function chips() {
  $("found").hidden = true;
  if (!current || $("classes").hidden) return;
  const names = shownClasses();
  const keys = digitKeys(names);
  const made = names.filter((each, number) => number < 30 || keys.has(each)).map((each) => chip(each, keys.get(each)));
  if (keyPages(names) > 1) made.push(element("button", { type: "button", className: "quiet", title: "Keys for the next nine classes", onclick: turnKeys }, element("span", { textContent: "next keys" }), element("kbd", { textContent: "0" })));
  $("chips").replaceChildren(...made);
}

function pick(text, pressed) {
  if (!current) return;
  if (current.kind === "class") correct({ kind: "class", name: text }, pressed);
  else if (current.kind === "classes") {
    if (!choice.delete(text)) choice.add(text);
    chips();
    ready();
  } else {
    boxClass = text;
    boxes?.setClass(text);
    chips();
  }
}

function find() {
  const wanted = $("class-find").value.trim();
  const known = classNames().filter((each) => each.toLowerCase().includes(wanted.toLowerCase())).slice(0, 12);
  const found = wanted ? known.map((each) => element("button", { type: "button", onclick: (event) => take(each, event.timeStamp) }, element("span", { textContent: visible(each) }))) : [];
  if (wanted && !classNames().includes(wanted)) found.push(element("button", { type: "button", onclick: (event) => take(wanted, event.timeStamp) }, element("span", { textContent: `add class “${visible(wanted)}”` })));
  $("found").replaceChildren(...found);
  $("found").hidden = !found.length;
}

function take(text, pressed) {
  if (!classNames().includes(text)) classes.answered.push(text);
  $("class-find").value = "";
  $("class-find").blur();
  pick(text, pressed);
  $("found").hidden = true;
}

function cluster(item) {
  const others = item?.others ?? [];
  $("cluster").hidden = !others.length;
  $("strip").replaceChildren(...others.slice(0, 24).map((each) => element("a", { href: `/samples/${each}`, target: "_blank" }, element("img", { src: `/thumbs/${each}?width=160`, loading: "lazy", alt: "near-duplicate" }))));
  $("cluster-title").textContent = `${others.length} near-same ${others.length === 1 ? "failure" : "failures"}`;
  $("cluster-share").checked = item?.alone !== true;
}

function boxesChanged() {
  if (current) current.edits = boxes.edited() ? boxes.all() : undefined;
  chips();
  ready();
}

/// What would be sent besides the verdict: a label that differs from the answer, or null.
function correction() {
  if (!current) return null;
  if (choice) {
    const own = new Set(current.answer.names);
    return own.size === choice.size && [...choice].every((each) => own.has(each)) ? null : { kind: "classes", names: [...choice] };
  }
  return boxes?.edited() ? { kind: "boxes", boxes: boxes.all() } : null;
}

function ready() {
  const changed = correction() !== null;
  $("enter").hidden = !changed;
  for (const button of document.querySelectorAll('[data-verdict="right"], [data-verdict="ignore"]')) button.disabled = !current || changed;
  if (boxes && current.kind === "boxes") $("box-state").textContent = changed ? `${boxes.all().length} boxes, corrected. Enter sends them.` : "Drag on the picture to draw a box.";
}

// --- verdicts

function correct(label, pressed) {
  if (label.kind === "class" && current.kind === "class" && label.name === current.answer.name) judge("right", pressed);
  else judge("wrong", pressed, label);
}

function sendCorrection(pressed) {
  const label = correction();
  if (!label) return;
  const missed = label.kind === "boxes" ? boxes.onlyAdded() : current.answer.names.every((each) => choice.has(each));
  judge(missed ? "missed" : "wrong", pressed, label);
}

function judge(verdict, pressed, label = null) {
  const item = current;
  if (!item || !item.shownAt || pressed - item.shownAt < MIN_SHOWN_MS || $("who").open) return;
  const correcting = label ?? correction();
  if (correcting && (verdict === "right" || verdict === "ignore")) {
    say("The answer was corrected: send the correction, or reset it.");
    return;
  }
  const others = $("cluster-share").checked ? item.others : [];
  const fleet = new Set(classes.fleet);
  const named = !correcting ? [] : correcting.kind === "class" ? [correcting.name] : correcting.kind === "classes" ? correcting.names : correcting.boxes.map((each) => each.name);
  const body = {
    act: act(), annotator: name, samples: [item.sample, ...others], verdict, label: correcting,
    // Every class that can be chosen was answered by a vehicle, or added by hand.
    add_classes: named.some((each) => !fleet.has(each)),
    blind: !item.revealed, took_s: Math.max(0, (pressed - item.shownAt) / 1000), after: item.after ?? null,
    reveal: order !== "random" && order !== "dealt",
  };
  const words = !named.length ? "" : correcting.kind === "boxes" ? `${named.length} boxes` : named.map(visible).join(", ") || "nothing";
  item.chosen = choice ? [...choice] : undefined;
  history.unshift({ act: body.act, item, sample: item.sample, verdict, words, count: body.samples.length, state: "saving" });
  keep({ path: "/api/verdicts", body, pressed: Date.now() });
  if (left !== null) left -= body.samples.length;
  count();
  say(`${verdict}. Next picture.`);
  next(pressed);
  list();
  flush();
}

function undo(entry) {
  if (!entry || entry.state === "undoing") return;
  const waiting = unsent.find((each) => each.body.act === entry.act);
  if (waiting && !waiting.inFlight) drop(waiting);
  else if (entry.state !== "refused") keep({ path: "/api/verdicts/undo", body: { act: act(), annotator: name, undoes: entry.act }, pressed: Date.now() });
  history = history.filter((each) => each !== entry);
  if (left !== null) left += entry.count;
  say(`${entry.verdict} taken back.`);
  back(entry);
  list();
  flush();
}

async function back(entry) {
  let item = entry.item;
  if (!item) {
    const answer = await ask(`/api/verdicts/items/${entry.sample}`);
    if (answer.status !== 200) return;
    item = answer.document;
  }
  if (current) { current.shownAt = 0; queue.unshift(current); }
  // The page cannot know yet what holds once it is taken back.
  item.after = null;
  item.revealed ||= entry.reveal !== undefined && entry.reveal !== null;
  queue = [item, ...queue.filter((each) => each.sample !== item.sample)];
  next(0);
}

function list() {
  $("last-empty").hidden = history.length > 0;
  $("undo").disabled = !history.length;
  $("last").replaceChildren(...history.slice(0, 12).map((entry) => {
    const what = element("div", { className: "what" }, element("b", { textContent: entry.verdict === "missed" ? "missed something" : entry.verdict }));
    if (entry.words) what.append(` ${entry.words}`);
    if (entry.count > 1) what.append(` × ${entry.count}`);
    const small = element("small", { textContent: note(entry) });
    small.classList.toggle("bad", entry.state === "refused" || entry.state === "waiting");
    what.append(small);
    const button = element("button", { type: "button", className: "button quiet small", textContent: entry.state === "refused" ? "Back to it" : "Undo", onclick: () => undo(entry) });
    button.setAttribute("aria-label", `${button.textContent}: ${entry.verdict} ${entry.words}`);
    return element("li", {}, element("img", { src: `/thumbs/${entry.sample}?width=160`, alt: "", loading: "lazy" }), what, button);
  }));
}

function note(entry) {
  if (entry.state === "refused") return `not recorded: ${entry.reason}`;
  if (entry.state === "waiting") return "not saved yet";
  if (entry.state === "saving") return "saving";
  const shown = entry.reveal;
  if (!shown) return entry.note ?? "";
  const percentile = shown.percentile === null ? "" : `, above ${(100 * shown.percentile).toFixed(1)} % of all frames`;
  return `${entry.note ? `${entry.note}; ` : ""}${visible(shown.trigger)}${percentile}`;
}

// --- keeping and sending

function keep(job) {
  unsent.push(job);
  storage.set(KEPT + job.body.act, JSON.stringify(job));
}

function drop(job) {
  unsent = unsent.filter((each) => each !== job);
  storage.remove(KEPT + job.body.act);
}

async function flush() {
  if (sending) return;
  sending = true;
  clearTimeout(timer);
  while (unsent.length) {
    const job = unsent[0];
    job.inFlight = true;
    const extra = job.path === "/api/verdicts" ? { age_s: Math.max(0, (Date.now() - job.pressed) / 1000) } : {};
    const answer = await ask(job.path, { ...job.body, ...extra });
    job.inFlight = false;
    const entry = history.find((each) => each.act === job.body.act);
    if (answer.status === 0 || answer.status >= 500 || answer.status === 429) {
      failures += 1;
      if (entry) entry.state = "waiting";
      wait(reason(answer));
      break;
    }
    failures = 0;
    drop(job);
    clearTrouble();
    if (answer.status < 300) settled(entry, job, answer.document);
    else refused(entry, job, reason(answer));
    list();
  }
  sending = false;
}

function settled(entry, job, given) {
  if (!entry || job.path !== "/api/verdicts") return;
  entry.state = "saved";
  entry.reveal = given.reveal;
  entry.count = given.samples.length;
  const out = Object.keys(given.left_out).length;
  if (out) entry.note = `${out} near-duplicates are left out`;
  if (job.body.label && job.body.add_classes) readClasses();
}

function refused(entry, job, why) {
  if (entry) { entry.state = "refused"; entry.reason = why; }
  const what = job.path === "/api/verdicts" ? `The verdict “${job.body.verdict}”` : "The undoing";
  trouble(`${what} was not recorded: ${why}.`, "Close", () => clearTrouble(true));
  sticky = true;
}

function wait(why) {
  const seconds = Math.min(10, 2 ** (failures - 1));
  const many = unsent.length === 1 ? "1 verdict is" : `${unsent.length} verdicts are`;
  trouble(`${many} not saved yet: ${why}. They are kept here, and tried again in ${seconds} s.`, "Try now", () => flush());
  timer = setTimeout(flush, 1000 * seconds);
  list();
}

function trouble(text, label, action) {
  $("trouble").replaceChildren(`${text} `, element("button", { type: "button", className: "button quiet small", textContent: label, onclick: action }));
  $("trouble").hidden = false;
}

// What was refused stays until it is closed: a later success must not hide it.
function clearTrouble(closed = false) {
  if (closed) sticky = false;
  if (!unsent.length && !sticky) $("trouble").hidden = true;
}

// --- keys

function typing(target) {
  return target.matches("input:not([type=checkbox]), select, textarea") || $("who").open || $("help").open;
}

const KEYS = {
  r: (t) => judge("right", t), w: (t) => judge("wrong", t), m: (t) => judge("missed", t), i: (t) => judge("ignore", t),
  u: () => undo(history.find((each) => each.state !== "refused")), s: () => skip(), b: () => newBox(),
  c: () => $("class-find").focus(), "/": () => $("class-find").focus(), "?": () => $("help").showModal(),
  a: () => share(!$("cluster-share").checked),
};

function share(together) {
  $("cluster-share").checked = together;
  if (current) current.alone = !together;
}

function skip() {
  if (!current) return;
  say("Skipped.");
  next(0);
}

function newBox() {
  if (boxes && current.kind === "boxes") boxes.addInTheMiddle();
}

document.addEventListener("keydown", (event) => {
  if (event.target === $("class-find")) {
    if (event.key === "Enter") { event.preventDefault(); $("found").querySelector("button")?.click(); }
    if (event.key === "Escape") { $("class-find").value = ""; find(); $("class-find").blur(); }
    return;
  }
  if (typing(event.target) || event.isComposing) return;
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); KEYS.u(); return; }
  if (event.ctrlKey || event.metaKey) return;
  if (boxes && current?.kind === "boxes" && boxes.key(event)) { event.preventDefault(); return; }
  // A key that is held down is one press.
  if (event.repeat || event.altKey) return;
  if (event.key === "Enter") {
    if (!event.target.matches("button, a, summary") && correction()) { event.preventDefault(); sendCorrection(event.timeStamp); }
    return;
  }
  if (event.key === "Escape" && choice) { choice = new Set(current.answer.names); chips(); ready(); return; }
  if (/^[0-9]$/.test(event.key)) {
    const names = shownClasses();
    const keys = digitKeys(names);
    const text = $("classes").hidden ? undefined : names.find((each) => keys.get(each) === event.key);
    if (event.key === "0" && !$("classes").hidden && keyPages(names) > 1) { event.preventDefault(); turnKeys(); return; }
    if (text !== undefined) { event.preventDefault(); pick(text, event.timeStamp); }
    return;
  }
  const action = KEYS[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(event.timeStamp); }
});

for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", (event) => judge(button.dataset.verdict, event.timeStamp));
$("enter").addEventListener("click", (event) => sendCorrection(event.timeStamp));
$("undo").addEventListener("click", () => KEYS.u());
$("cluster-share").addEventListener("change", (event) => share(event.target.checked));
$("class-find").addEventListener("input", find);
$("help-button").addEventListener("click", () => $("help").showModal());
$("name-button").addEventListener("click", askName);
$("box-new").addEventListener("click", newBox);
$("box-remove").addEventListener("click", () => boxes?.remove());
$("box-reset").addEventListener("click", () => boxes?.reset());
addEventListener("online", flush);

// --- who, and the start

function askName() {
  $("who-name").value = name;
  $("who").showModal();
}

$("who").addEventListener("close", () => {
  const given = $("who-name").value.trim();
  if (!given && !name) { askName(); return; }
  if (given && given !== name) { name = given; storage.set("misfire.name", name); start(); }
});
$("who").addEventListener("cancel", (event) => { if (!name) event.preventDefault(); });

async function readClasses() {
  const answer = await ask("/api/verdicts/classes");
  if (answer.status === 200) { classes = answer.document; chips(); }
}

async function start() {
  $("name-button").textContent = visible(name);
  $("name-button").disabled = account !== "";
  queue = []; handed = new Set(); cursor = ""; ended = false; left = null; current = null; history = [];
  await Promise.all([fill(), readClasses(), readActs()]);
}

async function readActs() {
  const answer = await ask(`/api/verdicts/acts?${new URLSearchParams({ by: name, limit: "12" })}`);
  if (answer.status !== 200) return;
  const words = (label) => !label ? "" : label.kind === "boxes" ? `${label.boxes.length} boxes` : label.kind === "class" ? visible(label.name) : (label.names ?? []).map(visible).join(", ");
  const known = new Set(history.map((each) => each.act));
  history.push(...answer.document.filter((each) => !known.has(each.act)).map((each) => ({ act: each.act, sample: each.sample, verdict: each.verdict, count: each.count, state: "saved", words: each.verdict === "right" ? "" : words(each.label) })));
  list();
}

function recover() {
  const kept = storage.keys().filter((key) => key.startsWith(KEPT));
  for (const key of kept) {
    try { unsent.push(JSON.parse(storage.get(key))); } catch { storage.remove(key); }
  }
  unsent.sort((a, b) => a.pressed - b.pressed);
  flush();
}

recover();
if (name) start(); else askName();
