"""Finds the local maxima of heatmaps, the hypotheses for a joint, weighted by softmax. It exports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Finite, because infinities turn into NaN in products, and small enough for a half; exp of it is 0.
ABSENT = -1e4


def cells(places: Tensor, *, width: int, like: Tensor) -> Tensor:
    """Returns (x, y) [...,2] in cells for flat positions [...] in maps of that width.

    like: a tensor whose dtype the result takes.
    """
    return torch.stack((places % width, torch.div(places, width, rounding_mode="floor")), -1).to(like.dtype)


def local_maxima(maps: Tensor, *, radius: int, peaks: int) -> tuple[Tensor, Tensor]:
    """Returns the `peaks` highest local maxima of [N,J,H,W]: values and flat positions, [N,J,peaks].

    A pixel is a maximum if it equals the maximum of its (2 radius + 1)^2 neighbourhood and is above the map's
    minimum: a flat map has none. Every pixel of a plateau counts. Absent peaks have the value ABSENT.
    """
    highest = functional.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)
    is_peak = (maps >= highest) & (maps > maps.amin((2, 3), keepdim=True))
    candidates = torch.where(is_peak, maps, ABSENT).flatten(2)
    values, places = candidates.topk(min(peaks, maps.shape[2] * maps.shape[3]), dim=2)
    return values, places


def scaled_peaks(values: Tensor, *, scale: float) -> Tensor:
    """Returns peak values times `scale`, absent ones unchanged: logits over a joint's hypotheses."""
    return torch.where(values > ABSENT / 2, values * scale, values)
