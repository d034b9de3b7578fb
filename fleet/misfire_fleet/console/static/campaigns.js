// Campaigns: the form makes JSON for the API, and buttons move a campaign. Every write goes through /api/.
"use strict";

const problem = document.getElementById("problem");

function complain(text) {
  problem.textContent = text;
  problem.hidden = !text;
  if (text) problem.scrollIntoView({ block: "nearest" });
}

async function ask(method, path, body) {
  complain("");
  let answer;
  try {
    answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    complain("The console does not answer. Nothing was changed.");
    return null;
  }
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const detail = found.detail;
  complain(Array.isArray(detail) ? detail.map((each) => each.loc.slice(1).join(".") + ": " + each.msg).join("; ") : detail || answer.statusText);
  return null;
}

function listed(text) {
  return text.split(",").map((each) => each.trim()).filter(Boolean);
}

function value(text) {
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function pairs(text, texts) {
  const found = {};
  for (const each of listed(text)) {
    const at = each.indexOf("=");
    if (at < 1) throw new Error(each + ": expected KEY=VALUE");
    const right = each.slice(at + 1).trim();
    found[each.slice(0, at).trim()] = texts ? right : value(right);
  }
  return found;
}

function spec(form) {
  const of = (name) => form.elements[name].value.trim();
  const made = { name: of("name"), note: of("note"), priority: Number(of("priority") || 5), who: {}, what: {}, how_much: {} };
  made.who.vehicles = listed(of("who.vehicles"));
  made.who.bundles = listed(of("who.bundles"));
  made.who.tags = pairs(of("who.tags"), true);
  made.who.context = pairs(of("who.context"), false);
  const by = of("by");
  if (by === "budget") made.what.budget = true;
  else if (by) {
    if (of("value") === "") throw new Error("value: say how high the score has to be");
    made.what[by] = Number(of("value"));
  }
  if (of("what.score")) made.what.score = of("what.score");
  if (of("what.when")) made.what.when = of("what.when");
  made.what.slice = pairs(of("what.slice"), false);
  if (of("near.sample")) {
    made.what.near = { sample: of("near.sample") };
    if (of("near.similarity")) made.what.near.similarity = Number(of("near.similarity"));
  }
  if (of("what.cool_down_s")) made.what.cool_down_s = Number(of("what.cool_down_s"));
  if (of("how_much.samples")) made.how_much.samples = Number(of("how_much.samples"));
  if (of("gb")) made.how_much.bytes = Math.round(Number(of("gb")) * 1e9);
  if (of("how_much.per_cluster")) made.how_much.per_cluster = Number(of("how_much.per_cluster"));
  if (of("until")) made.until = of("until") + "Z";
  made.privacy = listed(of("privacy"));
  return made;
}

function read(form) {
  if (!form.reportValidity()) return null;
  try {
    return spec(form);
  } catch (error) {
    complain(error.message);
    return null;
  }
}

const form = document.getElementById("campaign");
if (form) {
  const sample = new URLSearchParams(location.search).get("near");
  if (sample) form.elements["near.sample"].value = sample;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const made = read(form);
    const kept = made && (await ask("POST", "/api/campaigns", made));
    if (kept) location.assign("/campaigns/" + encodeURIComponent(kept.name));
  });
  document.getElementById("try").addEventListener("click", async (event) => {
    const made = read(form);
    if (!made) return;
    event.target.disabled = true;
    const found = await ask("POST", "/api/campaigns/dry-run", { spec: made });
    event.target.disabled = false;
    if (!found) return;
    const section = document.getElementById("estimate");
    const notes = section.querySelector("ul");
    section.querySelector(".text").textContent = found.text.split("\n").slice(0, found.refused ? 1 : undefined).filter((line) => !found.notes.includes(line)).join("\n");
    notes.replaceChildren(...found.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
    section.hidden = false;
    section.scrollIntoView({ block: "nearest" });
  });
}

const moves = document.querySelector(".moves");
if (moves) {
  moves.addEventListener("click", async (event) => {
    const move = event.target.dataset.move;
    if (!move) return;
    const name = moves.dataset.campaign;
    if (move === "end" && !confirm("End " + name + " for good? It cannot be started again.")) return;
    const reason = document.getElementById("reason").value;
    event.target.disabled = true;
    const body = move === "dry-run" ? {} : { reason };
    if (await ask("POST", "/api/campaigns/" + encodeURIComponent(name) + "/" + move, body)) location.reload();
    event.target.disabled = false;
  });
}

const budget = document.getElementById("budget");
if (budget) {
  budget.addEventListener("submit", async (event) => {
    event.preventDefault();
    const gb = budget.elements.gb.value;
    const body = { bytes_per_day: gb === "" ? null : Math.round(Number(gb) * 1e9) };
    if (await ask("PUT", "/api/budget", body)) location.reload();
  });
}
