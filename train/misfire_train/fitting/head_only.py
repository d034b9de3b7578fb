"""Fits a residual head again on a few frames of the field, starting from the head that made them.

old head, rows of labelled field frames --AdamW, pulled back to the old weights--> other weights
    once for each fold of groups left out --what each gains--> share of the way from the old to the new

Two hundred frames are too few to train a head on, and enough to move one. So it starts where it is, and a
penalty on the distance to its old weights keeps what the frames do not contradict (L2-SP, Li et al. 2018).
Between old and new weights the head goes as far as groups left out allow: weights on the line between a
network and its fine-tuned copy keep the robustness of the one and the fit of the other (Wortsman et al.
2022). If nothing is shown there, the old head stays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_train.heads.base import LossHead
from misfire_train.heads.data import LossSet
from misfire_train.heads.pairs import row_weights
from misfire_train.heads.recipes import HeadRecipe, recipe_named
from misfire_train.heads.residual import ResidualHead
from misfire_train.heads.strength import (
    LEAST_PER_FOLD,
    MANY_GROUPS,
    STRENGTHS,
    Choice,
    Folds,
    Gain,
    auroc_influence,
    deal_groups,
)
from misfire_train.heads.training import objective_of
from misfire_train.objectives import ratio_eps

Floats = NDArray[np.float64]
FIELD = "field"
"""Name of the only set of columns: the head's own."""
MIN_FRAMES = 40
"""Labelled frames to fit on: ten for each of four folds."""


@dataclass(frozen=True)
class FieldRecipe:
    """Specifies a head-only round.

    Attributes:
        copies: corrupted copies of each frame, beside the frame itself.
        steps, learning_rate, batch: of AdamW with a cosine to zero.
        pull: weight of the squared distance to the old weights.
    """

    copies: int = 4
    steps: int = 200
    learning_rate: float = 2e-3
    batch: int = 128
    pull: float = 1e-3


@dataclass(frozen=True)
class FieldRows:
    """Holds what a head is fitted on: rows of labelled frames and of their corrupted copies.

    weights: [images], how many frames of the stream each image stands for.
    judged: [images] bool, the images on which heads are compared: those that no score has chosen.
    """

    data: LossSet
    weights: Tensor
    judged: NDArray[np.bool_]


@dataclass(frozen=True)
class Refitted:
    """Holds the new head, how far it went, and each image's scores by heads that never saw its group.

    old, new: [images], of the frames as they were.  failed: [images].
    """

    head: ResidualHead
    choice: Choice
    old: Floats
    new: Floats
    failed: NDArray[np.bool_]

    @property
    def changed(self) -> bool:
        """Returns whether the head is another one."""
        return self.choice.strength > 0


