"""A head without a holdout: losses from networks of K folds, each scoring the fold that it never saw.

    pool --K folds--> K networks, each without its fold --collect--> parts and losses of every image --> head

The task network that is kept is trained on the whole pool. Embeddings and feature channels of two networks
have nothing to do with each other, so a cross-fitted head reads the answer's statistics and the distances to
its own network's memory, which are comparable, and no features. Costs K more trainings of the network.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.backbone import FitData, fit_network
from misfire_train.data import Examples, split
from misfire_train.heads import HeadRecipe
from misfire_train.heads.data import collect, corrupted_copies, join_sets
from misfire_train.heads.training import Fitted, candidate_heads, fit_on_losses
from misfire_train.progress import Reporter
from misfire_train.signals import Probe
from misfire_train.tasks import Task
from misfire_train.train_config import TrainingTable


def cross_fit_head(
    probe: Probe,
    fresh: nn.Module,
    *,
    task: Task,
    recipe: HeadRecipe,
    pool: Examples,
    validation: Examples,
    contract: InputContract,
    table: TrainingTable,
    folds: int,
    seed: int,
    reporter: Reporter | None = None,
) -> Fitted:
    """A head for `probe`, whose network was trained on the whole `pool`.

    fresh: the network with untrained weights; copies of it are trained on all folds but one.
    Raises ConfigError for a recipe that reads feature maps, and for fewer than two folds.
    """
    reporter = reporter or Reporter(quiet=True)
    if folds < 2:
        raise ConfigError(f"cross-fitting needs at least 2 folds, got {folds}")
    if recipe.kind != "residual":
        raise ConfigError(
            f"{recipe.name} reads feature maps, which differ between folds; use learning-loss-pp"
        )
    recipe = replace(recipe, sees_features=False)
    parts = split(pool, fractions={str(k): 1 / folds for k in range(folds)}, seed=seed)
    order = {identity: position for position, identity in enumerate(pool.ids)}
    sets = []
    for number, part in enumerate(parts.values()):
        seen = set(part.ids)
        rest = pool.take(np.array([i for i, identity in enumerate(pool.ids) if identity not in seen]))
        reporter.line(
            f"fold {number + 1} of {folds}: {len(rest)} to train on, {len(part)} to learn losses from"
        )
        member = Probe(copy.deepcopy(fresh), last_layer=probe.last_layer, features=probe.feature_names)
        data = FitData(rest, validation, contract)
        fit_network(member, data, task=task, table=table, seed=seed + 101 * (number + 1), reporter=reporter)
        member.requires_grad_(False)
        head = candidate_heads(member, recipe, contract=contract, task=task, train=rest, seed=seed)[0]
        rows = torch.tensor([order[identity] for identity in part.ids])
        for version, clean in (
            (part, True),
            *((c, False) for c in corrupted_copies(part, recipe, seed=seed)),
        ):
            found = collect(member, head, version, task=task, contract=contract, clean=clean)
            sets.append(replace(found, image=rows))
    head = candidate_heads(probe, recipe, contract=contract, task=task, train=pool, seed=seed)[0]
    return fit_on_losses(head, join_sets(sets), recipe=recipe, seed=seed, reporter=reporter)
