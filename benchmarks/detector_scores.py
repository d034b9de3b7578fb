"""The scores of the big table: each registered one, the papers' heads, ensembles, VAAL; how each is fitted.

network of a seed, its training images, its clean holdout --build_scores--> modules by column name
the holdout under weather --library_heads--> a features-only head per left-out family
the same labelled images --joint_run, members--> networks trained along with a head, and for an ensemble
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectors import fitting_versions, train, without
from torch import nn

from misfire_train.backbone import FitData, fit_network
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES
from misfire_train.head_data import LossSet, collect
from misfire_train.head_training import candidate_heads, fit_on_losses
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.loop import probe_of
from misfire_train.models import build_model
from misfire_train.runs import Run, read_tensors, write_tensors
from misfire_train.scores import FitSet, build, gather
from misfire_train.signals import Score
from misfire_train.train_config import TrainConfig
from misfire_train.vaal import TaVaalScore, VaalScore, fit_ranker, train_vaal


@dataclass(frozen=True)
class Column:
    """One row of the table. score: its registered name.  passes: forward passes per frame."""

    name: str
    score: str
    options: Mapping[str, Any]
    passes: int = 1


def _plain(*names: str, passes: int = 1) -> list[Column]:
    return [Column(name, name, {}, passes) for name in names]


DROPOUT_PASSES = 10
MEMBERS = 2
"""Other networks of an ensemble: with the judged one, three."""

REGISTERED = [
    *_plain("entropy", "msp", "margin", "energy", "max_logit"),
    *_plain("egl", "egl_norm", "egl_unweighted", "badge_norm", "egl_pp", "egl_pp_unweighted"),
    Column("egl_pp reference_compat", "egl_pp", {"reference_compat": True}),
    Column("egl_pp_unweighted reference_compat", "egl_pp_unweighted", {"reference_compat": True}),
    *_plain("wrong_prediction", "wrong_prediction_approx", "error_reduction"),
    *_plain("knn_distance", "mahalanobis", "stacked"),
    *_plain("flip_consistency", passes=2),
    *_plain("mc_dropout", "bald", "epistemic", "aleatoric", passes=1 + DROPOUT_PASSES),
]
ENSEMBLES = [
    Column("ensemble entropy", "ensemble", {"measure": "entropy"}, 1 + MEMBERS),
    Column("ensemble bald", "ensemble", {"measure": "bald"}, 1 + MEMBERS),
]
HEADS: dict[str, HeadRecipe] = {
    "learning-loss, held out": replace(recipe_named("rank-bce"), objective="learning-loss"),
    "learning-loss-pp-paper": recipe_named("learning-loss-pp-paper"),
    "rank-bce": recipe_named("rank-bce"),
    "log-loss-regression": recipe_named("log-loss-regression"),
}
LIBRARY_HEAD = "features only, library"
"""Pooled features, LearningLoss++, on the same clean and corrupted losses as the default head."""
VAAL = ("vaal", "ta_vaal", "ta_vaal_ranker")
JOINT = "learning-loss"

PASSES = {column.name: column.passes for column in (*REGISTERED, *ENSEMBLES)}
PASSES |= dict.fromkeys([*HEADS, LIBRARY_HEAD, JOINT, *VAAL, "learning_loss_pp"], 1)


def build_scores(
    run: Run, parts: Mapping[str, Examples], *, members: list[nn.Module], seed: int
) -> list[Score]:
    """All scores but the default head, each under its name of the table."""
    fit, holdout = fit_set(run, parts["train"]), fit_set(run, parts["holdout"])
    modules: list[Score] = []
    for column in (*REGISTERED, *ENSEMBLES):
        options = dict(column.options) | ({"members": members} if column.score == "ensemble" else {})
        built = build(
            [column.score], task="classification", fit=fit, holdout=holdout, **{column.score: options}
        )
        modules += [named(built[0], column.name)]
    modules += [
        named(paper_head(run, parts["holdout"], recipe, seed=seed), name) for name, recipe in HEADS.items()
    ]
    return modules + adversarial(run, parts, holdout, seed=seed)


def named(score: Score, name: str) -> Score:
    """The same score under a name of its own."""
    score.name = name
    return score


def fit_set(run: Run, examples: Examples) -> FitSet:
    """Signals of all of them."""
    return gather(run.probe, examples, examples.targets, classes=10, contract=run.contract)


def paper_head(run: Run, holdout: Examples, recipe: HeadRecipe, *, seed: int) -> LossHead:
    """A head of the papers on the frozen network and its clean held-out losses."""
    torch.manual_seed(seed)
    head = candidate_heads(run.probe, recipe, contract=run.contract)[0]
    data = collect(run.probe, head, holdout, task=run.task, contract=run.contract)
    return fit_on_losses(head, data, recipe=recipe, seed=seed).head


def adversarial(run: Run, parts: Mapping[str, Examples], holdout: FitSet, *, seed: int) -> list[Score]:
    """VAAL, TA-VAAL and its ranker: the training images are labelled, the holdout stands for the pool."""
    batches = {
        name: parts[name].batch(np.arange(len(parts[name])), run.contract) for name in ("train", "holdout")
    }
    fit = fit_set(run, parts["train"])
    losses = run.task.sample_loss(holdout.signals.outputs, holdout.targets)
    ranker = fit_ranker(holdout, losses, seed=seed)
    alone = train_vaal(batches["train"], batches["holdout"], seed=seed)
    ranked = train_vaal(
        batches["train"],
        batches["holdout"],
        ranks=(ranker.rank(fit.signals), ranker.rank(holdout.signals)),
        seed=seed,
    )
    return [VaalScore(alone), TaVaalScore(ranked, ranker), ranker]


def library_heads(run: Run, holdout: Examples, *, seed: int) -> dict[str | None, LossHead]:
    """{left-out family, None for none: a head on pooled features alone}."""
    recipe = replace(recipe_named("rank-bce"), objective="learning-loss-pp", name="learning-loss-pp-paper")
    torch.manual_seed(seed)
    blank = candidate_heads(run.probe, recipe, contract=run.contract)[0]
    fitting: dict[str, LossSet] = {
        "clean": collect(run.probe, blank, holdout, task=run.task, contract=run.contract)
    }
    for key, copy in fitting_versions(holdout, seed=seed, versions_per_family=1):
        fitting[key] = collect(run.probe, blank, copy, task=run.task, contract=run.contract, clean=False)
    heads: dict[str | None, LossHead] = {}
    for family in (None, *FAMILIES):
        torch.manual_seed(seed)
        head = candidate_heads(run.probe, recipe, contract=run.contract)[0]
        fitted = fit_on_losses(head, without(fitting, family), recipe=recipe, seed=seed).head
        heads[family] = fitted
    return heads


def joint_run(seed: int, **options: Any) -> Run:
    """Learning Loss as published: a network that was trained along with its head, on the same images."""
    return train(seed, head=JOINT, name="joint", **options)


def train_members(run: Run, parts: Mapping[str, Examples], *, seed: int, work: Path) -> list[nn.Module]:
    """Networks of other initial weights and orders, fitted on the same images; existing ones are loaded."""
    config = TrainConfig.model_validate(run.record.config)
    members = []
    for number in range(1, MEMBERS + 1):
        own = seed + 1000 * number
        torch.manual_seed(own)
        built = build_model(
            run.record.model.name,
            task="classification",
            outputs=run.record.model.outputs,
            channels=run.contract.channels,
            **run.record.model.options,
        )
        path = work / f"member-{seed}-{number}.safetensors"
        if path.is_file():
            built.module.load_state_dict(read_tensors(path))
        else:
            data = FitData(parts["train"], parts["validation"], run.contract)
            probe = probe_of(built, run.record.feature_layers)
            fit_network(probe, data, task=run.task, table=config.training, seed=own)
            write_tensors(path, built.module.state_dict())
        members.append(built.module.eval().requires_grad_(False))
    return members
