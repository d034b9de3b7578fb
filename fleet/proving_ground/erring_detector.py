"""Answers as a detector would that errs only where it is told to, and says whether errors were noticed.

truth --ErringDetector--> detections: jitter, noise of scores, and the faults it was given
truths --plan_faults--> Faults;  events, Faults --found--> which of them were noticed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.temporal.base import Event
from proving_ground.street_video import CLASSES, HEIGHT, WIDTH, Truth

MIN_VISIBLE = 0.35
"""Share of an object that must be seen for the detector to find it."""
THRESHOLD = 0.3
"""Score from which a box is kept."""


@dataclass(frozen=True)
class Faults:
    """Says where a detector errs: by frame, and by number of the object.

    dropped: (frame, object) pairs without a box.  flips: such pairs to another class.  flashes: rows of boxes
    at places where nothing is.
    """

    dropped: frozenset[tuple[int, int]] = frozenset()
    flips: dict[tuple[int, int], int] = field(default_factory=dict)
    flashes: dict[int, NDArray[np.float64]] = field(default_factory=dict)


class ErringDetector:
    """Answers with the true boxes, perturbed as a detector's are."""

    def __init__(
        self, *, seed: int, jitter: float = 0.03, noise: float = 0.05, faults: Faults | None = None
    ) -> None:
        """Keeps the faults. jitter: of each side, share of the box.  noise: of scores, standard deviation."""
        self._rng = np.random.default_rng(seed)
        self._jitter, self._noise = jitter, noise
        self._faults = faults or Faults()

    def detect(self, frame: int, truth: Truth, *, threshold: float = 0.3) -> NDArray[np.float32]:
        """Returns detections [1,100,6] of a frame: x0 y0 x1 y1 score class, best first, filled with zeros."""
        n = len(truth.boxes)
        # Drawn for all objects, so that a fault changes nothing else of the frame.
        moves, noise = self._rng.normal(size=(n, 4)), self._rng.normal(size=n)
        sides = np.tile(truth.boxes[:, 2:] - truth.boxes[:, :2], 2)
        boxes = truth.boxes + self._jitter * sides * moves
        # Small and half-hidden objects are less certain.
        sure = (0.93 - 0.5 * np.exp(-sides.min(1) / 15.0)) * (0.45 + 0.55 * truth.visible) if n else noise
        scores = np.clip(sure + self._noise * noise, 0.01, 0.99)
        faults = self._faults
        pairs = [(frame, int(number)) for number in truth.number]
        labels = [faults.flips.get(pair, int(label)) for pair, label in zip(pairs, truth.label, strict=True)]
        rows = np.column_stack([boxes, scores, labels]) if n else np.zeros((0, 6))
        kept = (scores >= threshold) & (truth.visible >= MIN_VISIBLE)
        kept &= [pair not in faults.dropped for pair in pairs]
        rows = np.concatenate([rows[kept], faults.flashes.get(frame, np.zeros((0, 6)))])
        rows = rows[np.argsort(-rows[:, 4], kind="stable")][:100]
        found = np.zeros((1, 100, 6), np.float32)
        found[0, : len(rows)] = rows
        return found


def plan_faults(truths: Sequence[Truth], *, seed: int, dropouts: int = 2) -> Faults:
    """Returns one fault for every object that is in clear view for long enough, and flashes between them.

    An object is in clear view if the picture's border does not cut it and 70 % of it are seen, now and in the
    twelve frames around. Of three objects, two lose their box for 1 to `dropouts` frames, and one its class.

    Args:
        truths: of all frames.
        seed: of what errs when.
        dropouts: the largest number of frames without a box.
    """
    rng = np.random.default_rng(seed)
    dropped: dict[int, tuple[int, ...]] = {}
    flips: dict[tuple[int, int], int] = {}
    for number, frames in _clear_frames(truths).items():
        # Six frames seen before, and six after.
        places = [at for at in frames if all(near in frames for near in range(at - 6, at + 7))]
        if not places:
            continue
        at = int(rng.choice(places))
        if rng.random() < 1 / 3:
            label = int(truths[at].label[truths[at].number == number][0])
            flips[at, number] = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
        else:
            dropped[number] = tuple(range(at, at + int(rng.integers(1, dropouts + 1))))
    pairs = frozenset((frame, number) for number, frames in dropped.items() for frame in frames)
    flashes = {at: row for at in range(20, len(truths), 40) if (row := _flash(truths[at], rng)) is not None}
    return Faults(pairs, flips, flashes)


def _clear_frames(truths: Sequence[Truth]) -> dict[int, set[int]]:
    clear: dict[int, set[int]] = {}
    for frame, truth in enumerate(truths):
        inside = (truth.boxes > 12).all(1) & (truth.boxes[:, [0, 2]] < WIDTH - 12).all(1)
        inside &= (truth.boxes[:, [1, 3]] < HEIGHT - 12).all(1)
        for number in truth.number[inside & truth.whole & (truth.visible >= 0.7)]:
            clear.setdefault(int(number), set()).add(frame)
    return clear


def _flash(truth: Truth, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """Returns a box [1,6] where nothing is; None if no such place was found."""
    for _ in range(50):
        x, y = rng.uniform(20, WIDTH - 120), rng.uniform(20, HEIGHT - 120)
        side = rng.uniform(20, 80)
        box = np.array([x, y, x + side, y + side])
        apart = (truth.boxes[:, :2] > box[2:] + 40).any(1) | (truth.boxes[:, 2:] < box[:2] - 40).any(1)
        if apart.all():
            return np.array([[*box, rng.uniform(0.4, 0.9), rng.integers(len(CLASSES))]])
    return None


def found(
    faults: Faults, events: dict[int, Sequence[Event]], truths: Sequence[Truth]
) -> dict[str, list[bool]]:
    """Returns for every fault whether an event of its kind was reported at its first frame and place.

    Args:
        faults: that the detector had.
        events: of every frame.
        truths: of every frame.
    """
    first: dict[int, int] = {}
    for frame, number in sorted(faults.dropped):
        first.setdefault(number, frame)
    breaks = [_is_there("break", events[at], _box_of(truths[at], number)) for number, at in first.items()]
    flips = [_is_there("flip", events[at], _box_of(truths[at], number)) for at, number in faults.flips]
    flashes = [_is_there("flash", events[at], row[0, :4]) for at, row in faults.flashes.items()]
    return {"break": breaks, "flip": flips, "flash": flashes}


def _box_of(truth: Truth, number: int) -> NDArray[np.float64]:
    box: NDArray[np.float64] = truth.boxes[truth.number == number][0]
    return box


def _is_there(kind: str, events: Sequence[Event], box: NDArray[np.float64]) -> bool:
    centre = (box[:2] + box[2:]) / 2
    return any(
        event.kind == kind
        and event.box is not None
        and (centre >= event.box[:2]).all()
        and (centre <= event.box[2:]).all()
        for event in events
    )
