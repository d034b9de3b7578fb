"""Reads a detector's boxes out of a graph's output, and keeps what can be a box.

detections [1,M,6] + Placement --find_boxes--> Boxes, in pixels of the picture --brief_boxes--> for an offer

A foreign graph may answer with anything. What cannot be a box (not finite, no area, a score above 1) is
dropped and counted, and never raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import EngineError
from misfire_runtime.messages import MAX_TEXT
from misfire_runtime.placement import Placement

MAX_BOXES = 64
"""Boxes in an offer: about 5 KB; further ones are counted."""
P_TP = "box.p_tp"
_MAX_LABEL = 1_000_000
# Rounding inside the graph may lift a score of 1 a little.
_ABOVE_ONE = 1e-3


@dataclass(frozen=True)
class Boxes:
    """Holds the boxes of one picture, the best score first.

    corners: [n,4] x0 y0 x1 y1, in pixels of the picture, inside of it.  scores: [n].  labels: [n].
    p_tp: [n] probabilities that a box is right, NaN if unknown; None if the graph does not say.
    dropped: rows that are no boxes.  not_finite: of these, rows with NaN or infinite values.
    """

    corners: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    p_tp: NDArray[np.float32] | None = None
    dropped: int = 0
    not_finite: int = 0

    def __len__(self) -> int:
        return len(self.scores)


def check_detections(shape: tuple[int, ...], *, name: str) -> None:
    """Raises EngineError unless the shape is that of the detections of one picture, [1,M,6]."""
    if len(shape) != 3 or shape[0] != 1 or shape[2] != 6:
        raise EngineError(f"{name} has shape {list(shape)} for one frame; expected [1,M,6]")


def find_boxes(
    detections: NDArray[Any], place: Placement | None = None, *, p_tp: NDArray[Any] | None = None
) -> Boxes:
    """Returns the boxes of one picture.

    Args:
        detections: [1,M,6] x0 y0 x1 y1 score class, in network pixels; a score of 0 is no box.
        place: maps them to the picture; None leaves them in network pixels, not clipped.
        p_tp: [1,M] probabilities that a box is right.
    """
    rows = np.asarray(detections, np.float32).reshape(-1, 6)
    chances = None if p_tp is None or p_tp.size != len(rows) else np.asarray(p_tp, np.float32).reshape(-1)
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    # Of a row that is not finite, the score may be the number that is not.
    is_box = ~finite | (rows[:, 4] > 0)
    corners = (
        rows[:, :4]
        if place is None
        else place.clip(place.to_image(np.where(finite[:, None], rows, 0)[:, :4]))
    )
    usable = (
        finite
        & is_box
        & (rows[:, 4] <= 1 + _ABOVE_ONE)
        & (corners[:, 2] > corners[:, 0])
        & (corners[:, 3] > corners[:, 1])
        & (rows[:, 5] >= 0)
        & (rows[:, 5] < _MAX_LABEL)
    )
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(-rows[kept, 4], kind="stable")]
    return Boxes(
        corners=corners[kept],
        scores=np.minimum(rows[kept, 4], np.float32(1)),
        labels=rows[kept, 5].astype(np.int64),
        p_tp=None if chances is None else np.clip(chances[kept], 0, 1),
        dropped=int(is_box.sum() - len(kept)),
        not_finite=int((~finite).sum()),
    )


def brief_boxes(boxes: Boxes, classes: tuple[str, ...], place: Placement | None = None) -> dict[str, Any]:
    """Returns the best 64 boxes as an offer carries them, and how many more there are.

    {"boxes": [{"class", "score", "p" if known, "box": [x0, y0, x1, y1]}], "more": n, "size": [width, height]
    of the picture}, and `dropped` and `not_finite` if rows of the answer could not be boxes.
    """
    found = []
    for i in range(min(len(boxes), MAX_BOXES)):
        box = {"class": class_name(int(boxes.labels[i]), classes), "score": round(float(boxes.scores[i]), 4)}
        if boxes.p_tp is not None and np.isfinite(boxes.p_tp[i]):
            box["p"] = round(float(boxes.p_tp[i]), 4)
        found.append({**box, "box": [round(float(side), 1) for side in boxes.corners[i]]})
    brief: dict[str, Any] = {"boxes": found, "more": len(boxes) - len(found), **size_of(place)}
    problems = (("dropped", boxes.dropped), ("not_finite", boxes.not_finite))
    return brief | {name: count for name, count in problems if count}


def class_name(index: int, classes: tuple[str, ...]) -> str:
    """Returns a class name as far as it fits an offer."""
    return classes[index][:MAX_TEXT] if index < len(classes) else str(index)


def size_of(place: Placement | None) -> dict[str, list[int]]:
    """Returns the size of the picture: that in a file's header is another if Exif turns it upright."""
    return {} if place is None else {"size": [place.width, place.height]}
