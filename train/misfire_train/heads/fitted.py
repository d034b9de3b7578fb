"""Holds what training a head gives: the head, and what it showed on images that it was not fitted on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from misfire_train.heads.base import LossHead

CHECK_SHARE = 0.15
"""Share of the held-out images that a head is checked on, if nothing is left out to choose its strength."""


@dataclass(frozen=True)
class HeadReport:
    """Holds what training a head showed on the images that it was not fitted on.

    Attributes:
        pair_accuracy: of held-out pairs.
        deviation: of the scores; 0 is a constant.
        collapsed: why the head is useless, or None.
        loss_scale: c of predicted loss = c * exp(score).
        aurc, aurc_base: area under the risk-coverage curve of the head and of the free score that it
        corrects.
    """

    recipe: str
    samples: int
    units: int
    steps: int
    base: str | None
    pair_accuracy: float
    deviation: float
    collapsed: str | None
    loss_scale: float
    aurc: float
    aurc_base: float | None = None
    auroc: float | None = None
    auroc_base: float | None = None
    notes: tuple[str, ...] = ()
    choice: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for run.json."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """Holds a trained head, in eval mode, and its report."""

    head: LossHead
    report: HeadReport


def name_collapse(deviation: float, accuracy: float) -> str | None:
    """Returns why a head has learned nothing, from held-out scores and pairs.

    None if it has learned something.

    >>> name_collapse(0.0, 0.5)
    'collapsed: the score is a constant'
    >>> name_collapse(1.0, 0.8) is None
    True
    """
    if not math.isfinite(deviation) or deviation < 1e-6:
        return "collapsed: the score is a constant"
    if math.isfinite(accuracy) and accuracy <= 0.5:
        return f"collapsed: pair accuracy {accuracy:.3f} on held-out pairs is no better than chance"
    return None
