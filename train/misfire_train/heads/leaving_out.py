"""Fits a residual head once for each fold of its holdout, to learn how strong it may be elsewhere.

head, LossSet --deal_groups--> per fold: a head fitted on the others --scores of the fold--> choose_strength

All statistics are tried first. Only if they have to be weakened by more than half are smaller sets of columns
tried, since each costs as many fits again: a few seconds of one core. If no fold has enough failures to show
anything, nothing is fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_train.heads.data import LossSet
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.heads.residual import ResidualHead
from misfire_train.heads.strength import (
    STRENGTHS,
    Choice,
    Floats,
    Folds,
    Setting,
    can_show,
    choose_strength,
    deal_groups,
)

ENOUGH = 0.5
"""Strength from which on smaller sets of columns are not tried."""
MEMBERS = 2
"""Of a fold's committee, at half the cost of the whole one."""
Fit = Callable[[ResidualHead, LossSet], None]
"""Trains a head in place, from standardising its statistics on."""


@dataclass(frozen=True)
class LeftOut:
    """Holds what leaving out showed: the choice, and each row's score by a head that never saw its fold.

    scores, free: [R], of the chosen setting and of the free score.  failed: [R].
    """

    choice: Choice
    scores: Floats
    free: Floats
    failed: NDArray[np.bool_]


def leave_out(
    head: ResidualHead, data: LossSet, *, recipe: HeadRecipe, fit: Fit, eps: float, seed: int = 0
) -> LeftOut:
    """Returns the strength and the columns that hold on groups left out.

    Args:
        head: untrained, with all columns; it is not changed.
        data: of all columns.
        recipe: its columns, if given, are kept.
        fit: trains a head.
        eps: of the log-losses.
        seed: of folds and weights.
    """
    folds = deal_groups(data.groups_of_images(), seed=seed)
    sets = tuple(head.column_sets()) if recipe.columns is None else (recipe.columns,)
    failed, clean, image = _truth(data), data.clean.numpy(), data.image.numpy()
    scores: dict[Setting, Floats] = {}
    free: dict[str, Floats] = {}
    choice: Choice | None = None
    shows = can_show(failed, clean, image, folds)
    if not shows:
        free[sets[0]] = _free_scores(head, data, eps=eps)
        choice = choose_strength(scores, free, failed=failed, clean=clean, image=image, folds=folds)
    for name in sets if shows else ():
        found, free[name] = _score_folds(head, data, folds, columns=name, fit=fit, eps=eps, seed=seed)
        scores |= {(name, strength): values for strength, values in found.items()}
        choice = choose_strength(scores, free, failed=failed, clean=clean, image=image, folds=folds)
        if choice.strength >= ENOUGH:
            break
    assert choice is not None
    used = (choice.columns, choice.strength)
    return LeftOut(choice, scores.get(used, free[choice.columns]), free[choice.columns], failed)


def _free_scores(head: ResidualHead, data: LossSet, *, eps: float) -> Floats:
    """Returns the free score [R], by a line through all rows."""
    own = copy.deepcopy(head)
    own.standardise(data.parts, data.losses, eps=eps)
    own.weaken(0.0, own.free_line(data.parts, data.losses, eps=eps))
    with torch.no_grad():
        values: Floats = own.pool(own.predict(data.parts)).double().numpy()
    return values


def narrowed_set(
    head: ResidualHead, data: LossSet, columns: str, *, members: int | None = None
) -> tuple[ResidualHead, LossSet]:
    """Returns a fresh head of these columns, and the set with only these."""
    own = head.narrowed(columns, members=members)
    if columns == head.columns:
        return own, data
    base, statistics = data.parts
    places = torch.tensor(head.column_index(columns))
    return own, replace(data, parts=(base, statistics[..., places]))


def _score_folds(
    head: ResidualHead,
    data: LossSet,
    folds: Folds,
    *,
    columns: str,
    fit: Fit,
    eps: float,
    seed: int,
) -> tuple[dict[float, Floats], Floats]:
    """Returns {strength: [R]} and the free score [R], of each row by a head that never saw its fold."""
    fold_of = torch.from_numpy(folds.number)[data.image]
    scores: dict[float, Floats] = {strength: np.full(len(data), np.nan) for strength in STRENGTHS}
    free: Floats = np.full(len(data), np.nan)
    torch.manual_seed(seed)
    blank, rows = narrowed_set(head, data, columns, members=MEMBERS)
    for fold in range(folds.folds):
        own = copy.deepcopy(blank)
        seen, unseen = (torch.nonzero(fold_of != fold).flatten(), torch.nonzero(fold_of == fold).flatten())
        fitting, left = rows.take(seen), rows.take(unseen)
        fit(own, fitting)
        line = own.free_line(fitting.parts, fitting.losses, eps=eps)
        for strength in (*STRENGTHS, 0.0):
            weak = copy.deepcopy(own)
            weak.weaken(strength, line)
            with torch.no_grad():
                values = weak.pool(weak.predict(left.parts)).double().numpy()
            (free if strength == 0 else scores[strength])[unseen.numpy()] = values
    return scores, free


def _truth(data: LossSet) -> NDArray[np.bool_]:
    """Returns what failed; without a rule for failures, the fifth of the rows with the largest losses."""
    if data.failed is not None:
        return np.asarray(data.failed.numpy(), np.bool_)
    losses = data.frame_losses.numpy()
    return np.asarray(losses > np.quantile(losses, 0.8), np.bool_)
