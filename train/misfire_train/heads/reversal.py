"""Keeps a protected group out of a failure score: a group classifier behind a gradient reversal (GRAD).

    score [N] --Reversal--> small classifier --> cross-entropy on the groups

The classifier learns to tell the group of a frame from its score. On the way back its gradient changes sign,
so the head learns scores that do not tell it. It is dropped after training: a bundle carries nothing of it.
Ganin and Lempitsky (2015) have the layer; Branchaud-Charron et al. (2021) use it for fairness in active
learning, on the network's features. Here it acts on the score alone, and the network stays as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_runtime.errors import ConfigError

UNKNOWN = -1
"""Group of a frame that the file does not name; it teaches the classifier nothing."""
LEARNING_RATE = 1e-2
"""Of the classifier: it has to follow a head that changes under it."""
_HIDDEN = 16
_LEAST = 10
"""Frames of a group; fewer are no group that a classifier could learn."""


class Reversal(torch.autograd.Function):
    """Returns its input, and the negative gradient times a weight."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: float) -> Tensor:
        """Returns the values."""
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Returns the reversed gradient."""
        return -ctx.weight * gradients[0], None


class GroupClassifier(nn.Module):
    """Tells the group of a frame from its score.

    Args:
        groups: their number.
        weight: of the reversed gradient.
    """

    def __init__(self, groups: int, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.layers = nn.Sequential(nn.Linear(1, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, groups))

    def forward(self, scores: Tensor, groups: Tensor) -> Tensor:
        """Returns the cross-entropy of the groups [N] that are known, by scores [N]; a scalar."""
        known = groups != UNKNOWN
        if not bool(known.any()):
            return scores.new_zeros(())
        some = scores[known]
        # A score has no scale of its own; without this the head would only make it small.
        plain = (some - some.mean()) / some.std(unbiased=False).clamp_min(1e-6)
        turned: Tensor = Reversal.apply(plain[:, None], self.weight)  # type: ignore[no-untyped-call]
        return functional.cross_entropy(self.layers(turned), groups[known])


def read_groups(path: Path, ids: Sequence[str]) -> Tensor:
    """Returns the number of each frame's protected group, int64 [N]; UNKNOWN if the file does not name it.

    Args:
        path: of a CSV with the column `id` and one more, which has the group.
        ids: of the frames.

    Raises:
        ConfigError: it cannot be read, has other columns, or names fewer than two groups of these frames.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            columns = [name for name in rows.fieldnames or () if name != "id"]
            if "id" not in (rows.fieldnames or ()) or len(columns) != 1:
                raise ConfigError(f"{path}: expected the column id and one more, with the protected group")
            named = {row["id"]: row[columns[0]] or "" for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error
    found = [named.get(each) for each in ids]
    counts = {name: found.count(name) for name in sorted({name for name in found if name})}
    groups = [name for name, count in counts.items() if count >= _LEAST]
    if len(groups) < 2:
        shown = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:8]) or "none of them"
        raise ConfigError(
            f"{path}: head.protect needs two groups of at least {_LEAST} held-out frames each; it names "
            f"{shown}"
        )
    numbers = {name: number for number, name in enumerate(groups)}
    return torch.tensor([numbers.get(name or "", UNKNOWN) for name in found])
