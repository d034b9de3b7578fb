"""Finds pixels of a segmentation that have their class for one frame only.

logits --thinned, argmax--> map of classes; the last three maps --differs from both, eroded--> share of pixels

Borders of objects move a little from frame to frame, and the pixels beside them change: erosion removes what
is no thicker than two pixels of the thinned map.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.temporal.base import AnswerFormat, Comparison, Event, Finding
from misfire_runtime.temporal.registry import register

MAX_SIDE = 192
"""Of the thinned map: a share of pixels does not need all of them, and argmax over classes is the cost."""
_KERNEL = np.ones((3, 3), np.uint8)


@register
class MaskComparison(Comparison[NDArray[np.uint16]]):
    """Measures the share of pixels whose class differs from both neighbours in time, borders eroded."""

    kind = "segmentation"
    delay = 1

    def __init__(self, form: AnswerFormat) -> None:
        super().__init__(form)
        self._last: deque[NDArray[np.uint16]] = deque(maxlen=3)

    def reset(self) -> None:
        """See Comparison."""
        self._last.clear()

    def read(self, answer: NDArray[Any]) -> NDArray[np.uint16] | None:
        """Returns the best class of every pixel of a thinned map.

        Args:
            answer: logits [1,K,H,W]; of one channel, the sign is the answer.
        """
        planes = answer[0]
        step = max(1, -(-max(planes.shape[1:]) // MAX_SIDE))
        planes = planes[:, ::step, ::step]
        if not np.isfinite(planes).all():
            return None
        best = planes[0] > 0 if len(planes) == 1 else planes.argmax(0)
        return np.asarray(best, np.uint16)

    def compare(self, reading: NDArray[np.uint16], *, elapsed_s: float) -> Finding | None:
        """See Comparison."""
        self._last.append(reading)
        if len(self._last) < 3:
            return None
        before, here, after = self._last
        changed = ((here != before) & (here != after)).astype(np.uint8)
        # Constant border: a region that touches the picture's border is not eroded from outside.
        kept = cv2.erode(changed, _KERNEL, borderType=cv2.BORDER_CONSTANT, borderValue=1).astype(bool)
        count = int(kept.sum())
        if not count:
            return Finding()
        share = count / kept.size
        most = self.form.class_name(int(np.bincount(here[kept]).argmax()))
        text = f"{share:.1%} of pixels changed for one frame, most of them to {most}"
        return Finding((Event("pixels", share, text),))
