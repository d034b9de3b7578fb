"""Shifts pictures and masks, each by its own number of pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def shift_planes(planes: Tensor, moves: Tensor, *, pad: int, mode: str, value: float = 0.0) -> Tensor:
    """Returns [N,C,H,W] shifted by moves [2,N] (down, right), each at most `pad`.

    Args:
        planes: [N,C,H,W].
        moves: int64 [2,N], pixels down and to the right.
        pad: the largest shift.
        mode: what fills the border, as in `torch.nn.functional.pad`.
        value: the filling of "constant".
    """
    height, width = planes.shape[2:]
    # torch refuses a value other than 0 in every other mode.
    fill = {"value": value} if mode == "constant" else {}
    padded = functional.pad(planes, (pad,) * 4, mode=mode, **fill)
    rows = torch.arange(height)[None] + pad - moves[0][:, None]
    columns = torch.arange(width)[None] + pad - moves[1][:, None]
    which = torch.arange(len(planes))[:, None, None]
    gathered = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2).contiguous()
