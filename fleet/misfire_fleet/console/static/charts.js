"use strict";
// Draws the charts of a page from one answer of the API: <div id="charts" data-url= data-page=> with [data-chart].
(() => {
  const root = document.getElementById("charts");
  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling.textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        // Without https, browsers give no clipboard: the text is selected instead.
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "press Ctrl C";
      }
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    });
  if (!root) return;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const charts = [];
  let data = null;

  function tones() {
    return dark.matches
      ? { ink: "#e8ebf0", soft: "#98a2b1", line: "#2b313b", cool: "#74aee8", accent: "#ff8a50", good: "#5fce92", warn: "#e9b253", lines: ["#ff8a50", "#74aee8", "#c792ea", "#5fce92", "#e9b253", "#f07aa6"] }
      : { ink: "#1b2029", soft: "#626c7b", line: "#dfe3e9", cool: "#2f6fb2", accent: "#c2480f", good: "#1d7544", warn: "#9a5b00", lines: ["#c2480f", "#2f6fb2", "#7b3fa0", "#1d7544", "#9a5b00", "#b0306a"] };
  }

  const short = (value) => value === null || value === undefined ? "" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString();
  const twice = (number) => String(number).padStart(2, "0");
  function utc(at) {
    const day = new Date(at * 1000);
    return `${day.getUTCFullYear()}-${twice(day.getUTCMonth() + 1)}-${twice(day.getUTCDate())} ${twice(day.getUTCHours())}:${twice(day.getUTCMinutes())}`;
  }

  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  function moment(at) {
    const day = new Date(at * 1000);
    const time = `${twice(day.getUTCHours())}:${twice(day.getUTCMinutes())}`;
    return time === "00:00" ? `${day.getUTCDate()} ${months[day.getUTCMonth()]}` : time;
  }

  function axes(tone, kind) {
    const base = { stroke: tone.soft, grid: { stroke: tone.line, width: 1 }, ticks: { stroke: tone.line, width: 1 }, font: "12px system-ui, sans-serif" };
    return [{ ...base, values: (_, ticks) => ticks.map(moment), space: 64 }, { ...base, size: 56, values: (_, ticks) => ticks.map(kind === "count" ? (tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "") : short) }];
  }

  function make(name, series, values, { bands = [], kind = "score", height = 250 } = {}) {
    const place = root.querySelector(`[data-chart="${name}"]`);
    if (!place) return;
    if (!values[0].length) { place.textContent = "Nothing in this time."; return; }
    const tone = tones();
    const options = {
      width: place.clientWidth, height, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"),
      cursor: { sync: { key: root.dataset.page } }, legend: { live: true },
      scales: { x: { time: true }, y: { range: (_, low, high) => [kind === "score" && low >= 0 ? 0 : Math.min(0, low), high > 0 ? high * 1.05 : 1] } },
      axes: axes(tone, kind), bands,
      series: [{ label: "UTC", value: (_, at) => (at === null ? "" : utc(at)) }, ...series.map((each) => ({ spanGaps: false, points: { show: false }, value: (_, value) => short(value), ...each }))],
    };
    charts.push({ chart: new uPlot(options, values, place), place, height });
  }

  const fade = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");

  // p50, p90 and p99 of a distribution, shaded between.
  function shaded(label, tone, bands) {
    return {
      series: [
        { label: `${label} p50`, stroke: tone, width: 2 },
        { label: "p90", stroke: tone, width: 1 },
        { label: "p99", stroke: fade(tone, 0.5), width: 1 },
      ],
      values: [bands.p50, bands.p90, bands.p99],
    };
  }

  function constant(value) { return data.at.map(() => value); }

  function drift() {
    const tone = tones();
    const all = shaded("all", tone.cool, data.all);
    const series = [...all.series, { label: "stream p50", stroke: tone.accent, width: 2 }, { label: "stream p90", stroke: tone.accent, width: 1 }];
    const values = [data.at, ...all.values, data.stream.p50, data.stream.p90];
    if (data.reference)
      for (const level of ["p50", "p90", "p99"]) {
        series.push({ label: `${data.reference.source} ${level}`, stroke: tone.soft, width: 1, dash: [5, 5] });
        values.push(constant(data.reference[level]));
      }
    make("whole", series, values, { height: 300, bands: [{ series: [2, 1], fill: fade(tone.cool, 0.25) }, { series: [3, 2], fill: fade(tone.cool, 0.12) }] });
    const shown = data.groups.filter((each) => each.p90_over_time.length);
    make("groups", shown.map((each, at) => ({ label: each.name, stroke: tone.lines[at % tone.lines.length], width: 2, spanGaps: true })), [data.at, ...shown.map((each) => each.p90_over_time)], { height: 240 });
  }

  function vehicle() {
    const tone = tones();
    const fleet = shaded("fleet", tone.soft, data.fleet);
    make(
      "scores",
      [...fleet.series, { label: "vehicle p50", stroke: tone.accent, width: 2 }, { label: "p90", stroke: tone.accent, width: 2, dash: [6, 3] }, { label: "p99", stroke: fade(tone.accent, 0.6), width: 1 }],
      [data.at, ...fleet.values, data.vehicle.p50, data.vehicle.p90, data.vehicle.p99],
      { height: 280, bands: [{ series: [2, 1], fill: fade(tone.soft, 0.22) }, { series: [3, 2], fill: fade(tone.soft, 0.1) }] },
    );
    const bars = uPlot.paths.bars({ size: [0.8, 40] });
    make("uploads", [{ label: "uploads", stroke: tone.cool, fill: fade(tone.cool, 0.6), paths: bars }, { label: "random stream", stroke: tone.accent, fill: fade(tone.accent, 0.7), paths: bars }], [data.uploads.at, data.uploads.count, data.uploads.random], { kind: "count", height: 190 });
    make("spool", [{ label: "waiting in the spool", stroke: tone.cool, fill: fade(tone.cool, 0.2), width: 2 }], [data.health.at, data.health.pending], { kind: "count", height: 190 });
    make("drops", [{ label: "frames dropped or unreadable", stroke: tone.warn, width: 2 }, { label: "degradation step", stroke: tone.accent, width: 2, dash: [4, 3] }], [data.health.at, data.health.dropped, data.health.degradation], { kind: "count", height: 190 });
  }

  const pages = { drift, vehicle };
  function draw() {
    while (charts.length) charts.pop().chart.destroy();
    pages[root.dataset.page]();
  }

  async function load(url) {
    try {
      const answer = await fetch(url);
      if (!answer.ok) throw new Error(`${answer.status}`);
      data = await answer.json();
      draw();
    } catch (error) {
      for (const place of root.querySelectorAll("[data-chart]")) place.textContent = `The charts could not be loaded (${error.message}); reload the page.`;
    }
  }

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { for (const { chart, place, height } of charts) chart.setSize({ width: place.clientWidth, height }); }, 120);
  });
  dark.addEventListener("change", () => { if (data) draw(); });
  const choice = document.getElementById("history");
  if (choice)
    choice.addEventListener("change", () => load(`${root.dataset.url}?${new URLSearchParams(new FormData(choice))}`));
  load(choice ? `${root.dataset.url}?${new URLSearchParams(new FormData(choice))}` : root.dataset.url);
})();
