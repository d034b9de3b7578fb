"""Lists tasks by name, as data sets, configurations, runs and heads record them."""

from __future__ import annotations

from misfire_runtime.errors import ConfigError
from misfire_train.tasks.base import Task
from misfire_train.tasks.classification import Classification
from misfire_train.tasks.custom import CustomTask, unknown_loss
from misfire_train.tasks.detection import Detection
from misfire_train.tasks.keypoints import Keypoints
from misfire_train.tasks.multi_label import MultiLabel
from misfire_train.tasks.regression import Regression
from misfire_train.tasks.segmentation import Segmentation

BUILT_IN: tuple[Task, ...] = (
    *(Classification(), Regression(), Keypoints(), Segmentation(), Detection()),
    MultiLabel(),
)
"""Tasks that come with the product. A new one is added here."""
_TASKS: dict[str, Task] = {task.name: task for task in BUILT_IN}


def register_task(task: Task) -> Task:
    """Makes a task known by its name, in this process, and returns it.

    Data sets and saved runs can then name it. Raises ConfigError if the name is empty or taken.
    """
    if not task.name or task.name in _TASKS or task.name == CustomTask.name:
        raise ConfigError(f"a task cannot be named {task.name!r}: the name is empty or taken")
    _TASKS[task.name] = task
    return task


def known_tasks() -> tuple[Task, ...]:
    """Returns all tasks that have a name."""
    return tuple(_TASKS.values())


def get_task(name: str) -> Task:
    """Returns a task by name. Raises ConfigError with the names that exist.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> get_task("classification").failed(logits, torch.tensor([0, 1])).tolist()
    [False, True]
    """
    task = _TASKS.get(name)
    if task is None:
        raise ConfigError(f"there is no task {name!r}; there are {', '.join(_TASKS)}, and custom_task(...)")
    return task


def as_task(task: str | Task) -> Task:
    """Returns a task itself, or the one of that name.

    "custom" gives a task without losses, which is enough for scores and heads that were saved under that
    name.
    Raises ConfigError on an unknown name.
    """
    if isinstance(task, Task):
        return task
    return CustomTask(unknown_loss) if task == CustomTask.name else get_task(task)
