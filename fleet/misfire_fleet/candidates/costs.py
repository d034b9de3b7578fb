"""Compares what both bundles cost: the time for a frame, by turns in one process, and their sizes."""

from __future__ import annotations

import numpy as np

from misfire_fleet.candidates.answers import Answered
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.candidates.verdict import Check, Contender, Measure
from misfire_train.metrics import Estimate
from misfire_train.metrics.bootstrap import estimate

_MOST = 2000
"""Frames of the bootstrap of a median, which sorts each resample."""
_REPLICATES = 300


def compare_latency(answered: Answered, rules: Rules) -> Check:
    """Judges the median time from picture to answer: it fails if the whole interval is above the limit."""
    new, old = answered.candidate.ms[:_MOST], answered.incumbent.ms[:_MOST]
    medians = float(np.median(new)), float(np.median(old))
    rng = np.random.default_rng(rules.seed)
    rows = rng.integers(0, len(new), (_REPLICATES, len(new)))
    ratios = np.median(new[rows], axis=1) / np.median(old[rows], axis=1)
    found = estimate(medians[0] / medians[1], ratios)
    slow = [float(np.quantile(each, 0.95)) for each in (new, old)]
    measures = (
        Measure("median time", *medians, None, False, "ms"),
        Measure("95 % of frames within", slow[0], slow[1], None, False, "ms"),
        Measure("ratio of the medians", found.value, 1.0, _minus_one(found), False),
    )
    text = (
        f"{medians[0]:.2f} ms against {medians[1]:.2f} ms for a frame on this machine, "
        f"{found.value:.2f} times ({found.low:.2f} .. {found.high:.2f})"
    )
    if len(new) < rules.min_frames:
        return Check("latency", "unknown", f"too few frames: {text}", False, measures)
    if found.low > rules.max_slowdown:
        return Check(
            "latency", "failed", f"slower than {rules.max_slowdown:g} times: {text}", False, measures
        )
    return Check("latency", "passed", text, False, measures)


def compare_size(candidate: Contender, incumbent: Contender, rules: Rules) -> Check:
    """Judges the size of the graph."""
    growth = candidate.graph_bytes / max(1, incumbent.graph_bytes)
    measures = (
        Measure("graph", candidate.graph_bytes / 1e6, incumbent.graph_bytes / 1e6, None, False, "MB"),
        Measure("archive", candidate.archive_bytes / 1e6, incumbent.archive_bytes / 1e6, None, False, "MB"),
    )
    text = f"{_megabytes(candidate.graph_bytes)} against {_megabytes(incumbent.graph_bytes)}"
    if growth > rules.max_growth:
        return Check(
            "size", "failed", f"more than {rules.max_growth:g} times as large: {text}", False, measures
        )
    return Check("size", "passed", text, False, measures)


def _minus_one(found: Estimate) -> Estimate:
    return Estimate(found.value - 1, found.low - 1, found.high - 1, found.usable)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
