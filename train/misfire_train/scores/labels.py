"""Scores answers of independent labels [N,K]: each label's sigmoid is a belief of its own.

any_label_wrong    1 - prod_k max(p_k, 1 - p_k)           what `failed` of the task asks
wrong_labels       sum_k min(p_k, 1 - p_k)                 expected number of wrong labels
label_entropy      mean_k of the binary entropy
least_sure_label   max_k min(p_k, 1 - p_k)
label_egl          sum_k p_k (1 - p_k) ||phi~||^2          expected squared gradient of the last layer
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.scores.last_layer import exp_minus_one, feature_energy
from misfire_train.scores.output_only import OutputScore
from misfire_train.scores.registry import register
from misfire_train.signals import Score, Signals
from misfire_train.tasks.multi_label import label_entropies, log_all_right

LABELS = ("multi-label",)
# exp(-79) is zero in fp32 beside 1.
_LEAST = -79.0


@register(tasks=LABELS, source="labels independent, as the network assumes")
class AnyLabelWrong(OutputScore):
    """Scores the probability that at least one label is wrong."""

    name = "any_label_wrong"
    definition = "1 - prod_k max(p_k, 1 - p_k)"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns 1 - prod_k max(p_k, 1 - p_k), [N], exact near 0."""
        return -exp_minus_one(log_all_right(outputs).clamp_min(_LEAST))


@register(tasks=LABELS, source="expected Hamming loss")
class WrongLabels(OutputScore):
    """Scores the expected number of wrong labels."""

    name = "wrong_labels"
    definition = "sum_k min(p_k, 1 - p_k)"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns sum_k min(p_k, 1 - p_k), [N]."""
        return torch.sigmoid(-outputs.abs()).sum(1)


@register(tasks=LABELS, source="Shannon 1948")
class LabelEntropy(OutputScore):
    """Scores the mean binary entropy of the labels in nats."""

    name = "label_entropy"
    definition = "mean_k of -p_k log p_k - (1 - p_k) log(1 - p_k)"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns the mean binary entropy, [N]."""
        return label_entropies(outputs).mean(1)


@register(tasks=LABELS, source="least confidence of one label")
class LeastSureLabel(OutputScore):
    """Scores the probability that the least sure label is wrong."""

    name = "least_sure_label"
    definition = "max_k min(p_k, 1 - p_k)"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns max_k min(p_k, 1 - p_k), [N]."""
        return torch.sigmoid(-outputs.abs()).amax(1)


@register(tasks=LABELS, source="Settles 2008, closed form for sigmoids")
class LabelEgl(Score):
    """Scores the expected squared gradient of the last layer, labels drawn from the model's own belief."""

    name = "label_egl"
    definition = "sum_k p_k (1 - p_k) ||phi~||^2 / C"

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        p = torch.sigmoid(signals.outputs)
        # 1 - p of a sure label is its other sigmoid, without a difference.
        return (p * torch.sigmoid(-signals.outputs)).sum(1) * feature_energy(signals)
