// The gallery: select by click, Shift and keys, one key for each verdict, undo, pins, selections, deletion, views.
//
// cards --picked--> ids --one key--> /api/... one request for each sample, a few at once --> marks, undo
//
// Each verdict is an act of its own in the ledger, so undo takes back what this page gave, and nothing else.

const $ = (id) => document.getElementById(id);
const AT_ONCE = 4; // requests under way
const MOST = 500; // samples of one key
const picked = new Map(); // id -> true, in the order of picking
const undone = []; // functions that take the last acts back, the newest last
let last = null; // the card that was picked last, where a range begins
let busy = false;

const cards = () => [...document.querySelectorAll("#gallery .card")];
const focused = () => document.activeElement?.closest?.("#gallery .card") ?? null;
const act = () => [...crypto.getRandomValues(new Uint8Array(15))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// Storage may be forbidden; then the name is asked again.
const stored = {
  get: (key) => { try { return localStorage.getItem(key) ?? ""; } catch { return ""; } },
  set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* asked again */ } },
};

let toastTimer = 0;
export function say(text, bad = false) {
  const toast = $("toast");
  toast.textContent = text;
  toast.classList.toggle("bad", bad);
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, bad ? 12000 : 5000);
}

export async function ask(method, path, body) {
  try {
    // A write states the length of its body, so each has one.
    const options = { method, cache: "no-store", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) };
    const answer = await fetch(path, options);
    const document_ = await answer.json().catch(() => ({}));
    return { ok: answer.ok, status: answer.status, document: document_ };
  } catch {
    return { ok: false, status: 0, document: { detail: "the console cannot be reached" } };
  }
}

export const reason = (answer) => {
  const detail = answer.document.detail;
  return Array.isArray(detail) ? detail.map((each) => `${each.loc.at(-1)}: ${each.msg}`).join("; ") : detail || `status ${answer.status}`;
};

// --- a question in a dialog: resolves to {text, check}, or null

export function question({ title, text = "", label = "", value = "", check = "", yes = "OK", list = false }) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-text").hidden = !text;
  $("ask-field").hidden = !label;
  $("ask-label").textContent = label;
  $("ask-input").value = value;
  $("ask-input").required = Boolean(label);
  if (list) $("ask-input").setAttribute("list", "ask-list"); else $("ask-input").removeAttribute("list");
  $("ask-check-field").hidden = !check;
  $("ask-check-label").textContent = check;
  $("ask-check").checked = false;
  $("ask-yes").textContent = yes;
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? { text: $("ask-input").value.trim(), check: $("ask-check").checked } : null);
    dialog.showModal();
    if (label) $("ask-input").focus();
  });
}

async function annotator() {
  // With accounts, people judge in their own name only.
  if ($("views")?.dataset.person) return $("views").dataset.person;
  const known = stored.get("misfire.name");
  if (known) return known;
  const answer = await question({ title: "Who judges?", text: "Each verdict is recorded with your name.", label: "Name" });
  if (!answer?.text) return "";
  stored.set("misfire.name", answer.text);
  return answer.text;
}

// --- picking

function mark(card, on) {
  card.classList.toggle("picked", on);
  card.querySelector(".pick")?.setAttribute("aria-checked", String(on));
}

function pick(card, on = !picked.has(card.dataset.id)) {
  if (on) picked.set(card.dataset.id, true); else picked.delete(card.dataset.id);
  // In the view of boxes, several cards are of one sample.
  cards().filter((each) => each.dataset.id === card.dataset.id).forEach((each) => mark(each, on));
  last = card;
  show();
}

function range(card) {
  const all = cards();
  const from = all.indexOf(last), to = all.indexOf(card);
  if (from < 0 || to < 0) { pick(card, true); return; }
  all.slice(Math.min(from, to), Math.max(from, to) + 1).forEach((each) => { picked.set(each.dataset.id, true); mark(each, true); });
  show();
}

function clear() {
  picked.clear();
  cards().forEach((card) => mark(card, false));
  show();
}

function show() {
  const bar = $("acts");
  bar.hidden = picked.size === 0 && undone.length === 0;
  document.body.classList.toggle("picking", picked.size > 0);
  $("acts-count").textContent = picked.size ? `${picked.size.toLocaleString("en")} selected` : "nothing selected";
  bar.querySelectorAll("button").forEach((button) => { button.disabled = picked.size === 0; });
  $("undo").disabled = undone.length === 0;
  bar.querySelector('[data-act="similar"]').disabled = picked.size !== 1;
}

// Keys work on what is selected, or on the picture in focus.
function chosen() {
  if (picked.size) return [...picked.keys()];
  const card = focused();
  return card ? [card.dataset.id] : [];
}

