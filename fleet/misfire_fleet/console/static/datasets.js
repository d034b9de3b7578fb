// The page of datasets: makes a snapshot of a selection, or deletes the selection.

const table = document.getElementById("selections");
const problem = document.getElementById("problem");
const $ = (id) => document.getElementById(id);

async function write(method, path, body) {
  const options = { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) };
  const answer = await fetch(path, options).catch(() => null);
  if (answer?.ok) return answer.status === 204 ? {} : answer.json();
  const said = await answer?.json().catch(() => ({}));
  const detail = said?.detail ?? "the console cannot be reached";
  problem.textContent = Array.isArray(detail) ? detail.map((each) => `${each.loc.at(-1)}: ${each.msg}`).join("; ") : detail;
  problem.hidden = false;
  problem.scrollIntoView({ block: "nearest" });
  return null;
}

table?.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const row = button.closest("tr");
  const path = `/api/selections/${encodeURIComponent(row.dataset.name)}`;
  problem.hidden = true;
  if (button.dataset.act === "drop") {
    if (button.dataset.sure !== "yes") { button.dataset.sure = "yes"; button.textContent = "Really delete"; return; }
    if (await write("DELETE", path)) row.remove();
    return;
  }
  const dialog = $("make");
  $("make-name").value = row.dataset.name.replaceAll(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 40);
  dialog.returnValue = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    const body = {
      name: $("make-name").value.trim(), group_by: $("make-group").value, frozen: $("make-frozen").checked,
      holdout: Number($("make-holdout").value), test: Number($("make-test").value),
    };
    const made = await write("POST", `${path}/snapshot`, body);
    if (made) location.href = `/datasets?name=${encodeURIComponent(made.name)}`;
  };
  dialog.showModal();
});
