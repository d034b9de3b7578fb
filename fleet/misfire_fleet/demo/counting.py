"""Counts the failures among the demo's uploads and in a random sample of the same size.

A frame is a failure if the task's rule says so of the answer that the bundle's engine gives: another class
than the true one, or a missed object. For the random sample the expected value is used: it does not depend on
one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from misfire_fleet.demo.drive import Frame
from misfire_fleet.store.records import StoredSample
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scored, Scorer
from misfire_runtime.preprocess import decode_image
from misfire_train.tasks import Task


@dataclass(frozen=True)
class Findings:
    """Holds the demo's counts; failures_random is the expected number in `uploads` random frames."""

    uploads: int
    bytes: int
    failures_uploaded: int
    failures_random: float
    failure_rate: float


def failing_samples(bundle: Path, frames: Sequence[Frame], task: Task) -> set[str]:
    """Returns the sample ids of the frames that the bundle's model gets wrong."""
    scorer = Scorer.load(Bundle.open(bundle))
    try:
        return {
            frame.sample
            for frame in frames
            if fails(scorer.score(decode_image(frame.file.read_bytes())), frame.target, task)
        }
    finally:
        scorer.close()


def fails(scored: Scored, target: Any, task: Task) -> bool:
    """Returns whether the answer to a frame is a failure, by the task's rule."""
    # A copy: the engine may use its array again for the next frame.
    outputs = torch.tensor(scored.answer(task.output_kind))
    return bool(task.failed(outputs, task.collate(task.stack([target])))[0])


def count(stored: Sequence[StoredSample], failing: set[str], *, frames: int) -> Findings:
    """Counts failures among the uploads.

    Args:
        stored: the samples that arrived.
        failing: the ids that `failing_samples` returns for all frames.
        frames: number of frames of all drives.
    """
    rate = len(failing) / frames
    return Findings(
        uploads=len(stored),
        bytes=sum(sample.size for sample in stored),
        failures_uploaded=sum(sample.id in failing for sample in stored),
        failures_random=round(rate * len(stored), 1),
        failure_rate=rate,
    )
