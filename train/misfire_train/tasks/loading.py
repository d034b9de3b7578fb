"""Loads a task of one's own by name, as commands take it: `module:task`.

module:attribute --import--> a Task, or a function without arguments that returns one
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from misfire_runtime.errors import ConfigError
from misfire_train.tasks.base import Task
from misfire_train.tasks.registry import get_task, known_tasks


def load_task(name: str) -> Task:
    """Returns the task of a name: a known one, or `package.module:attribute`. The current folder is searched.

    Raises ConfigError that names the task if it is unknown, cannot be imported, or is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in {task.name for task in known_tasks()}:
            known = ", ".join(task.name for task in known_tasks())
            raise ConfigError(f"there is no task {name!r}; there are {known}, and your own as module:task")
        return get_task(name)
    if not module or not attribute:
        raise ConfigError(f"the task is {name!r}; expected module:task")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
        task = found() if callable(found) else found
    except Exception as error:
        raise ConfigError(f"the task {name}: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"the task {name} is {type(task).__name__}; expected what custom_task(...) returns, or a Task"
        )
    return task
