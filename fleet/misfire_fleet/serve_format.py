"""Values as people read them on the console's pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from misfire_fleet.store_records import StoredSample


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
    if gone < -60:
        return "in the future"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if gone >= size:
            return f"{gone / size:.0f} {unit} ago"
    return f"{max(0.0, gone):.0f} s ago"


def byte_count(size: float) -> str:
    """1.5 MB; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """0.987 as 98.7 %; close to one, as many nines as there are."""
    if value is None:
        return ""
    digits = 3 if value > 0.999 else 1
    return f"{100 * value:.{digits}f} %"


def share(value: float | None) -> str:
    """0..1 as a whole CSS percentage."""
    return f"{100 * min(1.0, max(0.0, value or 0.0)):.0f}%"
