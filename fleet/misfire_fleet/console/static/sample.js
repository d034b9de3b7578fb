// The sample page: pins the sample.

const bar = document.getElementById("sample");
const pin = document.getElementById("pin");

pin.addEventListener("click", async () => {
  const on = pin.getAttribute("aria-pressed") !== "true";
  pin.disabled = true;
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ samples: [bar.dataset.id], pinned: on }) };
  const answer = await fetch("/api/pins", options).catch(() => null);
  pin.disabled = false;
  if (!answer?.ok) { pin.textContent = "not saved, try again"; return; }
  pin.setAttribute("aria-pressed", String(on));
  pin.textContent = on ? "pinned" : "pin";
});
