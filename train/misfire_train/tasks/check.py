"""Checks whether a network's outputs and the labels fit the task that the user named.

outputs, targets --ranks, values--> nothing, or one sentence that names the task they look like
"""

from __future__ import annotations

from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_train.tasks.base import Task
from misfire_train.tasks.registry import known_tasks


def require_fit(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Raises ConfigError if outputs [N,...] and targets [N,...] are not those of the task."""
    if task.ranks is None:
        return
    ranks = (outputs.ndim, targets.ndim)
    if ranks != task.ranks:
        likely = task.hint(outputs, targets) or _guess(outputs, targets)
        raise ConfigError(
            f"{task.name} needs {task.looks}, got outputs {_shape(outputs)}, targets {_shape(targets)}"
            f"{'; ' if likely else ''}{likely}"
        )
    if len(outputs):
        task.require_fit(outputs, targets)


def _guess(outputs: Tensor, targets: Tensor) -> str:
    """Returns a question that names the task whose ranks these are, at best one whose values fit too."""
    alike = [task for task in known_tasks() if task.ranks == (outputs.ndim, targets.ndim)]
    best = next((task for task in alike if _fits(task, outputs, targets)), alike[0] if alike else None)
    return "" if best is None else f"is it task={best.name!r}?"


def _fits(task: Task, outputs: Tensor, targets: Tensor) -> bool:
    try:
        task.require_fit(outputs, targets)
    except ConfigError:
        return False
    return True


def _shape(tensor: Tensor) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"
