"""Looks for what would make a failure rate wrong, and says it in a sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.truth.stream import Sketches, StreamFrame

_FAR = 4.0
"""Standard errors; by chance, one report in 16,000 is that far off."""
_FEW_LABELS, _FEW_FAILURES = 30, 5
_MISSING = 0.02
"""Share of frames; heartbeats and counters are a little apart even if nothing is wrong."""
_UNANSWERED = 0.1
_BLIND = frozenset({"person", "audit"})
"""Sources that show a frame without its score."""


def stream_size(stream: Sequence[StreamFrame], sketches: Sketches) -> list[str]:
    """Compares the size of the random stream with its rate times all frames."""
    rates = [frame.rate for frame in stream if frame.rate is not None]
    missing = len(stream) - len(rates)
    found = []
    if missing:
        found.append(
            f"{missing} of {len(stream)} random frames do not say with which rate they were drawn; "
            "they count as drawn with probability 1"
        )
    if not rates or sketches.frames <= 0:
        return found
    expected, spread = expected_size(rates, sketches.frames)
    if abs(len(stream) - expected) > _FAR * spread:
        what = (
            "frames are missing (evicted, declined, not yet uploaded), or some were read twice"
            if len(stream) < expected
            else "sketches are missing, so the stream tells the shares of the strata"
        )
        found.append(
            f"the random stream has {len(stream)} frames where {expected:.0f} (+- {2 * spread:.0f}) were "
            f"expected of {sketches.frames:.0f}: {what}"
        )
    return found


def expected_size(rates: Sequence[float], frames: float) -> tuple[float, float]:
    """Returns how many of so many frames a random stream of these rates has, and the standard error."""
    # A frame of the stream stands for 1/rate frames.
    expected = frames / float(np.mean([1 / rate for rate in rates]))
    return expected, float(np.sqrt(expected)) + 1.0


def sketches_cover(stream: Sequence[StreamFrame], frames: float) -> bool:
    """Returns whether sketches of so many frames can be those of all frames that the stream was drawn from.

    A heartbeat that was lost takes its frames out of the sketches, and not out of the stream. Sketches with
    too few frames are of a part of the time, and their shares may be those of another weather.
    """
    rates = [frame.rate for frame in stream if frame.rate is not None]
    if not rates:
        return frames > 0
    expected, spread = expected_size(rates, frames)
    return frames > 0 and len(stream) - expected <= _FAR * spread


def stream_scores(counts: NDArray[Any], shares: NDArray[Any], *, source: str) -> list[str]:
    """Compares the scores of the random stream with those of all frames (Pearson's chi-squared)."""
    total, used = float(counts.sum()), shares > 0
    if source != "sketches" or total < 50 or used.sum() < 2:
        return []
    expected = total * shares[used]
    statistic = float(((counts[used] - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    free = float(used.sum() - 1)
    # Wilson and Hilferty (1931): the cube root of chi-squared is nearly normal.
    z = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5
    if z <= _FAR:
        return []
    return [
        "the random stream is not uniform: its scores differ from those of all frames "
        f"(chi-squared {statistic:.0f} on {free:.0f}); the rates below may be wrong"
    ]


def misses_frames(sketches: Sketches) -> bool:
    """Returns whether vehicles counted more frames than their sketches have."""
    return sketches.counted - sketches.sketched > _MISSING * sketches.counted


def missing_frames(sketches: Sketches) -> list[str]:
    """Compares the frames in the sketches with those that vehicles counted."""
    found = []
    if not sketches.beats:
        found.append("there are no heartbeats, so the shares of the strata come from the random stream")
    elif not sketches.frames:
        found.append("the heartbeats have no sketch of this score, so the random stream tells the shares")
    short = sketches.counted - sketches.sketched
    if misses_frames(sketches):
        found.append(
            f"the sketches miss {short:.0f} of {sketches.counted} frames that vehicles counted: heartbeats "
            "were lost, or vehicles were killed; the random stream tells the shares instead"
        )
    if sketches.dropped > _MISSING * max(1, sketches.counted):
        found.append(
            f"{sketches.dropped} frames were dropped or unreadable; the rates are of scored frames only"
        )
    if sketches.lost:
        found.append(
            f"{sketches.lost} chosen samples were evicted or lost on vehicles, maybe of the random stream"
        )
    if sketches.bad:
        found.append(f"{sketches.bad} heartbeats or sketches cannot be read")
    return found


def recordings(count: int) -> list[str]:
    """Says that a stream holds frames of recordings."""
    if not count:
        return []
    return [
        f"{count} random frames come from recordings: one that is read twice counts twice in sketches "
        "and once in the store, so the shares of the strata come from the random stream"
    ]


def label_sources(sources: Counter[str], *, votes: int) -> list[str]:
    """Says which labels were made by people who may have seen the score, and which are no truth."""
    found = []
    seen = {name: count for name, count in sources.items() if name not in _BLIND}
    if seen:
        named = ", ".join(f"{count} from {name}" for name, count in sorted(seen.items()))
        found.append(f"labels may have been made with the score visible ({named}); label with it hidden")
    if votes:
        found.append(f"{votes} samples have only votes of machines, which are no truth and do not count")
    return found


def verdicts(counts: Counter[str]) -> list[str]:
    """Says which verdicts of people are weaker evidence. counts: `seen` with the score, `shared`."""
    found = []
    if counts["seen"]:
        found.append(f"{counts['seen']} verdicts were given with the score visible; judge with it hidden")
    if counts["shared"]:
        found.append(
            f"{counts['shared']} verdicts are shared with a near-duplicate; judge each frame of the random "
            "stream by itself"
        )
    return found


def free_labels(marked: NDArray[Any], stream: NDArray[Any], *, dealt: Collection[Any]) -> list[str]:
    """Compares the scores of labelled frames with those of the stream, if nothing was dealt."""
    total = float(marked.sum())
    if dealt or total < 50:
        return []
    found = stream_scores(marked, stream / stream.sum(), source="sketches")
    if not found:
        return []
    return [
        "labelled frames have other scores than the random stream, so they were not drawn from it uniformly; "
        "deal them with `misfire fleet truth --to-label N`"
    ]


def deals(dealt: Sequence[StreamFrame], answered: Collection[str], *, outside: int) -> list[str]:
    """Says how many dealt frames have no label, and how many labels were not dealt."""
    found = []
    open_ = len(dealt) - len(answered)
    if dealt and open_ > _UNANSWERED * len(dealt):
        found.append(
            f"{open_} of {len(dealt)} dealt frames have no label; if those are the hard ones, the rate "
            "is too low"
        )
    if outside:
        found.append(f"{outside} labels of random frames were not dealt, and do not count")
    return found


def unjudged(reasons: Mapping[str, int]) -> list[str]:
    """Says which labels cannot be compared with the vehicle's answer."""
    return [f"{count} labels cannot be judged: {reason}" for reason, count in sorted(reasons.items())]


def too_few(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Names the slices that have too few labels for more than a rough idea.

    Args:
        counts: labels and failures of each slice.
    """
    few = [
        name
        for name, (labels, failures) in counts.items()
        if labels < _FEW_LABELS or min(failures, labels - failures) < _FEW_FAILURES
    ]
    if not few:
        return []
    shown = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
    return [
        f"fewer than {_FEW_LABELS} labels, or than {_FEW_FAILURES} failures or successes: {shown}; "
        "the intervals hold, but are wide"
    ]
