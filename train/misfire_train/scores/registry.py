"""Every score by name: which tasks it serves, what it must be fitted on, whether it is free and exports.

    build(["entropy", "egl_pp"], task="classification", fit=...) -> [Entropy(), EglPP(...)]

`build` hands each factory a `Recipe` (task, fit set, holdout, options); a factory raises ScoreError where
what it needs is missing. Options are given per score: `build(..., knn_distance={"neighbours": 5})`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from misfire_train.scores import output_only
from misfire_train.scores.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.signals import Score

CLASS_TASKS = ("classification", "segmentation")
TASKS = ("classification", "regression", "keypoints", "segmentation", "custom")


@dataclass(frozen=True)
class Recipe:
    """What a factory may use: the task, both fit sets, and the options given to this score."""

    name: str
    task: str
    fit: FitSet | None
    holdout: FitSet | None
    options: Mapping[str, Any]

    def need_fit(self) -> FitSet:
        """The training set's signals; raises ScoreError without."""
        if self.fit is None:
            raise ScoreError(
                f"{self.name} is fitted on training data: pass fit=gather(probe, images, targets)"
            )
        return self.fit

    def need_holdout(self) -> FitSet:
        """The held-out set's signals; raises ScoreError without."""
        if self.holdout is None:
            raise ScoreError(
                f"{self.name} is fitted on held-out data: pass holdout=gather(probe, images, targets)"
            )
        return self.holdout


@dataclass(frozen=True)
class ScoreInfo:
    """One row of the registry. needs: what it is fitted on. passes: how often it runs the model per image."""

    name: str
    tasks: tuple[str, ...]
    make: Callable[[Recipe], Score]
    needs: Literal["nothing", "fit", "holdout", "members", "model"] = "nothing"
    free: bool = False
    exportable: bool = True
    passes: Literal["one", "two", "many"] = "one"
    source: str = ""


def _plain(kind: Callable[..., Score]) -> Callable[[Recipe], Score]:
    return lambda recipe: kind(**recipe.options)


def _free(kind: type[Score], tasks: Sequence[str], source: str) -> ScoreInfo:
    return ScoreInfo(kind.name, tuple(tasks), _plain(kind), free=True, source=source)


_ROWS = [
    _free(output_only.Msp, CLASS_TASKS, "Hendrycks & Gimpel 2017"),
    _free(output_only.Entropy, CLASS_TASKS, "Shannon; Settles 2009"),
    _free(output_only.Margin, CLASS_TASKS, "Scheffer et al. 2001"),
    _free(output_only.Energy, CLASS_TASKS, "Liu et al. 2020"),
    _free(output_only.MaxLogit, CLASS_TASKS, "Hendrycks et al. 2022"),
    _free(output_only.MeanPeak, ("keypoints",), "heatmap confidence"),
    _free(output_only.HeatmapEntropy, ("keypoints",), "heatmap as a distribution"),
    _free(output_only.MultiPeakEntropy, ("keypoints",), "Liu & Ferrari 2017"),
    _free(output_only.SelfResidual, ("keypoints",), "this project, docs/scores.md"),
]

SCORES: dict[str, ScoreInfo] = {row.name: row for row in _ROWS}


def names_for(task: str, *, free: bool | None = None, exportable: bool | None = None) -> list[str]:
    """Names of the scores that serve a task, in registry order.

    >>> names_for("keypoints", free=True)
    ['mean_peak', 'heatmap_entropy', 'multi_peak_entropy', 'self_residual']
    """
    return [
        row.name
        for row in SCORES.values()
        if task in row.tasks
        and (free is None or row.free == free)
        and (exportable is None or row.exportable == exportable)
    ]


def build(
    names: Sequence[str],
    *,
    task: str,
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
    if task not in TASKS:
        raise ScoreError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    stray = sorted(set(options) - set(names))
    if stray:
        raise ScoreError(f"options given for {', '.join(stray)}, which is not among the scores to build")
    scores = []
    for name in names:
        info = SCORES.get(name)
        if info is None:
            raise ScoreError(f"unknown score {name!r}; for {task} there are {', '.join(names_for(task))}")
        if task not in info.tasks:
            raise ScoreError(f"{name} serves {', '.join(info.tasks)}, not {task}")
        given = options.get(name, {})
        try:
            scores.append(info.make(Recipe(name, task, fit, holdout, given)))
        except TypeError as error:
            raise ScoreError(f"options {dict(given)} do not fit {name}: {error}") from error
    return scores
