"""Judges what a failure score is worth on data it never saw, and which one a bundle triggers on.

from misfire_train.judge import Evidence, GateRules, choose_score, evaluate
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_train.judge.evaluating import evaluate
    from misfire_train.judge.evidence import Evidence
    from misfire_train.judge.gate import GateRules, choose_score
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "Evidence": "misfire_train.judge.evidence",
            "GateRules": "misfire_train.judge.gate",
            "choose_score": "misfire_train.judge.gate",
            "evaluate": "misfire_train.judge.evaluating",
        },
    )

__all__ = ["Evidence", "GateRules", "choose_score", "evaluate"]