const of = (id) => cards().filter((card) => card.dataset.id === id);

function move(step, extend) {
  const all = cards();
  if (!all.length) return;
  const at = all.indexOf(focused());
  const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))];
  next.querySelector(".open").focus();
  next.scrollIntoView({ block: "nearest" });
  if (extend) { if (at >= 0) pick(all[at], true); pick(next, true); }
}

function columns() {
  const all = cards();
  const top = all[0]?.offsetTop;
  const count = all.findIndex((card) => card.offsetTop !== top);
  return count < 0 ? Math.max(1, all.length) : count;
}

// --- acts

async function each(ids, work, doing) {
  const todo = [...ids];
  const failed = [];
  let done = 0;
  busy = true;
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (todo.length) {
      const id = todo.shift();
      const answer = await work(id);
      if (!answer.ok) failed.push(reason(answer));
      done += 1;
      if (ids.length > 8) say(`${doing}: ${done} of ${ids.length}`);
    }
  }));
  busy = false;
  return failed;
}

function said(id, verdict) {
  of(id).forEach((card) => {
    card.dataset.verdict = verdict;
    const text = card.querySelector(".said");
    if (text) { text.dataset.said = verdict; text.textContent = verdict === "none" ? "" : verdict; }
  });
}

async function judge(verdict) {
  const ids = chosen().slice(0, MOST);
  if (!ids.length || busy) return;
  const name = await annotator();
  if (!name) return;
  const acts = new Map();
  const before = new Map(ids.map((id) => [id, of(id)[0]?.dataset.verdict ?? "none"]));
  const failed = await each(ids, async (id) => {
    const body = { act: act(), annotator: name, samples: [id], verdict, blind: false };
    const answer = await ask("POST", "/api/verdicts", body);
    if (answer.ok) { acts.set(id, body.act); said(id, verdict); }
    return answer;
  }, verdict);
  if (acts.size) {
    undone.push({
      words: `${acts.size} judged ${verdict}`,
      run: () => each([...acts.keys()], async (id) => {
        const answer = await ask("POST", "/api/verdicts/undo", { act: act(), annotator: name, undoes: acts.get(id) });
        if (answer.ok) said(id, before.get(id) ?? "none");
        return answer;
      }, "undo"),
    });
  }
  say(failed.length ? `${failed.length} not recorded: ${failed[0]}` : `${acts.size} judged ${verdict}. U takes it back.`, failed.length > 0);
  // One key after the other: with the keyboard, the next picture is in focus.
  if (!picked.size && !failed.length) move(1, false); else if (!failed.length) clear();
  show();
}

function pinned(ids, on) {
  ids.forEach((id) => of(id).forEach((card) => {
    card.classList.toggle("pinned", on);
    const sign = card.querySelector(".pin-mark");
    if (sign) sign.hidden = !on;
  }));
}

async function pin() {
  const ids = chosen().slice(0, MOST);
  if (!ids.length || busy) return;
  const on = !ids.every((id) => of(id)[0]?.classList.contains("pinned"));
  const answer = await ask("POST", "/api/pins", { samples: ids, pinned: on });
  if (!answer.ok) { say(`Not pinned: ${reason(answer)}`, true); return; }
  pinned(answer.document.changed, on);
  const { changed } = answer.document;
  if (changed.length) undone.push({
    words: on ? "pinned" : "pins taken away",
    run: async () => {
      const back = await ask("POST", "/api/pins", { samples: changed, pinned: !on });
      if (back.ok) pinned(changed, !on);
      return back.ok ? [] : [reason(back)];
    },
  });
  say(on ? `${ids.length} pinned.` : `${ids.length} not pinned any more.`);
  show();
}

async function collect() {
  const ids = chosen().slice(0, MOST);
  if (!ids.length || busy) return;
  const answer = await question({
    title: `Collect ${ids.length} ${ids.length === 1 ? "sample" : "samples"}`,
    text: "A selection collects samples by name. When it is full, make a snapshot of it on the page Datasets.",
    label: "Selection", value: stored.get("misfire.selection"), list: true,
  });
  if (!answer?.text) return;
  stored.set("misfire.selection", answer.text);
  const path = `/api/selections/${encodeURIComponent(answer.text)}`;
  const added = await ask("POST", path, { add: ids });
  if (!added.ok) { say(`Not collected: ${reason(added)}`, true); return; }
  if (added.document.changed) undone.push({
    words: `collected into ${answer.text}`,
    run: async () => {
      const back = await ask("POST", path, { remove: ids });
      return back.ok ? [] : [reason(back)];
    },
  });
  say(`${added.document.changed} added to ${answer.text}, which has ${added.document.count} now.`);
  clear();
}

