"""Reads a network's answer as logits: of two classes where it gives one number, and of sigmoids.

answer --sigmoids: the last layer's result, or log-odds--> logits
       --one number for each place: [0, logit]--> logits of two classes

A lane or road network gives one map of sigmoids. The failure scores take a softmax, and the softmax of
[0, z] is [1 - sigmoid(z), sigmoid(z)]; the last layer then has a row of zeros for the first class.
Log-odds of a sigmoid near 1 are its rounding error, so what the last layer gave is used wherever its sigmoid
is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# fp32 resolves steps of 6e-8 near 1, so 1 - p below 1e-7 is rounding.
_LEAST = 1e-7


@dataclass(frozen=True)
class Reading:
    """Describes how an answer becomes logits [N,K] or [N,K,H,W].

    single: the answer is one number for each frame or pixel, that of the second of two classes.
    sigmoid: its numbers are probabilities, each for itself.
    inside: the logits of sigmoids are what the last layer gave, scaled up to the answer's size if need be.

    >>> Reading(single=True).logits(torch.tensor([[2.0]]), torch.zeros(1, 1)).tolist()
    [[0.0, 2.0]]
    """

    single: bool = False
    sigmoid: bool = False
    inside: bool = False

    def logits(self, answer: Tensor, made: Tensor) -> Tensor:
        """Returns the logits of an answer. made: what the last layer gave."""
        values = answer.unsqueeze(1) if self.single and answer.ndim in (1, 3) else answer
        if self.inside:
            values = as_large_as(made, values)
        elif self.sigmoid:
            whole = values.float()
            values = torch.log(whole.clamp_min(_LEAST)) - torch.log((1 - whole).clamp_min(_LEAST))
        return torch.cat((torch.zeros_like(values), values), 1) if self.single else values

    def rows(self, parameter: Tensor | None) -> Tensor | None:
        """Returns the last layer's weight [K,C] or bias [K] that gives these logits."""
        if parameter is None or not self.single:
            return parameter
        return torch.cat((torch.zeros_like(parameter), parameter), 0)


def as_large_as(made: Tensor, answer: Tensor) -> Tensor:
    """Returns a layer's result in the shape of the answer, scaled up as networks do."""
    if made.numel() == answer.numel():
        return made.reshape(answer.shape)
    size = (answer.shape[2], answer.shape[3])
    return functional.interpolate(made, size, mode="bilinear", align_corners=False)


def is_single(answer: Tensor, *, by_frame: bool) -> bool:
    """Returns whether an answer has one number for each frame ([N], [N,1]) or pixel ([N,H,W], [N,1,H,W]).

    >>> is_single(torch.zeros(2, 1, 4, 4), by_frame=False), is_single(torch.zeros(2, 3), by_frame=True)
    (True, False)
    """
    bare, full = (1, 2) if by_frame else (3, 4)
    return answer.ndim == bare or (answer.ndim == full and answer.shape[1] == 1)


def is_probable(answer: Tensor) -> bool:
    """Returns whether all numbers are within 0..1."""
    low, high = (float(value) for value in answer.detach().float().aminmax())
    return low >= 0 and high <= 1
