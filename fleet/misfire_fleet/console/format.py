"""Formats values for the console's pages."""

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
"""Unicode categories without a glyph: control, format (with the bidirectional overrides), surrogate, private
use, line and paragraph separators."""


@dataclass(frozen=True)
class ScoreRow:
    """Holds a score and its percentile in the calibration; None if the offer has no percentile for it."""

    name: str
    value: float
    percentile: float | None


def score_rows(sample: StoredSample) -> list[ScoreRow]:
    """Returns all scores of a sample, the highest percentile first and those without one last."""
    rows = [ScoreRow(name, value, sample.percentiles.get(name)) for name, value in sample.scores.items()]
    return sorted(rows, key=lambda row: (-(row.percentile if row.percentile is not None else -1.0), row.name))


def visible(value: Any) -> Any:
    """Returns text with its invisible and direction-changing characters escaped, such as \\u202e.

    Jinja calls this for every value that a template prints. Other types are returned unchanged.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    return "".join(_written_out(each) if unicodedata.category(each) in _HIDDEN else each for each in value)


def _written_out(character: str) -> str:
    return character if character == "\n" else character.encode("unicode_escape").decode("ascii")


def brief(value: Any) -> str:
    """Returns the text of a prediction's or context's value, cut to 200 characters.

    Shares by name, such as a further answer's, are in percent.
    """
    text = number(value) if isinstance(value, float) else str(value)
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(v, float) and 0 <= v <= 1 for v in value.values())
    ):
        text = ", ".join(f"{name} {percent(share)}" for name, share in value.items())
    return text if len(text) <= _BRIEF else text[: _BRIEF - 1] + "…"


def vehicle_link(name: str) -> str:
    """Returns the path of a vehicle's page.

    Browsers resolve `..` in a path even if it is percent-encoded, so such names go into the query string.
    """
    if _IN_A_PATH.fullmatch(name):
        return f"/vehicles/{quote(name)}"
    return "/vehicle?" + urlencode({"name": name})


def utc(seconds: float | None) -> str:
    """Returns a time such as 2026-01-31 12:00:00 UTC, or the number if it is out of range.

    The time comes from a vehicle's clock, which may be wrong by any amount.
    """
    if seconds is None:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s"


def age(seconds: float | None, now: float) -> str:
    """Returns an age such as `12 s ago`; both arguments are seconds since 1970."""
    if seconds is None:
        return "never"
    gone = now - seconds
    # Clocks of vehicle and console differ a little: up to a minute ahead counts as now.
    return "in the future" if gone < -60 else f"{duration(gone)} ago"


def duration(seconds: float) -> str:
    """Returns a duration such as `12 s`, in the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def byte_count(size: float) -> str:
    """Returns a size such as `1.5 MB`; units are powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number(value: float) -> str:
    """Returns a number with three significant digits, thousands separated, from 1e15 as a power of ten."""
    if abs(value) >= 1e15:  # a float holds 15 significant digits; more would be noise
        return f"{value:.3g}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """Returns 0.987 as `98.7 %`, None as an empty text, and a value outside 0..1 as the number."""
    if value is None:
        return ""
    if not 0 <= value <= 1:
        return f"{value:.3g}"
    # A percentile of 0.9996 must not become 100.0 %: the last digits separate the rarest frames.
    digits = 3 if value > 0.999 else 1
    return f"{100 * value:.{digits}f} %"


def share(value: float | None) -> str:
    """Returns a value, clipped to 0..1, as a whole CSS percentage."""
    return f"{100 * min(1.0, max(0.0, value or 0.0)):.0f}%"
