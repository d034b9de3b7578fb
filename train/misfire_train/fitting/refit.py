"""Fits a learned head again without one corruption family, so that the gate can judge it on that family.

held-out frames --corrupted by every family but one--> head --torch--> its scores on frames of that one

A head is trained on a library of corruptions. On a family of that library only a head that never saw it can
be judged; else "held-out corruption" would be a corruption that it knows. A head that was cross-fitted is
fitted again on the losses of the same folds' networks: the run's own network has been trained on those
frames, and its losses there would be training losses. `misfire evaluate` and `misfire export` share this
file, and the heads that it keeps in RUN/refits by a hash of all that decides them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from misfire_runtime import __version__
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES
from misfire_train.fitting.cross_fitting import FoldNetwork, fit_head_on_folds, kept_folds
from misfire_train.heads import HeadRecipe, LossHead, build_head_from_state, recipe_named
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import fit_head
from misfire_train.runs import Run, write_tensors
from misfire_train.scores import compute
from misfire_train.signals import Probe
from misfire_train.tasks import Task

REFITS = "refits"
"""Folder of a run with heads that were fitted again."""
_OPTIONS = "options"


@dataclass(frozen=True)
class Refit:
    """Holds how a head was fitted, and so how to fit it again.

    Attributes:
        name: of its score.
        train: frames that its network was trained on.
        holdout: frames that it never fitted, None if they are not available.
        folds: networks whose losses a cross-fitted head learns instead.
        obstacle: why the head cannot be fitted again even with its frames, or "".
        kept: folder of the heads that were fitted again before, None to keep none.
        origin: what else decides such a head: weights and data of its run.
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
    kept: Path | None = None
    origin: str = ""

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
        head = self._head(tuple(name for name in self.families if name != family))
        values = compute(self.probe, frames, [head], task=self.task, contract=self.contract, batch=64)
        return np.asarray(values[head.name], np.float64)

    def _head(self, families: tuple[str, ...]) -> LossHead:
        """Returns a head that knows these families, from the folder of kept ones if it is there."""
        recipe = replace(self.recipe, families=families)
        if self.kept is None:
            return self._fit(recipe).head
        file = self.kept / f"{self._key(recipe)}.safetensors"
        head = _read(file, recipe)
        if head is None:
            head = self._fit(recipe).head
            # A run may lie where nothing can be written; then every command fits anew.
            with suppress(OSError):
                write_tensors(file, head.state_dict(), metadata={_OPTIONS: json.dumps(head.options)})
        return head

    def _key(self, recipe: HeadRecipe) -> str:
        """Returns a hash of everything that decides a head."""
        assert self.train is not None
        parts = {
            "misfire": __version__,
            "origin": self.origin,
            "recipe": asdict(recipe),
            "seed": self.seed,
            "task": self.task.name,
            "failure": self.task.failure_threshold,
            "train": self.train.ids,
            "holdout": None if self.holdout is None else self.holdout.ids,
            "folds": len(self.folds),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _fit(self, recipe: HeadRecipe) -> Fitted:
        assert self.train is not None
        told: dict[str, Any] = {"task": self.task, "recipe": recipe, "contract": self.contract}
        if self.folds:
            return fit_head_on_folds(self.probe, self.folds, pool=self.train, seed=self.seed, **told)
        assert self.holdout is not None
        return fit_head(self.probe, train=self.train, holdout=self.holdout, seed=self.seed, **told)


def _read(file: Path, recipe: HeadRecipe) -> LossHead | None:
    """Returns a kept head; None without one, or if it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            options = json.loads((opened.metadata() or {})[_OPTIONS])
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        head = build_head_from_state(recipe.name, options, state)
    # What was cut off is fitted again.
    except (OSError, SafetensorError, KeyError, ValueError, ConfigError):
        return None
    head.eval().requires_grad_(False)
    return head


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
        # A detector's head has no sets of columns: their number is among its options.
        columns = options.get("columns")
        recipe = replace(
            recipe,
            strength=options["strength"],
            columns=columns if isinstance(columns, str) else None,
            base=options.get("base"),
        )
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
        kept=run.path / REFITS,
        origin=f"{run.record.run_id} {run.record.dataset.sha256} {sorted(run.record.files.items())}",
    )
