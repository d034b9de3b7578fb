"""Registers every score by name: the tasks it serves, what it is fitted on, whether it is free and exports.

    build(["entropy", "egl_pp"], task="classification", fit=...) -> [Entropy(), EglPP(...)]

A score is one file of this folder: a class with `@register(...)` above it. `build` hands a `Recipe` (task,
fit set, holdout, options) to the class's `make`, which raises ScoreError if what it needs is missing. Options
are given per score: `build(..., knn_distance={"neighbours": 5})`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from misfire_runtime.errors import ConfigError
from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.signals import Score
from misfire_train.tasks import Task, as_task

Needs = Literal["nothing", "fit", "holdout", "members"]
Passes = Literal["one", "two", "many"]
CLASSES = ("classification", "segmentation")
MAPS = ("classification", "keypoints", "segmentation")
VALUES = ("regression", "keypoints")
ALL = ("classification", "regression", "keypoints", "segmentation")
ANY = (*ALL, "custom")

_PACKAGE = __name__.rpartition(".")[0]
_LISTED_FIRST = (
    *("output_only", "egl", "committee", "egl_pp", "wrong_prediction"),
    *("density", "boxes", "meta_detect", "silence", "sampling", "flip", "stacked"),
)
"""Reports and graphs list scores in the order of these files, cheap ones first; other files come after."""

S = TypeVar("S", bound=type[Score])


@dataclass(frozen=True)
class Recipe:
    """Holds what a score may be made of: the task, both fit sets, and the options given to this score."""

    name: str
    task: Task
    fit: FitSet | None
    holdout: FitSet | None
    options: Mapping[str, Any]

    def need_fit(self) -> FitSet:
        """Returns the training set's signals. Raises ScoreError if there are none."""
        if self.fit is None:
            raise ScoreError(
                f"{self.name} is fitted on training data: build it with "
                f"scores.build([{self.name!r}], task=..., fit=scores.gather(probe, images, targets))"
            )
        return self.fit

    def need_holdout(self) -> FitSet:
        """Returns the held-out set's signals. Raises ScoreError if there are none."""
        if self.holdout is None:
            raise ScoreError(
                f"{self.name} is fitted on held-out data: build it with "
                f"scores.build([{self.name!r}], task=..., holdout=scores.gather(probe, images, targets))"
            )
        return self.holdout


@dataclass(frozen=True)
class ScoreInfo:
    """Is one row of the registry.

    Attributes:
        tasks: forms of outputs that it can read, by the built-in task that has them (`Task.form`).
        kind: the class whose `make` builds it.
        fixed: options of `kind` that make it this score.
        needs: what it is fitted on.
        passes: how often it runs the model per image.
    """

    name: str
    tasks: tuple[str, ...]
    kind: type[Score]
    needs: Needs = "nothing"
    free: bool = False
    exportable: bool = True
    passes: Passes = "one"
    source: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)


class Registry(Mapping[str, ScoreInfo]):
    """Maps names to scores. The files of this folder are imported on first access."""

    def __init__(self) -> None:
        self._rows: dict[str, ScoreInfo] = {}
        self._complete = False

    def add(self, row: ScoreInfo) -> None:
        """Adds a score. Raises ScoreError if its name is empty or taken by another class."""
        # One from elsewhere may not take the name of one that comes with the product.
        from_here = row.kind.__module__.startswith(f"{_PACKAGE}.")
        known = (self._rows if from_here else self._all()).get(row.name)
        if not row.name or (known is not None and known.kind is not row.kind):
            raise ScoreError(f"a score cannot be named {row.name!r}: the name is empty or taken")
        self._rows[row.name] = row

    def remove(self, name: str) -> None:
        """Removes a score; for tests that add one."""
        self._rows.pop(name, None)

    def __getitem__(self, name: str) -> ScoreInfo:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, ScoreInfo]:
        if not self._complete:
            # Importing a file registers its scores.
            package = importlib.import_module(_PACKAGE)
            for module in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
                importlib.import_module(module.name)
            # Files import each other, so the order in which they registered depends on who was first.
            self._complete = True
            self._rows = dict(sorted(self._rows.items(), key=lambda item: _place(item[1])))
        return self._rows


def _place(row: ScoreInfo) -> int:
    file = row.kind.__module__.removeprefix(f"{_PACKAGE}.")
    return _LISTED_FIRST.index(file) if file in _LISTED_FIRST else len(_LISTED_FIRST)


SCORES = Registry()


def register(
    *,
    tasks: tuple[str, ...],
    source: str,
    needs: Needs = "nothing",
    passes: Passes = "one",
    exportable: bool | None = None,
) -> Callable[[S], S]:
    """Adds the class below it to `SCORES` under its `name`; for use as a decorator.

    Args:
        tasks: forms of outputs that the score can read (`Task.form`).
        source: paper that it is from.
        needs: set that it is fitted on.
        passes: how often it runs the model per image.
        exportable: whether it traces into a graph. Default: the class's own value.
    """

    def add(kind: S) -> S:
        traces = kind.exportable if exportable is None else exportable
        SCORES.add(ScoreInfo(kind.name, tasks, kind, needs, kind.free, traces, passes, source))
        return kind

    return add


def register_variant(
    kind: type[Score],
    name: str,
    *,
    tasks: tuple[str, ...],
    source: str,
    needs: Needs = "nothing",
    free: bool = False,
    **fixed: Any,
) -> None:
    """Adds a class once more, under another name and with some of its options fixed."""
    row = ScoreInfo(name, tasks, kind, needs, free, kind.exportable, source=source, fixed=fixed)
    SCORES.add(row)


def scores_of(task: str | Task) -> dict[str, ScoreInfo]:
    """Returns the scores that serve a task: its own, and those that can read outputs of its form.

    Raises ConfigError on an unknown name.
    """
    kind = as_task(task)
    own = {
        score.name: ScoreInfo(
            score.name,
            (kind.name,),
            score,
            free=score.free,
            exportable=score.exportable,
            source=kind.name,
        )
        for score in kind.own_scores
    }
    return {**own, **{name: row for name, row in SCORES.items() if kind.form in row.tasks}}


def names_for(task: str | Task, *, free: bool | None = None, exportable: bool | None = None) -> list[str]:
    """Returns the names of the scores that serve a task, in registry order.

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
    """Returns the scores of these names, fitted if they need it.

    Args:
        names: of scores.
        task: a name or a Task.
        fit: signals of training data (`gather`).
        holdout: signals of data that the model never saw.
        options: per score name, keyword arguments of its class.

    Raises:
        ScoreError: a name or the task is unknown, a score does not serve the task, options are for a score
            that is not built, or a fit set is missing or unusable.

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
        # Names of scores that serve this task only: a hint to another task's would fail, too.
        close = difflib.get_close_matches(recipe.name, known, n=1)
        hint = f"; did you mean {close[0]}? For" if close else "; for"
        raise ScoreError(
            f"unknown score {recipe.name!r}{hint} {recipe.task.name} there are {', '.join(known)}"
        )
    if recipe.name not in serving:
        raise ScoreError(f"{recipe.name} serves {', '.join(info.tasks)}, not {recipe.task.name}")
    try:
        return info.kind.make(replace(recipe, options={**info.fixed, **recipe.options}))
    except TypeError as error:
        raise ScoreError(f"options {dict(recipe.options)} do not fit {recipe.name}: {error}") from error
