"""Parses `--where KEY=VALUE`, the conditions on samples of the fleet's commands, and writes them again.

--where vehicle=car-7 --where random=yes --where class=pedestrian --where ids=@to-label.txt
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from misfire_fleet.moments import parse_moment
from misfire_fleet.store.records import ANY, SampleFilter
from misfire_runtime.errors import ConfigError

_MAX_TEXT = 200
_MAX_IDS = 20_000
"""Fewer than the parameters of a statement: 32,766 in SQLite."""
_ID = re.compile("[0-9a-f]{64}")
VERDICTS = ("right", "wrong", "missed", "ignore", "any", "none")


def _text(value: str) -> str:
    if not value or len(value) > _MAX_TEXT or "\0" in value:
        raise ValueError(f"expected a name of 1 to {_MAX_TEXT} characters")
    return value


def _flag(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return value == "yes"


def _verdict(value: str) -> str:
    if value not in VERDICTS:
        raise ValueError(f"expected one of {', '.join(VERDICTS)}")
    return value


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    # The negated comparison refuses NaN too.
    if not 0 <= share <= 1:
        raise ValueError("expected a number from 0 to 1")
    return share


def _ids(value: str) -> tuple[str, ...]:
    """Returns ids from a list with commas, or from a file as `misfire fleet truth --to-label` prints it."""
    text = value
    if value.startswith("@"):
        try:
            with Path(value[1:]).open(encoding="ascii") as stream:
                text = stream.read(_MAX_IDS * 70)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file cannot be read ({error})") from error
    ids = tuple(dict.fromkeys(text.replace(",", " ").split()))
    wrong = [each for each in ids if not _ID.fullmatch(each)]
    if wrong or not 1 <= len(ids) <= _MAX_IDS:
        raise ValueError(
            f"expected @FILE with 1 to {_MAX_IDS} ids of 64 hex digits, one a line, or ids with commas"
            + (f"; {wrong[0][:80]!r} is none" if wrong else "")
        )
    return ids


CONDITIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "vehicle": ("vehicle", _text, "NAME"),
    "bundle": ("bundle", _text, "NAME@VERSION"),
    "trigger": ("trigger", _text, "NAME"),
    "random": ("random", _flag, "yes or no: of the unbiased random stream"),
    "from": ("captured_from", parse_moment, "TIME: captured at or after it"),
    "to": ("captured_to", parse_moment, "TIME: captured before it"),
    "percentile": ("min_percentile", _share, "0..1: the highest percentile of a score is at least that"),
    "labelled": ("labelled", _flag, "yes or no"),
    "class": ("label_class", _text, "NAME: the label names it"),
    "verdict": ("verdict", _verdict, "right, wrong, missed, ignore, any or none: a person's verdict on it"),
    "snapshot": ("snapshot", _text, "NAME: the snapshot holds it"),
    "selection": ("selection", _text, "NAME: a selection of the console holds it"),
    "pinned": ("pinned", _flag, "yes or no: somebody pinned it"),
    "ids": ("ids", _ids, "@FILE of ids, one a line, or ids with commas"),
}
"""The field of SampleFilter, the parser, and what to write, by key."""
HELP = "Take only samples with KEY=VALUE (repeat for more): " + ", ".join(CONDITIONS) + "."


def parse_where(conditions: Sequence[str]) -> SampleFilter:
    """Returns the filter of `KEY=VALUE` texts, which must all hold.

    Raises:
        ConfigError: a condition is not KEY=VALUE, its key is unknown or given twice, or its value is invalid.
    """
    found: dict[str, Any] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or key not in CONDITIONS:
            raise ConfigError(
                f"--where {condition[:_MAX_TEXT]!r}: expected KEY=VALUE with a key of {', '.join(CONDITIONS)}"
            )
        field, parse, _ = CONDITIONS[key]
        if field in found:
            raise ConfigError(f"--where: {key} is given twice, and no sample has both")
        try:
            found[field] = parse(value)
        except ValueError as error:
            raise ConfigError(f"--where {condition[:_MAX_TEXT]!r}: {error}") from error
    return replace(ANY, **found)


def where_of(filters: SampleFilter) -> list[str]:
    """Returns the `KEY=VALUE` texts of a filter: `parse_where` returns the same filter again."""
    texts = []
    for key, (field, parse, _) in CONDITIONS.items():
        value = getattr(filters, field)
        if value is None:
            continue
        if parse is parse_moment:
            value = datetime.fromtimestamp(value, timezone.utc).isoformat()
        elif parse is _flag:
            value = "yes" if value else "no"
        elif parse is _ids:
            value = ",".join(value)
        texts.append(f"{key}={value}")
    return texts
