"""Writes the gate's report: one HTML file without script or network, for light and dark screens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from misfire_fleet.candidates.pictures import Picture
from misfire_fleet.candidates.verdict import Measure, Verdict
from misfire_runtime import __version__
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.files import write_durably

_SHARES = ("accuracy", "F1", "frames right", "recall", "upload rate", "worst slice", "gap of")
"""Beginnings of the names of measures that are shares, and are shown in per cent."""
_WIDTH, _HEIGHT = 190, 16
_SIDE = 300


def write_page(verdict: Verdict, pictures: Mapping[str, Sequence[Picture]], path: Path) -> None:
    """Writes the report, whole or not at all. Raises OSError."""
    write_durably(path, render(verdict, pictures).encode())


def render(verdict: Verdict, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Returns the page as text."""
    environment = Environment(
        loader=PackageLoader("misfire_fleet.candidates"),
        autoescape=select_autoescape(["html", "j2"]),
        # A misspelt name in the template raises instead of printing nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": value_text, "change": change_text, "percent": percent}
    return environment.get_template("gate.html.j2").render(
        verdict=verdict,
        pictures=pictures,
        version=__version__,
        made=utc_text(wall_time()),
        interval=interval_bar,
        widest=_widest(verdict.detail.get("slices", ())),
        reliability=_reliability(verdict.detail.get("reliability", {})),
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a share in per cent, or a dash if it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def is_share(name: str) -> bool:
    """Returns whether a measure is a share."""
    return name.startswith(_SHARES)


def value_text(value: float | None, measure: Measure) -> str:
    """Returns a value of a measure."""
    if value is None or not math.isfinite(value):
        return "–"
    if is_share(measure.name):
        return percent(value)
    return f"{value:.3f} {measure.unit}".strip()


def change_text(measure: Measure) -> Markup:
    """Returns the difference with its interval, coloured if the interval excludes zero."""
    found = measure.difference
    if found is None or not math.isfinite(found.value):
        return Markup("–")
    factor, digits = (100, 1) if is_share(measure.name) else (1, 3)
    kind = "open"
    if measure.higher is not None and (found.low > 0 or found.high < 0):
        kind = "better" if (found.low > 0) == measure.higher else "worse"
    value, low, high = (f"{factor * v:+.{digits}f}" for v in (found.value, found.low, found.high))
    return Markup('<span class="{}">{}</span> <small>{} … {}</small>').format(kind, value, low, high)


def interval_bar(found: Mapping[str, float], widest: float) -> Markup:
    """Draws a difference with its interval around zero, as a small SVG that takes the page's colours."""

    def x(value: float) -> float:
        return _WIDTH / 2 + max(-1.0, min(1.0, value / widest)) * (_WIDTH / 2 - 6)

    low, high, middle = x(found["low"]), x(found["high"]), _HEIGHT / 2
    kind = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "open"
    return Markup(
        '<svg class="bar {}" viewBox="0 0 {} {}" width="{}" height="{}" role="img">'
        '<line class="zero" x1="{}" x2="{}" y1="0" y2="{}"/>'
        '<line class="span" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
        '<circle cx="{:.1f}" cy="{}" r="4"/></svg>'
    ).format(
        *(kind, _WIDTH, _HEIGHT, _WIDTH, _HEIGHT),
        *(_WIDTH / 2, _WIDTH / 2, _HEIGHT),
        *(low, high, middle, middle),
        *(x(found["value"]), middle),
    )


def _widest(slices: Sequence[Mapping[str, Any]]) -> float:
    ends = [
        abs(row["difference"][end])
        for each in slices
        for row in each["rows"]
        for end in ("low", "high")
        if math.isfinite(row["difference"][end])
    ]
    return float(max([*ends, 0.01]))


def _reliability(bins: Mapping[str, Any]) -> Markup:
    """Draws predicted against observed loss of both bundles on log axes; empty without predictions."""
    points = {name: [b for b in found or () if b[0] > 0 and b[1] > 0] for name, found in bins.items()}
    every = [value for found in points.values() for b in found for value in b[:2]]
    if not every:
        return Markup("")
    low, high = math.log10(min(every) / 1.5), math.log10(max(every) * 1.5)

    def place(value: float) -> float:
        return float(40 + (math.log10(value) - low) / max(high - low, 1e-9) * (_SIDE - 60))

    parts = [
        Markup('<line class="zero" x1="40" y1="{0}" x2="{0}" y2="40"/>').format(_SIDE - 20),
    ]
    for name, found in points.items():
        parts += [
            Markup(
                '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}: predicted {:.3g}, '
                "true {:.3g}</title></circle>"
            ).format(name, place(b[0]), _SIDE + 20 - place(b[1]), name, b[0], b[1])
            for b in found
        ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = place(10.0**power)
        parts.append(
            Markup('<text x="{:.1f}" y="{}">{:g}</text><text x="2" y="{:.1f}">{:g}</text>').format(
                at - 8, _SIDE + 8, 10.0**power, _SIDE + 24 - at, 10.0**power
            )
        )
    return Markup('<svg class="reliability" viewBox="0 0 {0} {1}" width="{0}" role="img">{2}</svg>').format(
        _SIDE, _SIDE + 12, Markup("").join(parts)
    )
