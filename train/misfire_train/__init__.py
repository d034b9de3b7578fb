"""Provides misfire's science: objectives, heads, failure scores, selection, and the judge of them all.

For a notebook:

    attach(model, layers=..., objective=...)   a learned failure score on any nn.Module
    scores.compute(probe, images, names)       any scores from one forward pass
    select(embeddings, method=..., k=...)      what to label next
    evaluate(...)                              how good a score is, with intervals
    load_dataset("mnist"), load_run(folder)    labelled images; a training run on disk
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_train import scores
    from misfire_train.attaching import Attached, attach
    from misfire_train.data.loading import load_dataset
    from misfire_train.judge.evaluating import evaluate
    from misfire_train.runs import load_run
    from misfire_train.selection.choosing import select
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "Attached": "misfire_train.attaching",
            "attach": "misfire_train.attaching",
            "evaluate": "misfire_train.judge.evaluating",
            "load_dataset": "misfire_train.data.loading",
            "load_run": "misfire_train.runs",
            "scores": "misfire_train.scores",
            "select": "misfire_train.selection.choosing",
        },
    )

__all__ = ["Attached", "attach", "evaluate", "load_dataset", "load_run", "scores", "select"]
