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


class Decoder(nn.Module):
    """Is the base of all: `forward(*tensors)` returns the dense answer of the tensors that a layout named.

    keep: rows with the best class that are returned; 0 returns all.
    """

    keep: int = 0

    def answer(
        self,
        boxes: Tensor,
        scores: Tensor,
        *,
        objectness: Tensor | None = None,
        are_logits: bool = False,
        spread: Tensor | None = None,
        cells: Tensor | None = None,
        strides: Tensor | None = None,
    ) -> Tensor:
        """Returns [N,P,K+8]; zeros where something is unknown.

        The best rows are chosen before log-odds are taken: logarithms of thousands of cells times classes
        would cost more than all scores together.

        Args:
            boxes: corners [N,P,4].
            scores: [N,P,K] in 0..1, or logits.
            objectness: [N,P,1] in 0..1 that scores are multiplied by.
            are_logits: scores are logits.
            spread: [N,P] in network pixels.
            cells: [P,2].
            strides: [P].
        """
        parts = [boxes, scores]
        nothing = torch.zeros_like(boxes[..., :1])
        if objectness is not None:
            parts.append(objectness)
        places = nothing.expand(-1, -1, 3)
        if cells is not None and strides is not None:
            places = torch.cat((cells, strides[:, None]), -1)[None] + nothing
        parts += [nothing if spread is None else spread[..., None], places]
        if 0 < self.keep < boxes.shape[1]:
            best = scores.amax(2) if objectness is None else scores.amax(2) * objectness[..., 0]
            index = best.topk(self.keep, dim=1)[1][..., None]
            parts = [torch.gather(part, 1, index.expand(-1, -1, part.shape[2])) for part in parts]
        boxes, scores, *rest = parts
        if objectness is not None:
            scores, rest = scores * rest[0], rest[1:]
        return torch.cat((boxes, scores if are_logits else log_odds(scores), *rest), -1)
