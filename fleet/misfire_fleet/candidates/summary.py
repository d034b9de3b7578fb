"""Prints a verdict for a terminal, within 80 columns."""

from __future__ import annotations

import math
import textwrap

from misfire_fleet.candidates.report import is_share
from misfire_fleet.candidates.verdict import Measure, Verdict

WIDTH = 80
_NAME = 28
_SIGNS = {"passed": "ok", "failed": "FAILED", "unknown": "?"}


def describe(verdict: Verdict) -> str:
    """Returns the verdict as lines of at most 80 columns."""
    title = f"{verdict.candidate.label} against {verdict.incumbent.label}"
    where = (
        f"{verdict.frames} frames of {verdict.groups} groups, frozen test side of {verdict.snapshot}; "
        f"failures {verdict.failures[0]} against {verdict.failures[1]}"
    )
    lines = [*_wrapped(title), *_wrapped(where), ""]
    lines.append(f"{'':{_NAME}}{'candidate':>10}{'incumbent':>10}  difference (interval)")
    for check in verdict.checks:
        lines += [_row(measure) for measure in check.measures]
    lines.append("")
    for check in verdict.checks:
        lines += _wrapped(f"{_SIGNS[check.status]:<7}{check.name}: {check.sentence}", indent=7)
    lines += [line for note in verdict.notes for line in _wrapped(f"note   {note}", indent=7)]
    lines += ["", "passed" if verdict.passed else "not passed"]
    return "\n".join(lines)


def _row(measure: Measure) -> str:
    name = measure.name if len(measure.name) < _NAME else f"{measure.name[: _NAME - 3]}.."
    factor, digits = (100, 1) if is_share(measure.name) else (1, 3)
    values = "".join(f"{_number(v, factor, digits):>10}" for v in (measure.candidate, measure.incumbent))
    found = measure.difference
    text = ""
    if found is not None and math.isfinite(found.value):
        text = "  " + " ".join(
            [
                f"{factor * found.value:+.{digits}f}",
                f"({factor * found.low:+.{digits}f} .. {factor * found.high:+.{digits}f})",
            ]
        )
    return f"{name:{_NAME}}{values}{text}"


def _number(value: float | None, factor: float, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{factor * value:.{digits}f}" + (" %" if factor != 1 else "")


def _wrapped(text: str, *, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
