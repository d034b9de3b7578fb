"""Every score by name: which tasks it serves, what it must be fitted on, whether it is free and exports.

    build(["entropy", "egl_pp"], task="classification", fit=...) -> [Entropy(), EglPP(...)]

`build` hands each factory a `Recipe` (task, fit set, holdout, options); a factory raises ScoreError where
what it needs is missing. Options are given per score: `build(..., knn_distance={"neighbours": 5})`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from misfire_runtime.errors import ConfigError
from misfire_train.errors import ScoreError
from misfire_train.scores import factories as make
from misfire_train.scores import output_only
from misfire_train.scores.committee import EglEnsemble, EglRegression
from misfire_train.scores.density import KnnDistance, Mahalanobis, OutputDeviation
from misfire_train.scores.factories import Factory, Recipe
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.flip import FlipConsistency
from misfire_train.scores.sampling import Bald, McDropout
from misfire_train.scores.wrong_prediction import ErrorReduction, WrongPrediction, WrongPredictionApprox
from misfire_train.signals import Score
from misfire_train.tasks import Task, as_task

Needs = Literal["nothing", "fit", "holdout", "members"]
Passes = Literal["one", "two", "many"]
CLASSES = ("classification", "segmentation")
MAPS = ("classification", "keypoints", "segmentation")
VALUES = ("regression", "keypoints")
ALL = ("classification", "regression", "keypoints", "segmentation")
ANY = (*ALL, "custom")


@dataclass(frozen=True)
class ScoreInfo:
    """One row of the registry.

    tasks: forms of outputs that it can read, by the built-in task that has them (`Task.form`).
    needs: what it is fitted on.  passes: how often it runs the model per image.
    """

    name: str
    tasks: tuple[str, ...]
    make: Factory
    needs: Needs = "nothing"
    free: bool = False
    exportable: bool = True
    passes: Passes = "one"
    source: str = ""


def _free(kind: type[output_only.OutputScore], tasks: tuple[str, ...], source: str) -> ScoreInfo:
    return ScoreInfo(kind.name, tasks, make.plain(kind), free=True, source=source)


def _closed(
    name: str, tasks: tuple[str, ...], factory: Factory, needs: Needs, source: str, *, free: bool = False
) -> ScoreInfo:
    return ScoreInfo(name, tasks, factory, needs, free=free, source=source)


def _sampled(
    name: str,
    tasks: tuple[str, ...],
    factory: Factory,
    source: str,
    *,
    needs: Needs = "nothing",
    passes: Passes = "many",
) -> ScoreInfo:
    return ScoreInfo(name, tasks, factory, needs, exportable=False, passes=passes, source=source)


def _components(recipe: Recipe) -> list[Score]:
    """What `stacked` stacks: the named components, or every free score and, given a fit set, two more."""
    wanted = recipe.options.get("components")
    if wanted is None:
        wanted = names_for(recipe.task, free=True)
        if recipe.fit is not None:
            wanted += ["egl", "knn_distance"]
        wanted = [name for name in wanted if name in scores_of(recipe.task)]
    built = [score for score in wanted if isinstance(score, Score)]
    names = [name for name in wanted if isinstance(name, str)]
    if "stacked" in names:
        raise ScoreError("stacked cannot be a component of itself")
    return built + build(names, task=recipe.task, fit=recipe.fit, holdout=recipe.holdout)


_ROWS = [
    _free(output_only.Msp, CLASSES, "Hendrycks & Gimpel 2017"),
    _free(output_only.Entropy, CLASSES, "Shannon 1948; Settles 2009"),
    _free(output_only.Margin, CLASSES, "Scheffer et al. 2001"),
    _free(output_only.Energy, CLASSES, "Liu et al. 2020"),
    _free(output_only.MaxLogit, CLASSES, "Hendrycks et al. 2022"),
    _free(output_only.MeanPeak, ("keypoints",), "heatmap confidence"),
    _free(output_only.HeatmapEntropy, ("keypoints",), "a heatmap as a distribution"),
    _free(output_only.MultiPeakEntropy, ("keypoints",), "Liu & Ferrari 2017"),
    _free(output_only.SelfResidual, ("keypoints",), "this project"),
    _closed(
        "output_deviation", ("regression",), make.fitted(OutputDeviation), "fit", "this project", free=True
    ),
    _closed("egl", MAPS, make.egl(), "nothing", "Settles 2008, closed form"),
    _closed("egl_norm", ("classification",), make.egl(squared=False), "nothing", "Settles 2008, closed form"),
    _closed(
        "egl_unweighted", MAPS, make.egl(feature_norm=False), "nothing", "egl without ||phi||^2", free=True
    ),
    _closed("badge_norm", ("classification",), make.egl(labels="pseudo"), "nothing", "Ash et al. 2020"),
    _closed("egl_regression", ("regression",), make.committee(EglRegression), "fit", "Cai et al. 2013"),
    _closed("egl_ensemble", ("regression",), make.committee(EglEnsemble), "fit", "Shukla 2022"),
    _closed("egl_pp", ALL, make.egl_pp(), "fit", "Shukla 2022 (EGL++), closed form"),
    _closed("egl_pp_unweighted", ALL, make.egl_pp(feature_norm=False), "fit", "egl_pp without ||phi||^2"),
    _closed(
        "wrong_prediction",
        ("classification",),
        make.held_out(WrongPrediction),
        "holdout",
        "Aljundi et al. 2022, S",
    ),
    _closed(
        "wrong_prediction_approx",
        CLASSES,
        make.held_out(WrongPredictionApprox),
        "holdout",
        "Aljundi et al. 2022, S_a",
    ),
    _closed(
        "error_reduction", ("classification",), make.fitted(ErrorReduction), "fit", "Roy & McCallum 2001"
    ),
    _closed("knn_distance", ANY, make.fitted(KnnDistance), "fit", "Sun et al. 2022"),
    _closed("mahalanobis", ANY, make.fitted(Mahalanobis), "fit", "Lee et al. 2018"),
    _sampled("mc_dropout", ALL, make.with_task(McDropout), "Gal & Ghahramani 2016"),
    _sampled("bald", CLASSES, make.plain(Bald), "Houlsby et al. 2011; Gal et al. 2017"),
    _sampled("epistemic", ALL, make.epistemic, "Kendall & Gal 2017"),
    ScoreInfo(
        "aleatoric",
        (*CLASSES, "regression"),
        make.aleatoric,
        "holdout",
        False,
        False,
        "many",
        "Kendall & Gal 2017",
    ),
    _sampled("flip_consistency", MAPS, make.with_task(FlipConsistency), "this project", passes="two"),
    _sampled("ensemble", ALL, make.ensemble, "Lakshminarayanan et al. 2017", needs="members"),
    _closed("stacked", ALL, make.stacked(_components), "holdout", "logistic combination"),
]

SCORES: dict[str, ScoreInfo] = {row.name: row for row in _ROWS}


def scores_of(task: str | Task) -> dict[str, ScoreInfo]:
    """Returns the scores that serve a task: its own, and those that can read outputs of its form.

    Raises ConfigError on an unknown name.
    """
    kind = as_task(task)
    own = {
        score.name: ScoreInfo(
            score.name,
            (kind.name,),
            make.plain(score),
            free=score.free,
            exportable=score.exportable,
            source=kind.name,
        )
        for score in kind.own_scores
    }
    return {**own, **{name: row for name, row in SCORES.items() if kind.form in row.tasks}}


def names_for(task: str | Task, *, free: bool | None = None, exportable: bool | None = None) -> list[str]:
    """Names of the scores that serve a task, in registry order.

    >>> names_for("keypoints", free=True)
    ['mean_peak', 'heatmap_entropy', 'multi_peak_entropy', 'self_residual', 'egl_unweighted']
    """
    return [
        row.name
        for row in scores_of(task).values()
        if (free is None or row.free == free) and (exportable is None or row.exportable == exportable)
    ]


def build(
    names: Sequence[str],
    *,
    task: str | Task,
    fit: FitSet | None = None,
    holdout: FitSet | None = None,
    **options: Mapping[str, Any],
) -> list[Score]:
    """The scores of these names, fitted where they need it.

    fit, holdout: signals of training data and of data the model never saw (`gather`).
    options: per score name, keyword arguments of its class.
    Raises ScoreError on an unknown name or task, a score that does not serve the task, options for a score
    that is not built, or a missing or unusable fit set.

    >>> [score.name for score in build(["msp", "energy"], task="classification")]
    ['msp', 'energy']
    """
    try:
        kind = as_task(task)
    except ConfigError as error:
        raise ScoreError(f"unknown task {task!r}: {error}") from error
    stray = sorted(set(options) - set(names))
    if stray:
        raise ScoreError(f"options given for {', '.join(stray)}, which is not among the scores to build")
    return [_build_one(Recipe(name, kind, fit, holdout, options.get(name, {}))) for name in names]


def _build_one(recipe: Recipe) -> Score:
    serving = scores_of(recipe.task)
    info = serving.get(recipe.name) or SCORES.get(recipe.name)
    if info is None:
        known = list(serving)
        close = difflib.get_close_matches(recipe.name, known, n=1)
        hint = f"; did you mean {close[0]}? For" if close else "; for"
        raise ScoreError(
            f"unknown score {recipe.name!r}{hint} {recipe.task.name} there are {', '.join(known)}"
        )
    if recipe.name not in serving:
        raise ScoreError(f"{recipe.name} serves {', '.join(info.tasks)}, not {recipe.task.name}")
    try:
        return info.make(recipe)
    except TypeError as error:
        raise ScoreError(f"options {dict(recipe.options)} do not fit {recipe.name}: {error}") from error
