"""A learned head fitted again without one corruption family, for the gate to judge on that family.

held-out frames --corrupted by every family but one--> head --torch--> its scores on frames of that one

A head is trained on a library of corruptions. On a family of that library it can only be judged by a head
that never saw it: else "held-out corruption" would be a corruption that it knows. `misfire evaluate` and
`misfire export` both go by this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES
from misfire_train.heads import HeadRecipe, recipe_named
from misfire_train.heads.training import fit_head
from misfire_train.runs import Run
from misfire_train.scores import compute
from misfire_train.signals import Probe
from misfire_train.tasks import Task
from misfire_train.train_config import TrainConfig


@dataclass(frozen=True)
class Refit:
    """How a head was fitted, and so how to fit it again. name: of its score.

    train, holdout: the frames it was fitted on; None where they are not at hand.
    stands_alone: it was fitted on a finished network, so it can be fitted again without training that.
    """

    name: str
    probe: Probe
    task: Task
    recipe: HeadRecipe
    contract: InputContract
    train: Examples | None
    holdout: Examples | None
    stands_alone: bool = True
    seed: int = 0

    @property
    def families(self) -> tuple[str, ...]:
        """Corruption families that the head was trained on."""
        if self.recipe.copies == 0:
            return ()
        return tuple(FAMILIES) if self.recipe.families is None else self.recipe.families

    @property
    def why_not(self) -> str:
        """Why it cannot be fitted again; "" where it can."""
        if not self.stands_alone:
            return "it was not fitted on frames that the network never saw"
        return "" if self.possible else "its training and held-out frames were not given"

    @property
    def possible(self) -> bool:
        """Whether it can be fitted again here."""
        return self.stands_alone and self.train is not None and self.holdout is not None

    def scores(self, family: str, frames: Examples) -> NDArray[np.float64]:
        """[N] of these frames, by a head fitted without the family; in torch and fp32."""
        assert self.train is not None and self.holdout is not None
        fitted = fit_head(
            self.probe,
            task=self.task,
            recipe=replace(self.recipe, families=tuple(f for f in self.families if f != family)),
            train=self.train,
            holdout=self.holdout,
            contract=self.contract,
            seed=self.seed,
        )
        values = compute(self.probe, frames, [fitted.head], task=self.task, contract=self.contract, batch=64)
        return np.asarray(values[fitted.head.name], np.float64)


def refit_of_run(
    run: Run, *, train: Examples | None, holdout: Examples | None, task: Task | None = None
) -> Refit | None:
    """How a run's head was fitted; None without one. task: one that knows failures, if the run's does not.

    A head that was trained along with the network or cross-fitted does not stand alone: its network has been
    trained on the holdout.
    """
    if run.head is None or run.record.head is None:
        return None
    config = TrainConfig.model_validate(run.record.config)
    recipe = recipe_named(run.record.head.recipe).with_table(config.head)
    return Refit(
        name=run.head.name,
        probe=run.probe,
        task=task if task is not None and not run.task.knows_failures else run.task,
        recipe=recipe,
        contract=run.contract,
        train=train,
        holdout=holdout,
        stands_alone=not recipe.joint and config.head.folds == 0,
        seed=config.seed,
    )
