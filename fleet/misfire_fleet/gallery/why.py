"""Says in one sentence why a vehicle sent a sample: what is expected to be wrong, and what it saw.

expected loss + temporal event, else the trigger's reason, else the highest score --why--> sentence
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from misfire_fleet.gallery.losses import Expected
from misfire_fleet.store.records import StoredSample
from misfire_runtime.temporal.base import NAME as TEMPORAL

_TOP = re.compile(r"(?:[\w-]+: )?([\w.-]+) (-?[\d.e+-]+) in the top ([\d.e-]+) of recent frames")
_LONGEST = 240


def why(sample: StoredSample, expected: Sequence[Expected]) -> str:
    """Returns the sentence, without a full stop.

    Args:
        sample: as it was stored.
        expected: its expected losses, the bundle's own score first; may be empty.

    Returns:
        Such as "1.4 errors expected: a truck seen for 9 frames vanished".
    """
    trigger = sample.offer.trigger
    saw = _seen(sample)
    if trigger.random:
        rate = f" ({100 * trigger.rate:g} % of all frames)" if trigger.rate else ""
        also = f"; it would also have been chosen: {saw}" if trigger.reason or _event(sample) else ""
        return f"drawn at random{rate}, as an unbiased sample of what the vehicle sees{also}"
    lead = _lead(expected)
    if not saw:
        return lead or f"chosen by the trigger {trigger.name}"
    return f"{lead}: {saw}" if lead else saw


def _lead(expected: Sequence[Expected]) -> str:
    if not expected:
        return ""
    first = expected[0]
    if first.unit == "errors":
        count = f"{first.loss:.1f}"
        return f"{count} {'error' if count == '1.0' else 'errors'} expected"
    return f"a loss of {first.loss:.2g} expected"


def _seen(sample: StoredSample) -> str:
    event = _event(sample)
    if event:
        return event
    reason = sample.offer.trigger.reason[:_LONGEST]
    found = _TOP.fullmatch(reason)
    if found is not None:
        name, value, share = found.groups()
        percent = f"{100 * _float(share):.3g} %"
        return f"{_words(name)} of {_float(value):.3g} is among the highest {percent} of recent frames"
    if reason:
        return reason
    levels = sorted(sample.percentiles.items(), key=lambda each: -each[1])
    if levels and 0 <= levels[0][1] <= 1:
        return (
            f"{_words(levels[0][0])} is higher than in {100 * levels[0][1]:.4g} % of the calibration's frames"
        )
    return ""


def _event(sample: StoredSample) -> str:
    value: Any = sample.offer.context.get(TEMPORAL)
    return value.strip()[:_LONGEST] if isinstance(value, str) else ""


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _words(score: str) -> str:
    return score.replace("_", " ")
