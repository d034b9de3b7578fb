"""The scores of the big table: each registered one, the papers' heads, ensembles; how each is fitted.

network of a seed, its training images, its clean holdout --build_scores--> modules by column name
the same labelled images --joint_run--> a network that was trained along with its head
networks of the other seeds --members--> an ensemble
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.science.detectors import train
from misfire_train.data import Examples
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.heads.data import collect
from misfire_train.heads.training import candidate_heads, fit_on_losses
from misfire_train.runs import Run
from misfire_train.scores import FitSet, build, gather
from misfire_train.scores.density import k_center
from misfire_train.scores.gradient.egl_pp import BANK_ROWS, bank_embedding
from misfire_train.signals import Score
from misfire_train.vaal import fit_ranker


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
    *_plain("mc_dropout", "bald", "epistemic", "aleatoric", passes=DROPOUT_PASSES),
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
RANKER = "ta_vaal_ranker"
JOINT = "learning-loss"

PASSES = {column.name: column.passes for column in (*REGISTERED, *ENSEMBLES)}
PASSES |= dict.fromkeys([*HEADS, JOINT, RANKER, "learning_loss_pp"], 1)


def build_scores(
    run: Run, parts: Mapping[str, Examples], *, others: list[nn.Module], seed: int
) -> list[Score]:
    """All scores but the default head, each under its name of the table."""
    fit, holdout = fit_set(run, parts["train"]), fit_set(run, parts["holdout"])
    bank = fit.take(k_center(bank_embedding(fit.signals), BANK_ROWS))  # once, not per form of EGL++
    modules: list[Score] = []
    for column in (*REGISTERED, *ENSEMBLES):
        options = dict(column.options) | ({"members": others} if column.score == "ensemble" else {})
        own = bank if column.score.startswith("egl_pp") else fit
        built = build(
            [column.score], task="classification", fit=own, holdout=holdout, **{column.score: options}
        )
        modules += [named(built[0], column.name)]
    modules += [
        named(paper_head(run, parts["holdout"], recipe, seed=seed), name) for name, recipe in HEADS.items()
    ]
    return [*modules, ranker_of(run, holdout, seed=seed)]


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


def ranker_of(run: Run, holdout: FitSet, *, seed: int) -> Score:
    """TA-VAAL's ranker alone. VAAL asks what looks unlabelled, not what fails: it is not on the table."""
    losses = run.task.sample_loss(holdout.signals.outputs, holdout.targets)
    return fit_ranker(holdout, losses, seed=seed)


def joint_run(seed: int, **options: Any) -> Run:
    """Learning Loss as published: a network that was trained along with its head, on the same images."""
    return train(seed, head=JOINT, name="joint", **options)


def members(seed: int, **options: Any) -> list[nn.Module]:
    """The networks of the other seeds. Each was trained on a draw of images of its own, so that the ensemble
    has seen more labels than any other score.
    """
    others = [other for other in range(MEMBERS + 1) if other != seed][:MEMBERS]
    return [train(other, **options).probe.model for other in others]
