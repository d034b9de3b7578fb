"""Fits a head without a holdout, on losses of networks that never saw the frame's fold.

    pool --K folds--> K networks, each without its fold --collect--> parts and losses of every image --> head

The task network that is kept is trained on the whole pool. Embeddings and feature channels of two networks
are unrelated, so a cross-fitted head reads the answer's statistics and the distances to its own network's
memory, which are comparable, and no features. This costs K more trainings of the network. Their weights stay
in the run, so that the head can be fitted again on the same cross-fitted losses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples, split
from misfire_train.data.splits import fraction_of
from misfire_train.fitting.backbone import FitData, fit_network
from misfire_train.heads import HeadRecipe
from misfire_train.heads.data import collect, corrupted_copies, join_sets
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import candidate_heads, fit_on_losses
from misfire_train.progress import Reporter
from misfire_train.runs import Run, fold_ids, fold_weights
from misfire_train.signals import Probe
from misfire_train.tasks import Task
from misfire_train.train_config import TrainingTable


@dataclass(frozen=True)
class FoldNetwork:
    """Holds the network of one fold.

    seen: its training data. unseen: its fold, whose losses a head learns.
    """

    probe: Probe
    seen: Examples
    unseen: Examples

    @property
    def weights(self) -> dict[str, Tensor]:
        """Returns its tensors, for the run folder."""
        return dict(self.probe.model.state_dict())


def require_foldable(recipe: HeadRecipe) -> None:
    """Raises ConfigError for a recipe that trains along with the network, or that reads feature maps."""
    if recipe.joint:
        raise ConfigError("head.folds: a head that trains along with the network has no folds; set it to 0")
    if recipe.kind != "residual":
        raise ConfigError(
            f"{recipe.name} reads feature maps, which differ between folds; use learning-loss-pp"
        )


def deal_folds(pool: Examples, *, folds: int, seed: int) -> list[tuple[str, ...]]:
    """Returns the ids of each fold. Raises ConfigError on fewer than two folds."""
    if folds < 2:
        raise ConfigError(f"cross-fitting needs at least 2 folds, got {folds}")
    parts = split(pool, fractions={str(k): 1 / folds for k in range(folds)}, seed=seed)
    return [part.ids for part in parts.values()]


def with_new(ids: Sequence[Sequence[str]], pool: Examples) -> list[tuple[str, ...]]:
    """Returns a parent's folds with the new examples of `pool`, each in the fold of its group's name.

    A network that goes on from the parent's must never have seen its fold, in any generation.
    """
    known = {identity for names in ids for identity in names}
    folds = [list(names) for names in ids]
    for identity, group in zip(pool.ids, pool.groups, strict=True):
        if identity not in known:
            folds[int(fraction_of(group) * len(folds))].append(identity)
    return [tuple(names) for names in folds]


def networks_of_folds(
    probe: Probe, pool: Examples, ids: Sequence[Sequence[str]], starts: Sequence[Mapping[str, Tensor]]
) -> list[FoldNetwork]:
    """Returns a network like `probe.model` for each fold, with its own weights.

    Args:
        probe: Names the layers that are read.
        pool: All examples.
        ids: Ids of each fold; only those in `pool` count.
        starts: Weights of each fold's network.
    """
    networks = []
    for names, weights in zip(ids, starts, strict=True):
        inside = np.isin(np.array(pool.ids), np.array(names))
        module: nn.Module = copy.deepcopy(probe.model)
        module.requires_grad_(True).load_state_dict(dict(weights))
        member = Probe(module, last_layer=probe.last_layer, features=probe.feature_names)
        networks.append(
            FoldNetwork(member, pool.take(np.flatnonzero(~inside)), pool.take(np.flatnonzero(inside)))
        )
    return networks


def fit_folds(
    networks: Sequence[FoldNetwork],
    *,
    task: Task,
    validation: Examples,
    contract: InputContract,
    table: TrainingTable,
    seed: int,
    reporter: Reporter | None = None,
) -> None:
    """Trains each network in place on everything outside its fold."""
    reporter = reporter or Reporter(quiet=True)
    for number, network in enumerate(networks):
        reporter.line(
            f"fold {number + 1} of {len(networks)}: {len(network.seen)} to train on, "
            f"{len(network.unseen)} to learn losses from"
        )
        data = FitData(network.seen, validation, contract)
        # A seed of its own for each: equal orders and shifts would make their errors alike.
        own = seed + 101 * (number + 1)
        fit_network(network.probe, data, task=task, table=table, seed=own, reporter=reporter)
        network.probe.requires_grad_(False)


def fit_head_on_folds(
    probe: Probe,
    networks: Sequence[FoldNetwork],
    *,
    task: Task,
    recipe: HeadRecipe,
    pool: Examples,
    contract: InputContract,
    seed: int,
    reporter: Reporter | None = None,
) -> Fitted:
    """Returns a head for `probe`, whose network was trained on the whole `pool`, from the folds' losses."""
    require_foldable(recipe)
    # A refit must not depend on what was drawn before it.
    torch.manual_seed(seed)
    # Features of two networks are unrelated.
    recipe = replace(recipe, sees_features=False)
    order = {identity: position for position, identity in enumerate(pool.ids)}
    sets = []
    for network in networks:
        head = candidate_heads(
            network.probe, recipe, contract=contract, task=task, train=network.seen, seed=seed
        )[0]
        rows = torch.tensor([order[identity] for identity in network.unseen.ids])
        copies = corrupted_copies(network.unseen, recipe, seed=seed)
        for version, clean in ((network.unseen, True), *((each, False) for each in copies)):
            found = collect(network.probe, head, version, task=task, contract=contract, clean=clean)
            # Copies of an image share its row number, so they stay on one side of the check.
            sets.append(replace(found, image=rows))
    head = candidate_heads(probe, recipe, contract=contract, task=task, train=pool, seed=seed)[0]
    return fit_on_losses(head, join_sets(sets), recipe=recipe, seed=seed, reporter=reporter)


def kept_folds(run: Run, pool: Examples) -> list[FoldNetwork]:
    """Returns a run's fold networks, frozen; none if it kept none.

    pool: what its network was trained on; missing uploads are left out.
    """
    weights = fold_weights(run)
    networks = networks_of_folds(run.probe, pool, fold_ids(run), weights) if weights else []
    for network in networks:
        network.probe.eval().requires_grad_(False)
    return networks
