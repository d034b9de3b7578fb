// Signing in, and setting a password by a one-time link.

import { localPath, send } from "./requests.js";

const form = document.getElementById("enter-form");
const trouble = document.getElementById("trouble");
const value = (id) => document.getElementById(id)?.value ?? "";

function say(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const welcome = form.dataset.to === "welcome";
  if (welcome && value("password") !== value("again")) return say("The passwords differ.");
  const body = { name: value("name"), password: value("password") };
  if (welcome) body.link = location.hash.slice(1) || "none";
  const button = form.querySelector("button");
  button.disabled = true;
  const answer = await send("POST", welcome ? "/api/welcome" : "/api/session", body);
  button.disabled = false;
  if (!answer.ok) return say(`${answer.problem}.`);
  location.replace(localPath(new URLSearchParams(location.search).get("next") ?? "/"));
});
