"""Shifts pictures and masks, each by its own number of pixels, and zooms pictures."""

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


def zoom_planes(planes: Tensor, zoom: Tensor) -> Tensor:
    """Returns [N,C,H,W] enlarged or reduced, bilinear; the border is repeated.

    Args:
        planes: [N,C,H,W].
        zoom: [N,3], the factor of each picture, and x and y of the point that stays, with the left and upper
            edge at 0.
    """
    height, width = planes.shape[2:]
    factor, x, y = zoom.to(planes.dtype).unbind(1)
    # grid_sample asks where each pixel comes from, and puts the picture's edges at -1 and 1.
    shrink, still = 1 / factor, torch.zeros_like(factor)
    across = torch.stack((shrink, still, (2 * x / width - 1) * (1 - shrink)), 1)
    down = torch.stack((still, shrink, (2 * y / height - 1) * (1 - shrink)), 1)
    places = functional.affine_grid(torch.stack((across, down), 1), list(planes.shape), align_corners=False)
    return functional.grid_sample(planes, places, padding_mode="border", align_corners=False)
