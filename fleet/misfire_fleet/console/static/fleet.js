"use strict";
// Keeps the fleet's table up to date by server-sent events, and draws the map from the rows.
(() => {
  const table = document.getElementById("vehicles");
  const live = document.getElementById("live");
  const rows = new Map();
  if (table) for (const row of table.tBodies[0].rows) rows.set(row.dataset.name, row);

  // ---- ages

  function age(at) {
    if (!at) return "never";
    const gone = Date.now() / 1000 - at;
    if (gone < -60) return "in the future";
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]])
      if (gone >= size) return `${Math.round(gone / size)} ${unit} ago`;
    return `${Math.max(0, Math.round(gone))} s ago`;
  }

  function tick() {
    for (const cell of document.querySelectorAll('[data-cell="seen"]')) cell.textContent = age(Number(cell.dataset.at));
  }
  setInterval(tick, 10000);

  // ---- live events

  function put(row, cells) {
    const states = row.querySelector('[data-cell="state"]');
    if (row.dataset.state !== cells.state) {
      for (const [state, change] of [[row.dataset.state, -1], [cells.state, 1]]) {
        const count = document.querySelector(`[data-count="${state}"]`);
        if (count) count.textContent = (Number(count.textContent.replaceAll(",", "")) + change).toLocaleString("en");
      }
      row.dataset.state = cells.state;
      states.querySelector(".dot").className = `dot ${cells.state}`;
      states.querySelector(".text").textContent = cells.state;
    }
    for (const name of ["bundle", "spool", "age", "rate"]) row.querySelector(`[data-cell="${name}"]`).textContent = cells[name];
    const seen = row.querySelector('[data-cell="seen"]');
    seen.dataset.at = cells.seen ?? "";
    seen.textContent = age(cells.seen);
    const drops = row.querySelector('[data-cell="drops"]');
    const why = document.createElement("span");
    why.className = "why";
    why.textContent = cells.why;
    drops.replaceChildren(why, " " + cells.drops);
    if (cells.lat === null) { delete row.dataset.lat; delete row.dataset.lon; }
    else { row.dataset.lat = cells.lat; row.dataset.lon = cells.lon; }
    row.classList.remove("fresh");
    void row.offsetWidth; // restarts the animation
    row.classList.add("fresh");
  }

  function take(event) {
    const news = JSON.parse(event.data);
    let missing = 0;
    for (const [name, cells] of Object.entries(news.rows)) {
      const row = rows.get(name);
      if (row) put(row, cells);
      else missing += 1;
    }
    for (const name of news.gone) { rows.get(name)?.remove(); rows.delete(name); }
    live.textContent = `live, changed ${new Date().toLocaleTimeString("en-GB", { timeZone: "UTC" })} UTC`;
    draw();
  }

  function listen() {
    const source = new EventSource("/api/fleet/events");
    source.addEventListener("open", () => { live.textContent = "live"; });
    source.addEventListener("rows", take);
    // The server no longer knows what this page missed: everything is read again.
    source.addEventListener("reset", () => location.reload());
    source.addEventListener("error", () => {
      live.textContent = source.readyState === EventSource.CLOSED ? "not live: reload to try again" : "connecting again …";
    });
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  // ---- map: equirectangular about its middle, which is true to a few percent over a continent

  const canvas = document.getElementById("map");
  const note = document.getElementById("map-note");
  const KM = 111.32;
  let view = null; // middle in degrees, and pixels per km
  let drawn = [];

  function places() {
    const found = [];
    for (const [name, row] of rows)
      if (row.dataset.lat) found.push({ name, row, lat: Number(row.dataset.lat), lon: Number(row.dataset.lon), state: row.dataset.state });
    return found;
  }

  function fit() {
    const found = places();
    if (!found.length) { view = null; return; }
    const lats = found.map((each) => each.lat), lons = found.map((each) => each.lon);
    const lat = (Math.min(...lats) + Math.max(...lats)) / 2, lon = (Math.min(...lons) + Math.max(...lons)) / 2;
    const high = Math.max(2, (Math.max(...lats) - Math.min(...lats)) * KM);
    const wide = Math.max(2, (Math.max(...lons) - Math.min(...lons)) * KM * Math.cos(lat * Math.PI / 180));
    view = { lat, lon, scale: 0.84 * Math.min(canvas.clientWidth / wide, canvas.clientHeight / high) };
  }

  function at(lat, lon) {
    const x = (lon - view.lon) * KM * Math.cos(view.lat * Math.PI / 180) * view.scale;
    return [canvas.clientWidth / 2 + x, canvas.clientHeight / 2 - (lat - view.lat) * KM * view.scale];
  }

  function nice(limit) {
    const power = 10 ** Math.floor(Math.log10(limit));
    return [5, 2, 1].map((each) => each * power).find((each) => each <= limit) ?? power;
  }

  function draw() {
    if (!canvas) return;
    if (!view) fit();
    const style = getComputedStyle(document.documentElement), body = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!view) return;
    // light-dark() is resolved only on a property, not in a custom one.
    const ink = body.color, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const tones = { online: colour("--good"), silent: "#e0a030", offline: dark ? "#7b8595" : "#98a1ae" };
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    grid(pen, dark);
    const groups = new Map();
    drawn = [];
    for (const each of places()) {
      const [x, y] = at(each.lat, each.lon);
      if (x < -20 || y < -20 || x > canvas.clientWidth + 20 || y > canvas.clientHeight + 20) continue;
      drawn.push({ ...each, x, y });
      const region = each.row.dataset.region;
      const sum = groups.get(region) ?? { x: 0, top: 1e9, count: 0 };
      groups.set(region, { x: sum.x + x, top: Math.min(sum.top, y), count: sum.count + 1 });
    }
    // Vehicles that need attention last, so that they lie on top.
    const order = ["offline", "online", "silent"];
    for (const each of [...drawn].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state))) {
      pen.beginPath();
      pen.arc(each.x, each.y, 4, 0, 7);
      pen.fillStyle = tones[each.state];
      pen.fill();
      pen.strokeStyle = dark ? "#191d24" : "#ffffff";
      pen.stroke();
    }
    pen.fillStyle = ink;
    pen.textAlign = "center";
    for (const [region, sum] of groups) pen.fillText(`${region} ${sum.count}`, sum.x / sum.count, Math.max(14, sum.top - 9));
    const km = nice(90 / view.scale), width = km * view.scale, y = canvas.clientHeight - 12;
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(12, y - 5); pen.lineTo(12, y); pen.lineTo(12 + width, y); pen.lineTo(12 + width, y - 5);
    pen.stroke();
    pen.textAlign = "left";
    pen.fillText(km >= 1 ? `${km} km` : `${Math.round(km * 1000)} m`, 16 + width, y);
  }

  function grid(pen, dark) {
    const step = nice(canvas.clientHeight / view.scale / KM / 2);
    pen.strokeStyle = dark ? "#2b313b" : "#dfe3e9";
    pen.fillStyle = dark ? "#98a2b1" : "#626c7b";
    pen.textAlign = "left";
    const half = canvas.clientHeight / view.scale / KM / 2;
    for (let lat = Math.ceil((view.lat - half) / step) * step; lat < view.lat + half; lat += step) {
      const y = at(lat, view.lon)[1];
      pen.beginPath(); pen.moveTo(0, y); pen.lineTo(canvas.clientWidth, y); pen.stroke();
      pen.fillText(`${Number(lat.toFixed(4))}°`, 4, y - 3);
    }
    const side = canvas.clientWidth / view.scale / KM / 2 / Math.cos(view.lat * Math.PI / 180);
    for (let lon = Math.ceil((view.lon - side) / step) * step; lon < view.lon + side; lon += step) {
      const x = at(view.lat, lon)[0];
      pen.beginPath(); pen.moveTo(x, 0); pen.lineTo(x, canvas.clientHeight); pen.stroke();
      if (x > 40) pen.fillText(`${Number(lon.toFixed(4))}°`, x + 3, 12);
    }
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    if (!view) return;
    const scale = Math.min(2000, Math.max(0.005, view.scale * factor));
    const shift = (1 / view.scale - 1 / scale) / KM;
    view.lon += (x - canvas.clientWidth / 2) * shift / Math.cos(view.lat * Math.PI / 180);
    view.lat -= (y - canvas.clientHeight / 2) * shift;
    view.scale = scale;
    draw();
  }

  function pan(x, y) {
    view.lon -= x / view.scale / KM / Math.cos(view.lat * Math.PI / 180);
    view.lat = Math.max(-85, Math.min(85, view.lat + y / view.scale / KM));
    draw();
  }

  function nearest(event) {
    const [x, y] = [event.offsetX, event.offsetY];
    let best = null;
    for (const each of drawn) {
      const far = Math.hypot(each.x - x, each.y - y);
      if (far < 10 && (!best || far < best.far)) best = { ...each, far };
    }
    return best;
  }

  if (canvas) {
    let held = null, moved = 0;
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY); }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; moved = 0; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (held && view) {
        moved += Math.hypot(event.clientX - held[0], event.clientY - held[1]);
        pan(event.clientX - held[0], event.clientY - held[1]);
        held = [event.clientX, event.clientY];
        return;
      }
      const found = nearest(event);
      note.textContent = found ? `${found.name}, ${found.state}` : "";
      canvas.style.cursor = found ? "pointer" : "grab";
    });
    canvas.addEventListener("pointerup", (event) => {
      held = null;
      const found = moved < 4 ? nearest(event) : null;
      if (!found) return;
      for (const row of rows.values()) row.classList.remove("found");
      found.row.classList.add("found");
      found.row.scrollIntoView({ block: "center" });
      found.row.querySelector("a").focus({ preventScroll: true });
    });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      if (event.key === "+" || event.key === "=") zoom(1.4);
      else if (event.key === "-") zoom(1 / 1.4);
      else if (event.key === "0") { fit(); draw(); }
      else if (moves[event.key] && view) pan(...moves[event.key]);
      else return;
      event.preventDefault();
    });
    for (const button of document.querySelectorAll("[data-map]"))
      button.addEventListener("click", () => {
        if (button.dataset.map === "all") { fit(); draw(); }
        else zoom(button.dataset.map === "in" ? 1.5 : 1 / 1.5);
      });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    addEventListener("resize", draw);
    draw();
  }
  tick();
  listen();
})();