def head_from_tensors(recipe: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ResidualHead:
    """Returns a head with these tensors; what it remembers is left out, as `predict` does not need it.

    Raises:
        ConfigError: the recipe or the options are of no such head, or the tensors do not fit them.
    """
    try:
        head = ResidualHead(**options)
        state = head.state_dict() | dict(tensors)
        head.load_state_dict(state)
    except (TypeError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"the bundle's head cannot be built again: {str(error).splitlines()[-1]}"
        ) from error
    head.recipe = recipe
    head.eval().requires_grad_(False)
    return head


def refit_head(
    old: ResidualHead, rows: FieldRows, *, recipe: FieldRecipe | None = None, seed: int = 0
) -> Refitted:
    """Returns the head after a head-only round; `old` is not changed.

    Args:
        old: the head as it is.
        rows: what it is fitted on.
        recipe: how.
        seed: of folds and batches.

    Raises:
        ConfigError: there are fewer than MIN_FRAMES frames, or no loss is known.
    """
    recipe = recipe or FieldRecipe()
    data = rows.data
    images = int(data.image.max()) + 1 if len(data) else 0
    if images < MIN_FRAMES:
        raise ConfigError(
            f"a head-only round needs at least {MIN_FRAMES} labelled frames to fit on, got {images}"
        )
    own = data.take(data.clean.nonzero().flatten())
    failed = _failed(own)
    scores_old = _score(old, own)
    folds = deal_groups(own.groups_of_images(), seed=seed)
    held = {strength: np.full(images, np.nan) for strength in STRENGTHS}
    judged = np.flatnonzero(rows.judged)
    shows = min(int(failed[judged].sum()), int((~failed[judged]).sum())) >= LEAST_PER_FOLD
    for fold in range(folds.folds if shows else 0):
        outside = torch.from_numpy(folds.number != fold)
        moved = _move(
            old, data.take(outside[data.image].nonzero().flatten()), rows.weights, recipe, seed=seed
        )
        inside = np.flatnonzero(folds.number == fold)
        part = own.take(torch.from_numpy(inside))
        for strength in STRENGTHS:
            held[strength][inside] = _score(between(old, moved, strength), part)
    cluster = folds.groups if folds.by == "groups" and folds.count >= MANY_GROUPS else np.arange(images)
    gains = [
        _gain(strength, values[judged], scores_old[judged], failed[judged], cluster[judged])
        for strength, values in (held.items() if shows else ())
    ]
    choice = _choose(gains, folds, scores_old[judged], failed[judged])
    if not choice.strength:
        return Refitted(old, choice, scores_old, scores_old, failed)
    head = between(old, _move(old, data, rows.weights, recipe, seed=seed), choice.strength)
    return Refitted(head, choice, scores_old, held[choice.strength], failed)


def _gain(
    strength: float, new: Floats, old: Floats, failed: NDArray[np.bool_], cluster: NDArray[np.intp]
) -> Gain:
    """Returns what a head gains over the old one on frames that it never saw, in AUROC of failure.

    All folds are one list: their heads began as the same head, so that their scores can be compared.
    """
    (area, own), (before, other) = auroc_influence(new, failed), auroc_influence(old, failed)
    influence = np.zeros(int(cluster.max()) + 1)
    np.add.at(influence, cluster, own - other)
    return Gain(FIELD, strength, area - before, None, area - before, float(np.sqrt((influence**2).sum())))


def _choose(gains: Sequence[Gain], folds: Folds, old: Floats, failed: NDArray[np.bool_]) -> Choice:
    """Returns the strength that gains most, if that is beyond one standard error; else 0.

    The weakest of those that are alike would be safer elsewhere, but the groups left out are of the field.
    """
    best = max((gain for gain in gains if gain.earned), key=lambda gain: gain.both, default=None)
    return Choice(
        strength=0.0 if best is None else best.strength,
        columns=FIELD,
        by=folds.by,
        count=folds.count,
        folds=folds.folds,
        free=auroc_influence(old, failed)[0] if gains else None,
        gains=tuple(gains),
    )


def between(old: ResidualHead, new: ResidualHead, share: float) -> ResidualHead:
    """Returns the head whose weights lie this share of the way from `old` to `new`."""
    head = copy.deepcopy(old)
    ends = new.state_dict()
    head.load_state_dict(
        {
            name: value + share * (ends[name] - value) if value.is_floating_point() else value
            for name, value in old.state_dict().items()
        }
    )
    return head


def stream_weights(
    stream: Floats, labelled: Floats, *, bins: int = 10, most: float = 20.0
) -> NDArray[np.float64]:
    """Returns how many frames of the stream each labelled frame stands for, [N], with a mean of 1.

    Uploads were chosen by their score, so high scores are too frequent among them. Each tenth of the stream,
    by score, gets the weight that it has in the stream. What something else than the score chose stays as
    biased as it is.

    Args:
        stream: scores of frames of the unbiased stream.
        labelled: scores of the labelled frames, of the stream and uploads together.
        bins: number of equal parts of the stream.
        most: largest weight, as a multiple of the smallest above zero.

    >>> stream_weights(np.arange(10.0), np.array([1.0, 8.0, 9.0]), bins=2).tolist()
    [1.5, 0.75, 0.75]
    """
    edges = np.quantile(stream, np.linspace(0, 1, bins + 1)[1:-1])
    # Equal scores make equal edges: then fewer bins, each of which is as wide as its share.
    places, of_stream = np.searchsorted(edges, labelled), np.searchsorted(edges, stream)
    there = np.bincount(places, minlength=bins).astype(np.float64)
    wanted = np.bincount(of_stream, minlength=bins) / len(stream)
    weights = np.divide(wanted, there, out=np.zeros(bins), where=there > 0)[places]
    if not weights.any():
        return np.ones(len(labelled))
    smallest = weights[weights > 0].min()
    weights = np.clip(weights, smallest, most * smallest)
    return np.asarray(weights / weights.mean(), np.float64)


def _move(
    old: ResidualHead, data: LossSet, weights: Tensor, recipe: FieldRecipe, *, seed: int
) -> ResidualHead:
    """Returns a copy of the head, moved towards what the rows show."""
    known = data.losses[~data.losses.isnan()]
    if not len(known):
        raise ConfigError("no unit of any labelled frame has a loss (nothing visible, nothing labelled)")
    eps = ratio_eps(known) or 1e-12
    head = copy.deepcopy(old)
    trained = [*head.committee.parameters(), head.scale, head.bias]
    for parameter in trained:
        parameter.requires_grad_(True)
    start = [parameter.detach().clone() for parameter in trained]
    line = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([*trained, line], lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    base = _recipe_of(old)
    drawn = row_weights(data.clean, share=base.clean_share) * weights[data.image].float()
    generator = torch.Generator().manual_seed(seed)
    head.train()
    for _ in range(recipe.steps):
        batch = data.take(torch.multinomial(drawn, recipe.batch, replacement=True, generator=generator))
        answers = head.predict_members(batch.parts)
        loss = objective_of(head, answers, batch, line, recipe=base, eps=eps, generator=generator)
        for parameter, first in zip(trained, start, strict=True):
            loss = loss + recipe.pull * (parameter - first).square().sum()
        if not bool(torch.isfinite(loss)):
            raise ConfigError("the head's loss on the labelled frames is not finite")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    head.eval().requires_grad_(False)
    return head


def _recipe_of(head: ResidualHead) -> HeadRecipe:
    return replace(recipe_named(head.recipe or "learning-loss-pp"), top="")


@torch.no_grad()
def _score(head: LossHead, data: LossSet) -> Floats:
    found: Floats = head.pool(head.predict(data.parts)).double().numpy()
    return found


def _failed(data: LossSet) -> NDArray[np.bool_]:
    """Returns what failed; without a rule for failures, the fifth of the frames with the largest losses."""
    if data.failed is not None:
        return np.asarray(data.failed.numpy(), np.bool_)
    losses = data.frame_losses.numpy()
    return np.asarray(losses > np.quantile(losses, 0.8), np.bool_)
