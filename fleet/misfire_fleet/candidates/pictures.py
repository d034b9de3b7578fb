"""Draws the frames that a person should see: those that the candidate newly gets wrong, and newly right."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from misfire_fleet.candidates.answers import Answered, Pair
from misfire_fleet.candidates.frames import TestFrames
from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.retrain.snapshot import LabelContents
from misfire_fleet.retrain.targets import Reading, read_target
from misfire_fleet.store import Store
from misfire_runtime.preprocess import decode_image

SHOWN = 8


@dataclass(frozen=True)
class Picture:
    """Holds a drawn frame. `picture`: a data: URL; `answer`: of the candidate, `before`: of the incumbent."""

    sample: str
    vehicle: str
    picture: str
    truth: str
    answer: str
    before: str


def changed_frames(
    store: Store, pair: Pair, answered: Answered, frames: TestFrames
) -> dict[str, list[Picture]]:
    """Returns {"newly wrong": [...], "newly right": [...]}, the frames whose loss changed most."""
    new, old = answered.candidate, answered.incumbent
    rows = {"newly wrong": new.failed & ~old.failed, "newly right": ~new.failed & old.failed}
    found = {}
    for kind, which in rows.items():
        order = np.argsort(-np.abs(new.loss - old.loss), kind="stable")
        chosen = [int(row) for row in order if which[row]][:SHOWN]
        drawn = [_draw(store, pair, answered, frames, row) for row in chosen]
        found[kind] = [each for each in drawn if each is not None]
    return found


def _draw(store: Store, pair: Pair, answered: Answered, frames: TestFrames, row: int) -> Picture | None:
    sample = answered.frames[row].sample
    try:
        data = store.read_blob(sample.id)
    except SampleGoneError:
        return None
    if hashlib.sha256(data).hexdigest() != sample.id:
        raise StoreError(f"sample {sample.id[:16]}: its bytes were altered; misfire fleet check --deep")
    image = decode_image(data, name=sample.id)
    label = LabelContents(store, [frames.members[sample.id]]).of(sample.id)
    words = []
    picture = truth = ""
    for subject in (pair.incumbent, pair.candidate):
        manifest = subject.manifest
        reading = Reading(subject.task, manifest.classes, manifest.input)
        target = read_target(label, reading, size=(sample.width, sample.height), where=sample.id[:16])
        _, answer = subject.answer(image, name=sample.id)
        drawing = subject.task.draw(image, answer, target, classes=manifest.classes, contract=manifest.input)
        # The candidate is drawn last, so its picture stays.
        picture, truth = drawing.picture, drawing.truth
        words.append(drawing.predicted)
    return Picture(sample.id, sample.vehicle, picture, truth, words[1], words[0])
