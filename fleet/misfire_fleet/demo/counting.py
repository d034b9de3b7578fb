"""Counts the failures among the demo's uploads and in a random sample of the same size.

A frame is a failure if the class that the vehicle's engine predicts is not its true class. For the random
sample the expected value is used: it does not depend on one draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from misfire_fleet.demo.drive import Frame
from misfire_fleet.store.records import StoredSample
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import decode_image


@dataclass(frozen=True)
class Findings:
    """Holds the demo's counts; failures_random is the expected number in `uploads` random frames."""

    uploads: int
    bytes: int
    failures_uploaded: int
    failures_random: float
    failure_rate: float


def failing_samples(bundle: Path, frames: Sequence[Frame], classes: Sequence[str]) -> set[str]:
    """Returns the sample ids of the frames that the bundle's model classifies wrongly."""
    scorer = Scorer.load(Bundle.open(bundle))
    try:
        return {
            frame.sample
            for frame in frames
            if scorer.score(decode_image(frame.file.read_bytes())).prediction["class"] != classes[frame.label]
        }
    finally:
        scorer.close()


def count(
    stored: Sequence[StoredSample], truth: Mapping[str, Frame], failing: set[str], classes: Sequence[str]
) -> Findings:
    """Counts failures among the uploads.

    Args:
        stored: the samples that arrived.
        truth: every frame of all drives, by sample id.
        failing: the ids that `failing_samples` returns for all frames.
        classes: names of the classes, by label number.
    """
    rate = len(failing) / len(truth)
    wrong = [s for s in stored if s.prediction["class"] != classes[truth[s.id].label]]
    return Findings(
        uploads=len(stored),
        bytes=sum(sample.size for sample in stored),
        failures_uploaded=len(wrong),
        failures_random=round(rate * len(stored), 1),
        failure_rate=rate,
    )
