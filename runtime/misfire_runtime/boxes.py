"""Defines the rule by which a detector's candidates become boxes, and by which boxes are right or wrong.

The rule is part of the manifest, because the truth of a detector depends on it: a box that the vehicle never
shows is neither right nor wrong, and an object below the smallest size is not missed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CANDIDATES = 10_000
"""More would make the matrix of overlaps larger than a vehicle's memory."""

SILENCE = "silence"
"""Score of a frame in which a detector may see nothing; it has a trigger of its own."""

_Share = Annotated[float, Field(ge=0, le=1)]
_PositiveShare = Annotated[float, Field(gt=0, le=1)]


class BoxRule(BaseModel):
    """Describes the deployed threshold and suppression, and the matching with the truth."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    score_threshold: _Share = 0.3
    """A candidate with at least this score becomes a box (s*)."""
    suppression: _PositiveShare = 0.6
    """Of two boxes of one class with a larger IoU, the one with the lower score is dropped (t)."""
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 100
    """Number of best candidates that the graph considers (K)."""
    max_boxes: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 100
    """Rows of `detections`; the answer is padded with zeros (M)."""
    matching: _PositiveShare = 0.5
    """A box with at least this IoU with an object of its class is a true positive (tau)."""
    min_side: Annotated[float, Field(ge=0, le=8192)] = 8.0
    """Objects with a shorter side below this, in network pixels, are neither missed nor false (m)."""
    alarm: _Share = 0.5
    """A false box with at least this score makes the frame a failure (s_alarm)."""
    classes: tuple[str, ...] = ()
    """Classes whose missed objects make a frame a failure; none: all."""

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> BoxRule:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        return self
