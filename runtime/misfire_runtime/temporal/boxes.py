"""Finds what flickers in the boxes of a detector: breaks, flashes and flips of class.

detections --score >= threshold--> boxes --tracks--> events of the frame two back

break  a track of at least 3 hits and mean score .6 has no box at t, and one again at t+1 or t+2
flash  a box at t that continues nothing and is continued by nothing
flip   the box that continues a track has another class

Breaks and flashes count only where the detector had to see the object: inside the picture by a margin, and
not behind a larger box. A track causes one event in its life. A break or flip weighs the track's mean score,
a flash the score of its box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.temporal.base import AnswerFormat, Comparison, Event, Finding, with_article
from misfire_runtime.temporal.registry import register
from misfire_runtime.temporal.tracks import Boxes, Pairs, Tracks, area, assign, intersection

MAX_BOXES = 200
"""Of a frame, the best first: assignment takes time with the square of their number."""
MAX_VALUE = 1e6
"""Of a coordinate in pixels, and of a class number."""
MIN_HITS = 3
MIN_MEAN_SCORE = 0.6
"""Boxes that come and go around the threshold are no proof of an object; a track of sure boxes is."""
MAX_MISSED = 2
"""Frames without a box after which a track must have returned."""
MARGIN = 0.02
"""Of the picture's shorter side. Nearer to the border an object may be leaving or entering."""
COVERED = 0.2
"""Share of a box under a larger one from which on it may be hidden."""
MERGED = 0.5
"""Share of a box under others of any size: suppression may have taken two objects that meet for one."""
LOWER = 0.1
"""Share of a box's height by which its lower edge must be below another's to be in front of it."""


@register
class BoxComparison(Comparison[NDArray[np.float64]]):
    """Tracks the kept boxes and reports what a real object would not do."""

    kind = "boxes"
    delay = 2

    def __init__(self, form: AnswerFormat) -> None:
        super().__init__(form)
        self.reset()

    def reset(self) -> None:
        """See Comparison."""
        self._number = -1
        self._tracks = Tracks.begin(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), 0)
        self._events: dict[int, list[Event]] = {}

    def read(self, answer: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the kept rows [N,6] of detections [1,M,6]: x0 y0 x1 y1 score class in network pixels.

        Boxes that are not finite are left out: what they are of is not seen in this frame.
        """
        rows = np.asarray(answer[0, :MAX_BOXES], np.float64)
        # Bounded: the area of what a broken graph may give would overflow.
        rows = np.clip(rows[np.isfinite(rows).all(1)], -MAX_VALUE, MAX_VALUE)
        # Above 0 as well: rows of zeros fill the answer up.
        kept = (rows[:, 4] >= self.form.threshold) & (rows[:, 4] > 0)
        # A box without an area can continue nothing, and would flash in every frame.
        return rows[kept & (rows[:, 2:4] > rows[:, :2]).all(1)]

    def compare(self, rows: NDArray[np.float64], *, elapsed_s: float) -> Finding | None:
        """See Comparison."""
        self._number += 1
        boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        if self._number == 0:
            self._tracks = Tracks.begin(boxes, labels, scores, 0)
            return None
        self._tracks.predict(elapsed_s)
        pairs = assign(self._tracks, boxes, labels)
        self._note_breaks_and_flips(pairs, labels)
        self._note_missed(pairs, boxes)
        self._tracks.update(pairs, boxes, labels, scores)
        self._tracks.keep(self._tracks.missed <= MAX_MISSED)
        new = np.ones(len(boxes), np.bool_)
        new[[pair[1] for pair in pairs]] = False
        self._tracks.extend(Tracks.begin(boxes[new], labels[new], scores[new], self._number))
        settled = self._number - self.delay
        found = self._events.pop(settled, [])
        return Finding(tuple(found)) if settled >= 1 else None

    def _note_breaks_and_flips(self, pairs: Pairs, labels: NDArray[np.int64]) -> None:
        """Reports tracks that have returned, and those whose box has another class now."""
        tracks = self._tracks
        for track, box in pairs:
            if tracks.told[track]:
                continue
            if tracks.vanished[track] >= 0:
                self._tell(track, "break", int(tracks.vanished[track]), f"{self._seen(track)} vanished")
            elif tracks.label[track] != labels[box] and self._established(track):
                became = with_article(self.form.class_name(int(labels[box])))
                self._tell(track, "flip", self._number, f"{self._seen(track)} became {became}")

    def _note_missed(self, pairs: Pairs, boxes: Boxes) -> None:
        """Marks the tracks that miss their box for the first time, and reports boxes that were a flash."""
        tracks = self._tracks
        first = tracks.missed == 0
        first[[pair[0] for pair in pairs]] = False
        missing = np.flatnonzero(first & ~tracks.told)
        clear = self._in_clear_view(tracks.box[missing], boxes)
        for track in missing[clear]:
            # What is there at the first frame may have been there before it: that is no flash.
            if tracks.hits[track] == 1 and tracks.born[track] > 0:
                text = f"{with_article(self._class_of(track))} appeared for one frame"
                self._tell(track, "flash", int(tracks.born[track]), text)
            elif self._established(track):
                tracks.vanished[track], tracks.place[track] = self._number, tracks.box[track]

    def _in_clear_view(self, wanted: Boxes, boxes: Boxes) -> NDArray[np.bool_]:
        """Returns which boxes lie inside the picture by the margin, and not behind a larger one."""
        x0, y0, x1, y1 = self.picture
        margin = MARGIN * min(x1 - x0, y1 - y0)
        low = wanted[:, :2] >= (x0 + margin, y0 + margin)
        inside = np.asarray((low & (wanted[:, 2:] <= (x1 - margin, y1 - margin))).all(1), np.bool_)
        if not len(boxes):
            return inside
        own = area(wanted)
        share = intersection(wanted, boxes) / np.maximum(own, 1e-9)[:, None]
        # On a road what stands lower in the picture is nearer: it hides, and is not hidden.
        share[boxes[None, :, 3] < (wanted[:, 3] - LOWER * (wanted[:, 3] - wanted[:, 1]))[:, None]] = 0.0
        larger = area(boxes)[None] > own[:, None]
        hidden = ((share >= COVERED) & larger).any(1) | (share.sum(1) >= MERGED)
        inside &= ~hidden
        return inside

    def _established(self, track: int) -> bool:
        tracks = self._tracks
        return bool(tracks.hits[track] >= MIN_HITS and self._mean_score(track) >= MIN_MEAN_SCORE)

    def _mean_score(self, track: int) -> float:
        return float(self._tracks.scores[track] / self._tracks.hits[track])

    def _class_of(self, track: int) -> str:
        return self.form.class_name(int(self._tracks.label[track]))

    def _seen(self, track: int) -> str:
        return f"{with_article(self._class_of(track))} seen for {self._tracks.hits[track]} frames"

    def _tell(self, track: int, kind: str, number: int, text: str) -> None:
        place = self._tracks.place if kind == "break" else self._tracks.box
        x0, y0, x1, y1 = (round(float(side), 1) for side in place[track])
        event = Event(kind, self._mean_score(track), text, (x0, y0, x1, y1))
        self._events.setdefault(number, []).append(event)
        self._tracks.told[track] = True
