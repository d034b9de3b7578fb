"""Values as people read them on the console's pages."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlencode

from markupsafe import Markup

from misfire_fleet.store.records import StoredSample

_IN_A_PATH = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]+")
_BRIEF = 200
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


@dataclass(frozen=True)
class ScoreRow:
    """A score with its place in the calibration; `percentile` is None where the offer gave none."""

    name: str
    value: float
    percentile: float | None


def score_rows(sample: StoredSample) -> list[ScoreRow]:
    """All scores of a sample, the most alarming first."""
    rows = [ScoreRow(name, value, sample.percentiles.get(name)) for name, value in sample.scores.items()]
    return sorted(rows, key=lambda row: (-(row.percentile if row.percentile is not None else -1.0), row.name))


def visible(value: Any) -> Any:
    """Text with characters that are not seen, or turn others around, written out: \\u202e.

    Jinja calls it on everything that a template prints.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    return "".join(_written_out(each) if unicodedata.category(each) in _HIDDEN else each for each in value)


def _written_out(character: str) -> str:
    return character if character == "\n" else character.encode("unicode_escape").decode("ascii")


def brief(value: Any) -> str:
    """A value of a prediction or context, cut after 200 characters."""
    text = number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 1] + "…"


def vehicle_link(name: str) -> str:
    """The address of a vehicle's page. A browser takes `..` in a path, however escaped, for the way up."""
    if _IN_A_PATH.fullmatch(name):
        return f"/vehicles/{quote(name)}"
    return "/vehicle?" + urlencode({"name": name})


def utc(seconds: float | None) -> str:
    """2026-01-31 12:00:00 UTC; a clock may say anything, so an impossible time is shown as the number."""
    if seconds is None:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s"


def age(seconds: float | None, now: float) -> str:
    """`12 s ago`, in the largest unit that fits."""
    if seconds is None:
        return "never"
    gone = now - seconds
    return "in the future" if gone < -60 else f"{duration(gone)} ago"


def duration(seconds: float) -> str:
    """`12 s`, in the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def byte_count(size: float) -> str:
    """1.5 MB; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number(value: float) -> str:
    """Three significant digits, thousands separated; beyond 15 digits as a power of ten."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """0.987 as 98.7 %; close to one, as many nines as there are."""
    if value is None:
        return ""
    if not 0 <= value <= 1:
        return f"{value:.3g}"
    digits = 3 if value > 0.999 else 1
    return f"{100 * value:.{digits}f} %"


def share(value: float | None) -> str:
    """0..1 as a whole CSS percentage."""
    return f"{100 * min(1.0, max(0.0, value or 0.0)):.0f}%"
