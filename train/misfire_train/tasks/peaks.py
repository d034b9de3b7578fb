"""Where a heatmap's joint may be: local maxima as hypotheses, weighted by softmax. Exports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ABSENT = -1e4


def cells(places: Tensor, *, width: int, like: Tensor) -> Tensor:
    """Flat positions [...] in maps of that width to (x, y) [...,2] in cells, in the dtype of `like`."""
    return torch.stack((places % width, torch.div(places, width, rounding_mode="floor")), -1).to(like.dtype)


def local_maxima(maps: Tensor, *, radius: int, peaks: int) -> tuple[Tensor, Tensor]:
    """The `peaks` highest local maxima of [N,J,H,W]: values and flat positions, [N,J,peaks].

    A pixel is one where it equals the maximum of its (2 radius + 1)^2 neighbourhood and stands above the
    map's floor: a flat map has none. A plateau counts each of its pixels. Absent peaks have value ABSENT.
    """
    highest = functional.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)
    is_peak = (maps >= highest) & (maps > maps.amin((2, 3), keepdim=True))
    candidates = torch.where(is_peak, maps, ABSENT).flatten(2)
    values, places = candidates.topk(min(peaks, maps.shape[2] * maps.shape[3]), dim=2)
    return values, places


def scaled_peaks(values: Tensor, *, scale: float) -> Tensor:
    """Peak values times `scale`, absent ones untouched: logits over a joint's hypotheses."""
    return torch.where(values > ABSENT / 2, values * scale, values)
