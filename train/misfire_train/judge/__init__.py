"""The judge: what a failure score is worth on data it never saw, and which one a bundle triggers on.

from misfire_train.judge import choose_score, evaluate
"""

from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.gate import choose_score

__all__ = ["choose_score", "evaluate"]
