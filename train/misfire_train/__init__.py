"""misfire's science: objectives, heads, failure scores, selection, and the judge of them all.

For a notebook:

    attach(model, layers=..., objective=...)   a learned failure score on any nn.Module
    scores.compute(probe, images, names)       any scores from one forward pass
    select(embeddings, method=..., k=...)      what to label next
    evaluate(...)                              how good a score is, with intervals
"""

from misfire_train import scores
from misfire_train.attaching import Attached, attach
from misfire_train.judge import evaluate
from misfire_train.selection import select

__all__ = ["Attached", "attach", "evaluate", "scores", "select"]
