"""Chooses the frames that scores are fitted on, for `misfire evaluate` and `misfire export`.

run, parts --frames_to_fit--> what its network was trained on, what it never fitted
examples --signals_to_fit (at most MAX_FIT, evenly spaced)--> FitSet
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from misfire_train.data import Examples
from misfire_train.data.examples import join
from misfire_train.runs import Run
from misfire_train.scores import MAX_FIT, FitSet, gather, spread

BATCH = 64
"""Images at a time: feature maps of more would not fit beside the maps that are kept."""


@dataclass(frozen=True)
class FitFrames:
    """Holds the frames that a run's scores are fitted on.

    fit: frames that its network was trained on. holdout: labelled ones that it never fitted.
    """

    fit: Examples | None
    holdout: Examples | None


def frames_to_fit(run: Run, parts: Mapping[str, Examples]) -> FitFrames:
    """Returns the frames that a run's scores are fitted on, from the parts that `run_splits` returns.

    The network of a cross-fitted run was trained on the holdout as well: its losses there are training
    losses. Its validation part, which only stopped the training, is used instead.
    """
    train, holdout = parts.get("train"), parts.get("holdout")
    if not run.config.head.folds:
        return FitFrames(train, holdout)
    pool = [part for part in (train, holdout) if part is not None]
    return FitFrames(join(pool) if pool else None, parts.get("validation"))


def signals_to_fit(run: Run, examples: Examples | None) -> FitSet | None:
    """Returns the signals of at most MAX_FIT examples, evenly spaced; None without examples."""
    if examples is None or not len(examples):
        return None
    chosen = spread(examples, MAX_FIT)
    # Of tasks whose targets are numbers, the outputs themselves are counted.
    classes = len(run.record.classes) if run.task.by_class else None
    targets = run.task.collate(chosen.targets)
    return gather(
        run.probe,
        chosen,
        targets,
        classes=classes,
        contract=run.contract,
        batch=BATCH,
        lighten=run.task.lighten,
    )
