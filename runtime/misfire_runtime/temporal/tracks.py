"""Follows boxes from frame to frame: predicted at constant velocity, assigned greedily.

tracks --predict--> assign(predicted, boxes) --> pairs;  update(pairs);  unmatched tracks wait, then go

Assignment is greedy by overlap, and not by the Hungarian method: a vehicle has no scipy, and the two differ
only where boxes of one class overlap several tracks, which events leave out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""[N,4]: x0 y0 x1 y1."""
Pairs = list[tuple[int, int]]
"""Index of a track, index of its box."""

SAME_CLASS_IOU = 0.2
"""Low: a small box that moves by half its width still overlaps its prediction by as much."""
OTHER_CLASS_IOU = 0.5
"""Two classes on one place are one object only if they agree on the place."""
NEAR_IOU = 0.25
"""Of boxes grown by their size to all sides: for what is new, whose velocity is not known yet.

A pedestrian who crosses moves by more than his width from frame to frame, at 8 frames per second.
"""
POSITION_GAIN, VELOCITY_GAIN = 0.7, 0.3
"""An alpha-beta filter: a detector's boxes jitter, and a velocity from two of them would jitter more."""
MAX_SPEED = 10.0
"""Sides of a box per second: what an assignment to another object might suggest is not believed."""


@dataclass(slots=True)
class Tracks:
    """Holds all tracks as columns of equal length.

    box: as of the newest frame; velocity: per second.  hits: frames with a box; scores: their sum.
    missed: frames since the last box; since_s: seconds since it.  born: number of the first frame.
    vanished: number of the frame since which it is missed, if that is an event once it returns; else -1.
    place: where it should have been at that frame.
    told: an event was reported, and a track reports one.
    """

    box: Boxes
    velocity: Boxes
    label: NDArray[np.int64]
    hits: NDArray[np.int64]
    scores: NDArray[np.float64]
    missed: NDArray[np.int64]
    since_s: NDArray[np.float64]
    born: NDArray[np.int64]
    vanished: NDArray[np.int64]
    place: Boxes
    told: NDArray[np.bool_]

    @classmethod
    def begin(cls, boxes: Boxes, labels: NDArray[np.int64], scores: NDArray[np.float64], born: int) -> Tracks:
        """Returns one new track per box."""
        n = len(boxes)
        return cls(
            box=boxes.copy(),
            velocity=np.zeros((n, 4)),
            label=labels.copy(),
            hits=np.ones(n, np.int64),
            scores=scores.copy(),
            missed=np.zeros(n, np.int64),
            since_s=np.zeros(n),
            born=np.full(n, born, np.int64),
            vanished=np.full(n, -1, np.int64),
            place=boxes.copy(),
            told=np.zeros(n, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.box)

    def predict(self, elapsed_s: float) -> None:
        """Moves every track to where it should be now."""
        self.box += self.velocity * elapsed_s
        self.since_s += elapsed_s

    def update(
        self, pairs: Pairs, boxes: Boxes, labels: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> None:
        """Corrects the tracks of `pairs` by their boxes; all others have missed one frame more."""
        t = np.array([pair[0] for pair in pairs], np.int64)
        b = np.array([pair[1] for pair in pairs], np.int64)
        self.missed += 1
        surprise = boxes[b] - self.box[t]
        # The second box of a track is all that is known of its velocity.
        first = (self.hits[t] == 1)[:, None]
        self.box[t] += np.where(first, 1.0, POSITION_GAIN) * surprise
        velocity = self.velocity[t] + np.where(first, 1.0, VELOCITY_GAIN) * surprise / self.since_s[t, None]
        side = np.maximum(boxes[b, 2:] - boxes[b, :2], 1.0).max(1, keepdims=True)
        self.velocity[t] = np.clip(velocity, -MAX_SPEED * side, MAX_SPEED * side)
        self.label[t] = labels[b]
        self.hits[t] += 1
        self.scores[t] += scores[b]
        self.missed[t], self.since_s[t], self.vanished[t] = 0, 0.0, -1

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drops the tracks that are False in `mask`."""
        if not mask.all():
            for name in self.__slots__:
                setattr(self, name, getattr(self, name)[mask])

    def extend(self, others: Tracks) -> None:
        """Adds other tracks at the end."""
        if len(others):
            for name in self.__slots__:
                setattr(self, name, np.concatenate([getattr(self, name), getattr(others, name)]))


def assign(tracks: Tracks, boxes: Boxes, labels: NDArray[np.int64]) -> Pairs:
    """Returns which box continues which track, best overlap first; each is used once.

    First come boxes of the track's class, then those of another class, then near ones of its class.
    """
    if not len(tracks) or not len(boxes):
        return []
    same = tracks.label[:, None] == labels[None]
    iou = iou_matrix(tracks.box, boxes)
    # +1: every pair of one class comes before every pair of two.
    value = np.where(same, iou + 1.0, iou)
    pairs = _greedy(value, same & (iou >= SAME_CLASS_IOU) | (iou >= OTHER_CLASS_IOU))
    free_tracks = _others(len(tracks), [pair[0] for pair in pairs])
    free_boxes = _others(len(boxes), [pair[1] for pair in pairs])
    if free_tracks.size and free_boxes.size:
        near = iou_matrix(_grown(tracks.box[free_tracks]), _grown(boxes[free_boxes]))
        found = _greedy(near, same[np.ix_(free_tracks, free_boxes)] & (near >= NEAR_IOU))
        pairs += [(int(free_tracks[t]), int(free_boxes[b])) for t, b in found]
    return pairs


def iou_matrix(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Returns the intersection over union of every pair, [A,B]; 0 for boxes without an area."""
    inside = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def intersection(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Returns the common area of every pair, [A,B]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0.0)
    common: NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return common


def area(boxes: Boxes) -> NDArray[np.float64]:
    """Returns the areas, [N]; 0 for a box whose sides have changed places."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    areas: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas


def _grown(boxes: Boxes) -> Boxes:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes[:, :2] - sides, boxes[:, 2:] + sides], 1)


def _greedy(value: NDArray[np.float64], allowed: NDArray[np.bool_]) -> Pairs:
    rows, columns = np.nonzero(allowed)
    pairs: Pairs = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    # Stable: equal overlaps must be assigned alike on every machine.
    for at in np.argsort(-value[rows, columns], kind="stable"):
        row, column = int(rows[at]), int(columns[at])
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def _others(count: int, used: list[int]) -> NDArray[np.int64]:
    free = np.ones(count, np.bool_)
    free[used] = False
    return np.flatnonzero(free)
