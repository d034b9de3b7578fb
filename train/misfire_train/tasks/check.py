"""Do a network's outputs and the labels fit the task that somebody named?

outputs, targets --ranks, values--> nothing, or one sentence that says which task it looks like
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
        guess = next((other.name for other in known_tasks() if other.ranks == ranks), None)
        likely = task.hint(outputs, targets) or (f"is it task={guess!r}?" if guess else "")
        raise ConfigError(
            f"{task.name} needs {task.looks}, got outputs {_shape(outputs)}, targets {_shape(targets)}"
            f"{'; ' if likely else ''}{likely}"
        )
    if len(outputs):
        task.require_fit(outputs, targets)


def _shape(tensor: Tensor) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"
