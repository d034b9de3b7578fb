"""Names the columns of a detector's answers and of labelled boxes.

dense answer [N,P,K+8]   x0 y0 x1 y1 | K class logits | spread, cell x, cell y, stride
final answer [N,M,6]     x0 y0 x1 y1 score class, best first; score 0 is no box
targets [N,G,6]          x0 y0 x1 y1 class ignore; padding has class -1 and ignore 0

Places are in network pixels, with continuous edges: the whole input is (0, 0, width, height). A class logit
is that of the score which ranks the boxes; a separate objectness is multiplied in. `spread` is the mean
standard deviation of the four sides, where a detector predicts distributions, else 0. Cells and strides are 0
where they are unknown.
"""

from __future__ import annotations

from torch import Tensor

BOX = 4
EXTRAS = 4
"""Columns after the class logits of a dense answer."""
FINAL = 6
SPREAD, CELL_X, CELL_Y, STRIDE = -4, -3, -2, -1
CLASS, IGNORE = 4, 5
"""Columns of a target."""


def is_final(outputs: Tensor) -> bool:
    """Returns whether an answer is final: a dense one has at least nine columns."""
    return outputs.shape[-1] == FINAL


def class_count(outputs: Tensor) -> int:
    """Returns K of a dense answer [N,P,K+8]."""
    return int(outputs.shape[-1]) - BOX - EXTRAS
