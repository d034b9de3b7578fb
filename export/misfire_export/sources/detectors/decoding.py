"""Turns what a detector's head gives into a dense answer, by ordinary operators that enter the graph.

scores --clip, log-odds--> logits       distances, distributions --cells--> corners, spread
                                        all of it --> [N,P,K+8]: box | K logits | spread, cell, stride

Scores are clipped to LEAST..MOST before their log-odds are taken: fp32 resolves steps of 6e-8 near 1, and
nothing distinguishes a score below one in ten million from zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

LEAST, MOST = 1e-7, 1 - 1e-6
Format = Literal["xyxy", "cxcywh", "yxyx", "cycxhw"]
FORMATS: tuple[Format, ...] = ("xyxy", "cxcywh", "yxyx", "cycxhw")


def log_odds(scores: Tensor) -> Tensor:
    """Returns the logits of scores in 0..1, clipped."""
    p = scores.clamp(LEAST, MOST)
    return torch.log(p) - torch.log(1 - p)


def as_corners(boxes: Tensor, form: Format) -> Tensor:
    """Returns boxes [..,4] of another form as x0 y0 x1 y1."""
    a, b, c, d = boxes.unbind(-1)
    if form == "yxyx":
        return torch.stack((b, a, d, c), -1)
    if form == "cycxhw":
        a, b, c, d = b, a, d, c
    if form in ("cxcywh", "cycxhw"):
        return torch.stack((a - c / 2, b - d / 2, a + c / 2, b + d / 2), -1)
    return boxes


def from_sides(sides: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Returns corners of distances left, top, right, bottom [N,P,4] in strides, from centres [P,2]."""
    x, y, scale = cells[:, 0], cells[:, 1], strides
    left, top, right, bottom = sides.unbind(-1)
    return torch.stack((x - left * scale, y - top * scale, x + right * scale, y + bottom * scale), -1)


def side_statistics(bins: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation, [..], of distributions [..,R] over 0..R-1."""
    places = torch.arange(bins.shape[-1], dtype=bins.dtype, device=bins.device)
    mean = (bins * places).sum(-1)
    variance = (bins * (places - mean[..., None]).square()).sum(-1)
    return mean, variance.clamp_min(0).sqrt()


def dense_answer(
    boxes: Tensor,
    logits: Tensor,
    *,
    spread: Tensor | None = None,
    cells: Tensor | None = None,
    strides: Tensor | None = None,
) -> Tensor:
    """Returns [N,P,K+8] of corners [N,P,4] and logits [N,P,K]; zeros where something is unknown.

    spread: [N,P] in network pixels.  cells: [P,2].  strides: [P].
    """
    nothing = torch.zeros_like(boxes[..., :1])
    wide = nothing if spread is None else spread[..., None]
    if cells is None or strides is None:
        return torch.cat((boxes, logits, wide, nothing, nothing, nothing), -1)
    places = torch.cat((cells, strides[:, None]), -1)[None] + nothing
    return torch.cat((boxes, logits, wide, places), -1)


def best_rows(dense: Tensor, count: int) -> Tensor:
    """Returns the `count` rows of a dense answer with the best class, best first; all if there are fewer."""
    count = min(count, int(dense.shape[1]))
    index = dense[..., 4:-4].amax(2).topk(count, dim=1)[1]
    return torch.gather(dense, 1, index[..., None].expand(-1, -1, dense.shape[2]))


class Decoder(nn.Module):
    """Is the base of all: `forward(*tensors)` returns the dense answer of the tensors that a layout named."""
