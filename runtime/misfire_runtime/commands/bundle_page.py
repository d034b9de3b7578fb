"""Renders a bundle as an HTML page: thresholds, risk by coverage, score histogram, reliability of losses.

manifest --> sections of tables and SVG curves --> one file without scripts, fonts or external links

The curves are drawn here, because a vehicle has no plotting library. Every text is escaped, because a
manifest may come from an unknown source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from misfire_runtime.bundle import Interval, Manifest, ScoreSpec

WIDTH, HEIGHT, MARGIN = 360, 220, 44
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #64748b; --line: #d7dde5;
  --a: #2563a8; --b: #c2410c; --bg: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e9ef; --soft: #94a3b8; --line: #334155; --a: #60a5fa; --b: #fb923c; --bg: #10161d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--bg);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
td.n { font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 100%; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 22rem; }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); }
.a { stroke: var(--a); fill: none; stroke-width: 2; }
.fa { fill: var(--a); opacity: .55; }
.fb { fill: var(--b); opacity: .75; }
.guide { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.dot { fill: var(--a); }
.whisker { stroke: var(--a); }
"""


@dataclass(frozen=True)
class Frame:
    """Maps the ranges `x` and `y` of the data to the drawing's area inside the margins."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Returns the pixel position of a data point, clipped to the area."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        inner = (WIDTH - MARGIN - 10, HEIGHT - MARGIN - 10)
        return MARGIN + min(max(across, 0.0), 1.0) * inner[0], 10 + (1 - min(max(up, 0.0), 1.0)) * inner[1]


def render_page(manifest: Manifest) -> str:
    """Returns the complete page as HTML text."""
    reports = manifest.extra.get("scores")
    known = reports if isinstance(reports, dict) else {}
    ordered = sorted(manifest.scores, key=lambda score: score.name != manifest.default_score)
    sections = "".join(_score_section(score, known.get(score.name), manifest) for score in ordered)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(manifest.label)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(manifest.label)}</h1>{_facts(manifest)}{sections}</body></html>\n"
    )


def _facts(manifest: Manifest) -> str:
    gate = manifest.extra.get("gate")
    image = manifest.input
    rows = [
        ("Task", manifest.task),
        ("Precision", manifest.precision),
        ("Created", manifest.created_at),
        (
            "Input",
            f"{image.name} [N,{image.channels},{image.height},{image.width}] {image.dtype}, {image.color}",
        ),
        ("Trigger score", manifest.default_score),
        ("By upload rate", manifest.rates_text),
        ("Why", str(gate.get("verdict", "")) if isinstance(gate, dict) else ""),
        ("Held out", _held_out(gate)),
        ("Accuracy", accuracy_text(manifest)),
        ("Further answers", "; ".join(further_text(manifest))),
        (origin(manifest).capitalize(), f"{manifest.lineage.dataset}, run {manifest.lineage.run_id}"),
    ]
    if manifest.parity is not None:
        largest = max(manifest.parity.max_abs.values(), default=0.0)
        rows.append(("Parity", f"max abs difference {largest:.1e} on {manifest.parity.images} images"))
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows if text)
    return f"<table>{body}</table>"


def accuracy_text(manifest: Manifest) -> str:
    """Returns the model's accuracy on the calibration frames; "" if the manifest has none."""
    found = _part(manifest.extra, "calibration")
    accuracy, frames, failures = (found.get(key) for key in ("accuracy", "frames", "failures"))
    if found.get("labelled") is False:
        return f"unknown: the {frames} calibration frames have no labels"
    if not isinstance(accuracy, int | float):
        return ""
    return f"{accuracy:.3f} on {frames} calibration frames, {failures} failures"


def further_text(manifest: Manifest) -> tuple[str, ...]:
    """Returns a sentence for each further answer of a network with several tasks."""
    reports = _part(manifest.extra, "further")
    lines = []
    for answer in manifest.further:
        report = _part(reports, answer.name)
        known = f", {len(answer.classes)} classes" if answer.classes else ""
        line = f"{answer.name}: {report.get('task', answer.kind)}{known}"
        if isinstance(report.get("accuracy"), int | float):
            line += f", accuracy {report['accuracy']:.3f}, {report.get('failures')} failures"
            line += f"; its gate chooses {report.get('trigger')}"
        else:
            line += ", no labels"
        lines.append(line)
    return tuple(lines)


def share_text(share: Interval | None) -> str:
    """Returns a share with its interval in percent; "no labels" if it could not be measured."""
    if share is None:
        return "no labels"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def origin(manifest: Manifest) -> str:
    """Returns what the data set was used for; the training data of a foreign model is unknown."""
    foreign = {"onnx", "torch"} & set(manifest.lineage.config)
    return "calibrated on" if foreign else "trained on"


def _held_out(gate: Any) -> str:
    """Returns the corruptions that the gate held out, and those without which the head was refitted."""
    shifts = gate.get("shifts") if isinstance(gate, dict) else None
    if not isinstance(shifts, list) or not shifts:
        return ""
    refitted = gate.get("refitted")
    known = isinstance(refitted, list) and refitted
    again = f"; the head was fitted again without {', '.join(map(str, refitted))}" if known else ""
    return f"corruptions {', '.join(map(str, shifts))}, severity {gate.get('severity')}{again}"


