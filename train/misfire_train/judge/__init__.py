"""The judge: what a failure score is worth on data it never saw, and which one a bundle triggers on.

from misfire_train.judge import Evidence, GateRules, choose_score, evaluate
"""

from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules, choose_score

__all__ = ["Evidence", "GateRules", "choose_score", "evaluate"]
