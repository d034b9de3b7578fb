// The settings: own password, sessions and tokens; accounts, for admins. The page is loaded again after a change.

import { send } from "./requests.js";

const $ = (id) => document.getElementById(id);

function done(answer, then = () => location.reload()) {
  $("trouble").hidden = answer.ok;
  $("trouble").textContent = answer.problem && `${answer.problem}.`;
  if (answer.ok) then(answer.found);
  else $("trouble").scrollIntoView({ block: "nearest" });
}

const path = (text) => `/api/users/${encodeURIComponent(text)}`;

function showLink(name, link) {
  $("user-link").hidden = false;
  $("user-link").querySelector("b").textContent = name;
  $("user-link").querySelector("code").textContent = location.origin + link.path;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-path], button[data-user-link]");
  if (!button) return;
  button.disabled = true;
  const name = button.dataset.userLink;
  if (name) done(await send("POST", `${path(name)}/link`, {}), (link) => showLink(name, link));
  else {
    const body = button.dataset.body ? JSON.parse(button.dataset.body) : undefined;
    const then = button.dataset.then ? () => location.assign(button.dataset.then) : undefined;
    done(await send(button.dataset.method, button.dataset.path, body), then);
  }
  button.disabled = false;
});

document.addEventListener("change", async (event) => {
  const select = event.target.closest("select[data-user]");
  if (!select) return;
  const answer = await send("PATCH", path(select.dataset.user), { role: select.value });
  done(answer);
  if (!answer.ok) select.value = [...select.options].find((each) => each.defaultSelected).value;
});

$("password-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { current: $("current")?.value ?? "", new: $("new").value };
  done(await send("PUT", "/api/me/password", body));
});

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = {
    title: $("token-title").value,
    role: $("token-role").value,
    areas: [...$("token-areas").selectedOptions].map((each) => each.value),
    days: Number($("token-days").value),
  };
  done(await send("POST", "/api/me/tokens", body), (made) => {
    $("token-secret").hidden = false;
    $("token-secret").querySelector("code").textContent = made.secret;
    $("token-form").reset();
  });
});

$("user-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("user-name").value.trim().toLowerCase();
  done(await send("POST", "/api/users", { name, role: $("user-role").value }), (made) => showLink(name, made.link));
});