def _score_section(score: ScoreSpec, report: Any, manifest: Manifest) -> str:
    plots = ""
    if isinstance(report, dict):
        plots = _risk_coverage(report) + _histogram(report) + _reliability(report)
    mark = " (trigger)" if score.name == manifest.default_score else ""
    found = report.get("auroc") if isinstance(report, dict) else None
    auroc = f"; failure AUROC {found:.3f}" if isinstance(found, float) else ""
    return (
        f"<h2>{escape(score.name)}{mark}</h2><p>{escape(score.definition)}"
        f"{' (free)' if score.free else ''}{auroc}</p>{_points(score)}{_how(manifest)}"
        f"<div class=plots>{plots}</div>"
    )


def _points(score: ScoreSpec) -> str:
    if not score.operating_points:
        return "<p>No operating points: the calibration frames hold no failures, or nothing else.</p>"
    rows = ""
    for point in score.operating_points:
        rows += (
            f"<tr><td class=n>{point.upload_rate:.1%}</td><td class=n>{point.threshold:.4g}</td>"
            f"<td class=n>{share_text(point.failure_recall)}</td>"
            f"<td class=n>{share_text(point.failure_precision)}</td></tr>"
        )
    head = "<tr><th>uploads</th><th>threshold</th><th>failures found</th><th>precision</th></tr>"
    return f"<table>{head}{rows}</table>"


def _how(manifest: Manifest) -> str:
    """Returns a sentence about the frames that the table was measured on, if the manifest has them."""
    calibration = manifest.extra.get("calibration")
    folds = calibration.get("cross_fitted") if isinstance(calibration, dict) else None
    if not isinstance(folds, str):
        return ""
    return (
        "<p>Thresholds are set on all calibration frames; uploads, failures found and precision are those of "
        f"thresholds set on other frames ({escape(folds)}).</p>"
    )


def _risk_coverage(report: dict[str, Any]) -> str:
    curve = _part(report, "risk_coverage")
    coverage, risk = _numbers(curve.get("coverage")), _numbers(curve.get("risk"))
    if len(coverage) < 2 or len(coverage) != len(risk):
        return ""
    frame = Frame((0.0, 1.0), (0.0, max([*risk, 1e-12])))
    mean = risk[-1]
    guide = _path(frame, [0.0, 1.0], [mean, mean], "guide")
    return _figure(
        "Mean loss of the frames kept, by share kept", frame, guide + _path(frame, coverage, risk, "a")
    )


def _histogram(report: dict[str, Any]) -> str:
    table = _part(report, "histogram")
    edges, right, failed = (_numbers(table.get(key)) for key in ("edges", "right", "failed"))
    if len(edges) < 2 or len(right) != len(edges) - 1 or len(failed) != len(right):
        return ""
    totals = sum(right) or 1.0, sum(failed) or 1.0
    shares = [
        [count / total for count in counts] for counts, total in zip((right, failed), totals, strict=True)
    ]
    frame = Frame((edges[0], edges[-1]), (0.0, max([*shares[0], *shares[1], 1e-12])))
    bars = ""
    for values, style in zip(shares, ("fa", "fb"), strict=True):
        for left, end, share in zip(edges, edges[1:], values, strict=False):
            (x0, y0), (x1, y1) = frame.place(left, share), frame.place(end, 0.0)
            size = f'width="{max(x1 - x0, 0.5):.1f}" height="{y1 - y0:.1f}"'
            bars += f'<rect class="{style}" x="{x0:.1f}" y="{y0:.1f}" {size}/>'
    return _figure("Score of right (blue) and failed (orange) frames, share of each", frame, bars)


def _reliability(report: dict[str, Any]) -> str:
    table = _part(report, "reliability")
    found = table.get("bins")
    bins = [b for b in found if _is_bin(b)] if isinstance(found, list) else []
    if not bins:
        return ""
    predicted, observed = _numbers([b["predicted"] for b in bins]), _numbers([b["observed"] for b in bins])
    top = max([*predicted, *observed, 1e-12])
    frame = Frame((0.0, top), (0.0, top))
    marks = _path(frame, [0.0, top], [0.0, top], "guide")
    for b in bins:
        (x, low), (_, high) = frame.place(b["predicted"], b["low"]), frame.place(b["predicted"], b["high"])
        y = frame.place(b["predicted"], b["observed"])[1]
        marks += f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        marks += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    how = "; c set on other frames" if table.get("cross_fitted") else ""
    return _figure(f"True loss by predicted loss c exp(score), tenths of the frames{how}", frame, marks)


def _figure(caption: str, frame: Frame, inside: str) -> str:
    (left, bottom), (right, top) = frame.place(frame.x[0], frame.y[0]), frame.place(frame.x[1], frame.y[1])
    axes = (
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{left}" y2="{top}"/>'
    )
    labels = "".join(
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{value:.3g}</text>'
        for x, y, anchor, value in (
            (left, bottom + 16, "start", frame.x[0]),
            (right, bottom + 16, "end", frame.x[1]),
            (left - 6, bottom, "end", frame.y[0]),
            (left - 6, top + 8, "end", frame.y[1]),
        )
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    svg = f'<svg {size} role="img">{axes}{inside}{labels}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _path(frame: Frame, xs: Sequence[float], ys: Sequence[float], style: str) -> str:
    points = " ".join("{:.1f},{:.1f}".format(*frame.place(x, y)) for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{style}" points="{points}"/>'


def _part(report: dict[str, Any], name: str) -> dict[str, Any]:
    found = report.get(name)
    return found if isinstance(found, dict) else {}


def _is_bin(found: Any) -> bool:
    keys = ("predicted", "observed", "low", "high")
    return isinstance(found, dict) and all(isinstance(found.get(key), int | float) for key in keys)


def _numbers(values: Any) -> list[float]:
    """Returns finite numbers or an empty list, because a manifest's extra part is not validated."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return []
    return [float(value) for value in values]
