"""Chooses how strongly a detector's head may correct its free score: by leaving out groups of its holdout.

BoxSet --deal_groups--> per fold: a head fitted on the others --scores of the fold, at each strength, as each
base--> choose_strength

The rule is that of all heads (heads/strength.py). What is different: the free score is `expected_lrp` or
`expected_errors`, whichever ranks the failures of the held-out frames better, and a corrected head may end as
either, the share of errors or their number. All are compared with that one free score. A detector's holdout
is often a few hundred frames, so that what a good correction gains or loses on clean ones is a toss-up: a
loss of at most its own standard error is none that was shown. Where no correction earns its place on groups
left out, the head is the free score, exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_train.heads.boxes import BASES, BoxHead
from misfire_train.heads.data import BoxSet
from misfire_train.heads.leaving_out import MEMBERS, LeftOut
from misfire_train.heads.strength import (
    STRENGTHS,
    TOLERATED,
    Floats,
    Folds,
    Setting,
    auroc_influence,
    can_show,
    choose_strength,
    deal_groups,
)
from misfire_train.metrics import aurc

Fit = Callable[[BoxHead, BoxSet], None]
"""Trains a head in place, from standardising its statistics on."""


def leave_out_boxes(head: BoxHead, data: BoxSet, *, standardise: Fit, fit: Fit, seed: int = 0) -> LeftOut:
    """Returns the base and the strength that hold on groups left out; the choice's `columns` is the base.

    Args:
        head: untrained; it is not changed.
        data: all rows.
        standardise: sets what a head has without training: statistics and Platt's lines.
        fit: does that, and trains.
        seed: of folds and weights.
    """
    folds = deal_groups(data.groups_of_images(), seed=seed)
    failed, clean, image = data.failed.numpy(), data.clean.numpy(), data.image.numpy()
    scores: dict[Setting, Floats] = {}
    if can_show(failed, clean, image, folds):
        scores, free = _score_folds(head, data, folds, fit=fit, seed=seed)
    else:
        own = copy.deepcopy(head)
        standardise(own, data)
        own.weaken(0.0)
        free = {base: _scores(own, data, base=base) for base in BASES}
    base = better_base(free, failed=failed, clean=clean)
    choice = choose_strength(
        scores,
        # The base comes first: it is what strength 0 falls back on.
        dict.fromkeys((base, *(other for other in BASES if other != base)), free[base]),
        failed=failed,
        clean=clean,
        image=image,
        folds=folds,
        tolerated=_clean_error(scores, free[base], failed[clean], clean),
    )
    used = (choice.columns, choice.strength)
    return LeftOut(choice, scores.get(used, free[base]), free[base], failed)


def better_base(free: Mapping[str, Floats], *, failed: NDArray[np.bool_], clean: NDArray[np.bool_]) -> str:
    """Returns the free score with the lowest area under the risk-coverage curve, of clean rows and copies.

    free: {base: [R]}.  failed, clean: [R].  The areas are shares of the mean risk.
    """
    kinds = [rows for rows in (clean, ~clean) if failed[rows].any()]
    areas = {
        base: sum(aurc(values[rows], failed[rows].astype(np.float64)) / failed[rows].mean() for rows in kinds)
        for base, values in free.items()
    }
    return min(areas, key=lambda base: float(areas[base]))


def _clean_error(
    scores: Mapping[Setting, Floats], free: Floats, failed: NDArray[np.bool_], clean: NDArray[np.bool_]
) -> float:
    """Returns the standard error of the whole correction's difference in AUROC on clean rows."""
    if (BASES[0], 1.0) not in scores or not 0 < failed.sum() < len(failed):
        return TOLERATED
    own = auroc_influence(scores[BASES[0], 1.0][clean], failed)[1]
    other = auroc_influence(free[clean], failed)[1]
    return max(TOLERATED, float(np.sqrt(np.square(own - other).sum())))


def _score_folds(
    head: BoxHead, data: BoxSet, folds: Folds, *, fit: Fit, seed: int
) -> tuple[dict[Setting, Floats], dict[str, Floats]]:
    """Returns {(base, strength): [R]} and {base: [R]}, of each row by a head that never saw its fold."""
    fold_of = torch.from_numpy(folds.number)[data.image]
    scores: dict[Setting, Floats] = {
        (base, strength): np.full(len(data), np.nan) for base in BASES for strength in (*STRENGTHS, 0.0)
    }
    torch.manual_seed(seed)
    blank = BoxHead(**{**head.options, "members": MEMBERS})
    for fold in range(folds.folds):
        own = copy.deepcopy(blank)
        seen, unseen = (torch.nonzero(fold_of != fold).flatten(), torch.nonzero(fold_of == fold).flatten())
        fit(own, data.take(seen))
        left = data.take(unseen)
        for strength in (*STRENGTHS, 0.0):
            weak = copy.deepcopy(own)
            weak.weaken(strength)
            for base in BASES:
                scores[base, strength][unseen.numpy()] = _scores(weak, left, base=base)
    return scores, {base: scores.pop((base, 0.0)) for base in BASES}


@torch.no_grad()
def _scores(head: BoxHead, data: BoxSet, *, base: str) -> Floats:
    head.base = base
    values: Floats = head.predict(data.parts)[:, 0].double().numpy()
    return values
