"""A softmax in parts, from one set of sums: all that a head asks of a class answer, in few small operations.

On a vehicle the head's cost is the number of its operations, not their size. So what shares a sum is computed
together: rest, the weight of all classes but the answer, gives log-odds, energy and entropy, each exact where
the answer is so sure that its probability rounds to 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from misfire_train.scores.last_layer import is_predicted, log_one_plus_sum

FLOOR = -30.0
"""Of log-probabilities and log-odds: below, networks differ in nothing that matters."""
KNOWN_CLASSES = 128
"""Up to so many a head sees the probability of each; more have too few held-out frames to learn from."""
_LOWEST = -100.0


class Softmax:
    """Of logits [N,K,...] over dim 1; parts without a shape are [N,1,...].

    best: largest logit.  answer: one-hot of the predicted class, as numbers [N,K,...].  p, log_p: [N,K,...].
    each: p where the classes are few, else [N,0,...].  log_odds: log (1 - p_max) / p_max.  entropy: nats.
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
        # One number has no others to have odds against: it stands for a sigmoid's.
        self.log_odds = -logits if logits.shape[1] == 1 else torch.log(rest.clamp_min(math.exp(FLOOR)))
        self.energy = best + log_total
        self.entropy = log_one_plus_sum(rest) - (gap * weight).sum(1, keepdim=True) / total
