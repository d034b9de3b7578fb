"""Judges a candidate bundle against the incumbent on a frozen test set, and publishes what passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_fleet.candidates.gate import judge_candidate
    from misfire_fleet.candidates.verdict import Verdict
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "judge_candidate": "misfire_fleet.candidates.gate",
            "Verdict": "misfire_fleet.candidates.verdict",
        },
    )

__all__ = ["Verdict", "judge_candidate"]
