"""Resolves which scores to judge: `all`, `free` and names, in any combination, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from misfire_train.errors import JudgeError
from misfire_train.heads.base import NAME as HEAD
from misfire_train.runs import RunRecord
from misfire_train.scores import SCORES, names_for

ALL, FREE = "all", "free"


def chosen_scores(wanted: Sequence[str], record: RunRecord) -> list[str]:
    """Returns the names of the scores, once each, in the order in which they were asked for.

    `all` is every score of the run's task and its learned head, `free` those that need only the outputs.
    Raises JudgeError on a name that is none of them, with the complete list, and if no free score is left.
    """
    free, known = names_for(record.task, free=True), names_for(record.task)
    if record.head is not None:
        known = [*known, HEAD]
    groups = {ALL: known, FREE: free}
    for name in wanted:
        if name not in groups and name not in known:
            raise JudgeError(f"{_why_not(name, record)}; there are {', '.join((*groups, *known))}")
    chosen = list(dict.fromkeys(each for name in wanted for each in groups.get(name, [name])))
    if not set(chosen) & set(free):
        raise JudgeError(f"the gate needs a free score to beat: add {FREE}, or one of {', '.join(free)}")
    return chosen


def _why_not(name: str, record: RunRecord) -> str:
    if name == HEAD:
        return f"the run has no learned head, so no {HEAD}"
    if name in SCORES:
        return f"{name} serves {', '.join(SCORES[name].tasks)}, not {record.task}"
    return f"unknown score {name}"
