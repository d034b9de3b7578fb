"""Computes the parts of a softmax from one set of sums: all that a head needs of a class answer.

On a vehicle the head's cost is the number of its operations, not their size. So parts that share a sum are
computed together: `rest`, the weight of all classes but the answer, gives log-odds, energy and entropy. Each
is exact even if the answer's probability rounds to 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOOR = -30.0
"""Of log-probabilities and log-odds: below, networks differ in nothing that matters."""
KNOWN_CLASSES = 128
"""Up to so many a head sees the probability of each; more have too few held-out frames to learn from."""
# exp(-100) is zero beside the largest weight, which is 1, and 0 * -100 is still 0.
_LOWEST = -100.0


class Softmax:
    """Holds the parts of the softmax of logits [N,K,...] over dim 1.

    Without a stated shape they are [N,1,...].

    Attributes:
        best: the largest logit.
        answer: one-hot of the predicted class, as numbers [N,K,...].
        p, log_p: [N,K,...].
        each: p if there are few classes, else [N,0,...].
        log_odds: log (1 - p_max) / p_max.
        entropy: in nats.
        energy: logsumexp.
    """

    def __init__(self, logits: Tensor) -> None:
        best = logits.amax(1, keepdim=True)
        # The floor keeps a masked class (logit -inf) from 0 * -inf.
        gap = (logits - best).clamp_min(_LOWEST)
        weight = torch.exp(gap)
        self.answer = is_predicted(logits).to(logits.dtype)
        rest = (weight - weight * self.answer).sum(1, keepdim=True)
        total = 1 + rest
        log_total = torch.log(total)
        self.best = best
        self.p = weight / total
        self.log_p = (gap - log_total).clamp_min(FLOOR)
        self.each = self.p if logits.shape[1] <= KNOWN_CLASSES else self.p[:, :0]
        # A single logit has no rest: it is read as that of a sigmoid.
        self.log_odds = -logits if logits.shape[1] == 1 else torch.log(rest.clamp_min(math.exp(FLOOR)))
        self.energy = best + log_total
        self.entropy = log_one_plus_sum(rest) - (gap * weight).sum(1, keepdim=True) / total


def softmax_entropy(logits: Tensor) -> Tensor:
    """Returns the entropy in nats of the softmax over dim 1.

    >>> [round(v, 4) for v in softmax_entropy(torch.tensor([[0.0, 0.0], [900.0, 0.0]])).tolist()]
    [0.6931, 0.0]
    """
    # Sums of positive terms only: log p of a sure class is not read off a p that rounds to 1, so that
    # log(entropy) is as exact at 1e-6 as at 1. The floor keeps a masked class (logit -inf) from 0 * -inf.
    gap = (logits - logits.amax(1, keepdim=True)).clamp_min(-100)
    weight = torch.exp(gap)
    below = gap < 0
    ties = (~below).to(weight.dtype).sum(1) - 1
    rest = torch.where(below, weight, 0.0).sum(1) + ties
    return log_one_plus_sum(rest) - (gap * weight).sum(1) / (1 + rest)


def class_index(logits: Tensor) -> Tensor:
    """Returns 0..K-1 along dim 1, broadcastable against logits."""
    shape = [1, logits.shape[1]] + [1] * (logits.ndim - 2)
    return torch.arange(logits.shape[1], device=logits.device).reshape(shape)


def is_predicted(logits: Tensor) -> Tensor:
    """Returns the boolean one-hot of the predicted class along dim 1; on a tie, exactly one is set."""
    return class_index(logits) == logits.argmax(1, keepdim=True)


def log_one_plus_sum(x: Tensor) -> Tensor:
    """Returns log(1 + x) for x >= 0, exact near 0; below the rounding of 1 + x it is x to the last digit."""
    # What rounding took from 1 + x cancels in the quotient; the floor keeps it from 0/0. ONNX has no log1p.
    shifted = (1 + x).clamp_min(1 + 2 * torch.finfo(x.dtype).eps)
    return x * (torch.log(shifted) / (shifted - 1))


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Returns the Jensen-Shannon divergence in nats of two softmax distributions over dim 1.

    >>> round(jensen_shannon(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])).item(), 4)
    0.6931
    """
    log_a = torch.log_softmax(first, 1).clamp_min(-100)
    log_b = torch.log_softmax(second, 1).clamp_min(-100)
    a, b = torch.exp(log_a), torch.exp(log_b)
    log_m = torch.log(((a + b) / 2).clamp_min(1e-38))
    return ((a * (log_a - log_m)).sum(1) + (b * (log_b - log_m)).sum(1)).clamp_min(0) / 2
