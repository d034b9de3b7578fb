"""Resolves which failure scores a bundle carries, and names those of further answers.

Scores are the requested ones, all of a task, or the usual ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from misfire_runtime.errors import ConfigError
from misfire_train import scores as scoring
from misfire_train.tasks import Task

HEAD = "learning_loss_pp"
ALL = "all"
_ANSWER = "answer."


def wanted_scores(names: Sequence[str] | None, *, task: Task, head: bool) -> tuple[str, ...]:
    """Returns the names that were asked for, "all" spelled out, or the usual ones. head: there is one."""
    if names is None:
        return default_scores(task, head=head)
    return all_scores(task, head=head) if list(names) == [ALL] else tuple(names)


def all_scores(task: Task, *, head: bool) -> tuple[str, ...]:
    """Returns the learned head and every score of a task that a graph can hold."""
    return (*((HEAD,) if head else ()), *scoring.names_for(task, exportable=True))


def default_scores(task: Task, *, head: bool) -> tuple[str, ...]:
    """Returns the learned head and the scores that every network of the task has."""
    return (HEAD, *task.default_scores) if head else task.default_scores


def further_name(output: str) -> str:
    """Returns a further answer's name as its scores begin with it, from an output's name or position.

    >>> further_name("time.of-day"), further_name("1")
    ('time_of_day', 'out1')
    """
    plain = re.sub(r"\W", "_", output)
    # Rules name scores, and a name does not begin with a digit.
    return f"out{plain}" if plain[:1].isdigit() else plain


def further_output(name: str) -> str:
    """Returns the graph's output with the logits of a further answer."""
    return f"{_ANSWER}{name}"


def read_score_options(text: str) -> dict[str, dict[str, Any]]:
    """Returns {score: {option: value}} of a JSON text, empty for an empty one.

    Raises ConfigError on any other.
    """
    if not text:
        return {}
    try:
        return TypeAdapter(dict[str, dict[str, Any]]).validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f'--score-options is {text!r}; expected JSON such as {{"egl_pp": {{"size": 512}}}}'
        ) from error
