"""Fits a learned head again without one corruption family, so that the gate can judge it on that family.

held-out frames --corrupted by every family but one--> head --torch--> its scores on frames of that one

A head is trained on a library of corruptions. On a family of that library only a head that never saw it can
be judged; else "held-out corruption" would be a corruption that it knows. A head that was cross-fitted is
fitted again on the losses of the same folds' networks: the run's own network has been trained on those
frames, and its losses there would be training losses. `misfire evaluate` and `misfire export` share this
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES
from misfire_train.fitting.cross_fitting import FoldNetwork, fit_head_on_folds, kept_folds
from misfire_train.heads import HeadRecipe, recipe_named
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import fit_head
from misfire_train.runs import Run
from misfire_train.scores import compute
from misfire_train.signals import Probe
from misfire_train.tasks import Task


@dataclass(frozen=True)
class Refit:
    """Holds how a head was fitted, and so how to fit it again.

    Attributes:
        name: of its score.
        train: frames that its network was trained on.
        holdout: frames that it never fitted, None if they are not available.
        folds: networks whose losses a cross-fitted head learns instead.
        obstacle: why the head cannot be fitted again even with its frames, or "".
    """

    name: str
    probe: Probe
    task: Task
    recipe: HeadRecipe
    contract: InputContract
    train: Examples | None
    holdout: Examples | None
    folds: Sequence[FoldNetwork] = ()
    obstacle: str = ""
    seed: int = 0

    @property
    def families(self) -> tuple[str, ...]:
        """Returns the corruption families that the head was trained on."""
        # Without copies the head saw no corruption.
        if self.recipe.copies == 0:
            return ()
        return tuple(FAMILIES) if self.recipe.families is None else self.recipe.families

    @property
    def why_not(self) -> str:
        """Returns why it cannot be fitted again, "" if it can."""
        if self.obstacle:
            return self.obstacle
        given = self.train is not None and (self.holdout is not None or bool(self.folds))
        return "" if given else "its training and held-out frames were not given"

    @property
    def possible(self) -> bool:
        """Returns whether it can be fitted again here."""
        return not self.why_not

    def scores(self, family: str, frames: Examples) -> NDArray[np.float64]:
        """Returns scores [N] of these frames, by a head fitted without the family; in torch and fp32."""
        fitted = self._fit(tuple(name for name in self.families if name != family))
        values = compute(self.probe, frames, [fitted.head], task=self.task, contract=self.contract, batch=64)
        return np.asarray(values[fitted.head.name], np.float64)

    def _fit(self, families: tuple[str, ...]) -> Fitted:
        assert self.train is not None
        recipe = replace(self.recipe, families=families)
        told: dict[str, Any] = {"task": self.task, "recipe": recipe, "contract": self.contract}
        if self.folds:
            return fit_head_on_folds(self.probe, self.folds, pool=self.train, seed=self.seed, **told)
        assert self.holdout is not None
        return fit_head(self.probe, train=self.train, holdout=self.holdout, seed=self.seed, **told)


def refit_of_run(
    run: Run, *, train: Examples | None, holdout: Examples | None, task: Task | None = None
) -> Refit | None:
    """Returns how a run's head was fitted; None without one.

    Args:
        run: The run.
        train: Frames that its network was trained on.
        holdout: Frames that it never fitted. `frames_to_fit` gives both.
        task: One that knows failures, if the run's does not.
    """
    if run.head is None or run.record.head is None:
        return None
    recipe = recipe_named(run.record.head.recipe).with_table(run.config.head)
    # The refit is judged for the score that the run has, so it is of the same strength.
    options = run.record.head.options
    if "strength" in options:
        recipe = replace(recipe, strength=options["strength"], columns=options.get("columns"))
    folds: tuple[FoldNetwork, ...] = ()
    obstacle = ""
    if recipe.joint:
        obstacle = "it was not fitted on frames that the network never saw"
    elif run.config.head.folds and train is not None:
        folds = tuple(kept_folds(run, train))
        obstacle = "" if folds else "its run did not keep the networks of its folds"
    return Refit(
        name=run.head.name,
        probe=run.probe,
        task=task if task is not None and not run.task.knows_failures else run.task,
        recipe=recipe,
        contract=run.contract,
        train=train,
        holdout=holdout,
        folds=folds,
        obstacle=obstacle,
        seed=run.config.seed,
    )
