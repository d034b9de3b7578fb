"""Finds class answers that hold for one frame only: another class before, and another after."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.temporal.base import AnswerFormat, Comparison, Event, Finding
from misfire_runtime.temporal.registry import register


@register
class ClassComparison(Comparison[tuple[int, float]]):
    """Compares the best class with that of both neighbours.

    An event weighs the neighbours' mean confidence: a surprise among sure answers is worth more.
    """

    kind = "logits"
    delay = 1

    def __init__(self, form: AnswerFormat) -> None:
        super().__init__(form)
        self._last: deque[tuple[int, float]] = deque(maxlen=3)

    def reset(self) -> None:
        """See Comparison."""
        self._last.clear()

    def read(self, answer: NDArray[Any]) -> tuple[int, float] | None:
        """Returns the likeliest class of logits [1,K] and its probability; of one logit, the sign decides."""
        logits = np.asarray(answer, np.float64).reshape(-1)
        return _best(logits) if logits.size and np.isfinite(logits).all() else None

    def compare(self, reading: tuple[int, float], *, elapsed_s: float) -> Finding | None:
        """See Comparison."""
        self._last.append(reading)
        if len(self._last) < 3:
            return None
        before, here, after = self._last
        if here[0] in (before[0], after[0]):
            return Finding()
        name = self.form.class_name
        around = "before and after" if before[0] == after[0] else f"before, {name(after[0])} after"
        text = f"{name(here[0])} for one frame, {name(before[0])} {around}"
        return Finding((Event("class", (before[1] + after[1]) / 2, text),))


def _best(logits: NDArray[np.float64]) -> tuple[int, float]:
    """Returns the likeliest class and its probability."""
    if logits.size == 1:
        # abs: the probability of the answer, whichever of the two it is; exp(-|x|) cannot overflow.
        return int(logits[0] > 0), float(1.0 / (1.0 + np.exp(-abs(logits[0]))))
    best = int(logits.argmax())
    return best, float(1.0 / np.exp(logits - logits[best]).sum())