async function remove() {
  const ids = chosen().slice(0, MOST);
  if (!ids.length || busy) return;
  const answer = await question({
    title: `Delete ${ids.length} ${ids.length === 1 ? "sample" : "samples"} for good?`,
    text: "Picture, scores, labels and verdicts are removed, and vehicles do not send them again. This cannot be undone.",
    label: "Reason", yes: "Delete",
  });
  if (!answer?.text) return;
  const done = await ask("POST", "/api/samples/delete", { samples: ids, reason: answer.text });
  if (!done.ok) { say(`Not deleted: ${reason(done)}`, true); return; }
  const { deleted, held } = done.document;
  clear();
  done.document.samples.forEach((id) => of(id).forEach((card) => card.remove()));
  say(`${deleted} deleted${held ? `, ${held} kept by a legal hold` : ""}.`, held > 0);
}

async function undo() {
  if (busy) return;
  const entry = undone.pop();
  if (!entry) { say("There is nothing to undo."); return; }
  const failed = await entry.run();
  say(failed.length ? `${failed.length} not taken back: ${failed[0]}` : `Taken back: ${entry.words}.`, failed.length > 0);
  show();
}

function similar() {
  const ids = chosen();
  if (ids.length === 1) location.href = `/uploads?similar=${ids[0]}`;
}

const ACTS = { pin, collect, similar, delete: remove, undo, clear };

// --- events

const gallery = $("gallery");
gallery?.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (!card || event.target.closest(".fold")) return;
  const box = event.target.closest(".pick");
  if (event.ctrlKey || event.metaKey) { if (box) pick(card); return; } // a new tab
  if (event.shiftKey) { event.preventDefault(); range(card); return; }
  // While some are selected, a click selects; else it opens.
  if (box || picked.size) { event.preventDefault(); pick(card); }
});

$("acts").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.verdict) judge(button.dataset.verdict);
  else ACTS[button.dataset.act]?.();
});

const VERDICT_KEYS = { r: "right", w: "wrong", m: "missed", i: "ignore" };
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea, dialog, canvas") || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const command = event.ctrlKey || event.metaKey;
  if (command && key === "a" && gallery) { event.preventDefault(); cards().forEach((card) => { picked.set(card.dataset.id, true); mark(card, true); }); show(); return; }
  if (command && key === "z") { event.preventDefault(); undo(); return; }
  if (command) return;
  if (key === "?") { $("keys").showModal(); return; }
  if (!gallery) return;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (key in steps && (focused() || event.target === document.body)) { event.preventDefault(); move(steps[key], event.shiftKey); return; }
  if (event.repeat) return; // a key that is held down is no verdict
  if (key in VERDICT_KEYS) { judge(VERDICT_KEYS[key]); return; }
  if ((key === "x" || key === " ") && focused() && !event.target.closest("button")) { event.preventDefault(); pick(focused()); return; }
  const acts = { p: pin, c: collect, s: similar, u: undo, Delete: remove, Escape: clear };
  acts[key]?.();
});

// Cards that scrolling adds keep what is selected.
document.body.addEventListener("htmx:afterSettle", () => cards().forEach((card) => mark(card, picked.has(card.dataset.id))));

// An empty filter is no part of the address, so that a link says only what matters.
$("filters").addEventListener("submit", (event) => {
  for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
});
addEventListener("pageshow", () => { for (const field of $("filters").elements) field.disabled = false; });
for (const field of $("filters").querySelectorAll("select, input[type=checkbox]")) {
  field.addEventListener("change", () => $("filters").requestSubmit());
}

$("keys-button").addEventListener("click", () => $("keys").showModal());
$("save-view").addEventListener("click", async () => {
  const answer = await question({ title: "Save this view", text: "It keeps all filters and the order.", label: "Name", check: "for everybody", yes: "Save" });
  if (!answer?.text) return;
  const query = location.search.replace(/^\?/, "");
  const saved = await ask("PUT", `/api/views/${encodeURIComponent(answer.text)}`, { query, shared: answer.check });
  if (saved.ok) location.reload(); else say(`Not saved: ${reason(saved)}`, true);
});
$("views").addEventListener("click", async (event) => {
  const button = event.target.closest("[data-view]");
  if (!button) return;
  const answer = await question({ title: `Delete the view ${button.dataset.view}?`, yes: "Delete" });
  if (!answer) return;
  const done = await ask("DELETE", `/api/views/${encodeURIComponent(button.dataset.view)}`);
  if (done.ok) button.closest(".view").remove(); else say(`Not deleted: ${reason(done)}`, true);
});
show();
