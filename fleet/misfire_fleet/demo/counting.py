"""What the demo found: failures among the uploads, against a random sample of the same size.

A frame has failed where the model's class on the vehicle's own engine is not its true class. The random
sample's number is its expectation, so that it does not depend on one lucky draw.
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
    """failures_random: expected in a random sample of `uploads` frames out of all that were driven past."""

    uploads: int
    bytes: int
    failures_uploaded: int
    failures_random: float
    failure_rate: float


def failing_samples(bundle: Path, frames: Sequence[Frame], classes: Sequence[str]) -> set[str]:
    """Ids of the frames that the bundle's model gets wrong."""
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
    """stored: what arrived; truth: every frame by sample id; failing: as `failing_samples` gives them."""
    rate = len(failing) / len(truth)
    wrong = [s for s in stored if s.prediction["class"] != classes[truth[s.id].label]]
    return Findings(
        uploads=len(stored),
        bytes=sum(sample.size for sample in stored),
        failures_uploaded=len(wrong),
        failures_random=round(rate * len(stored), 1),
        failure_rate=rate,
    )
