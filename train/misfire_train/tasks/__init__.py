"""Defines what a network is asked to do, and what counts as a failure at it.

get_task("segmentation")        a task by name
custom_task(per_sample_loss)    one made of a loss
class Mine(Task)                one with its own labels, units and drawings (`base.py`), and register_task
"""

from misfire_train.tasks.base import LabelPlace, Task, Variation, mean_of_units
from misfire_train.tasks.custom import custom_task
from misfire_train.tasks.registry import as_task, get_task, known_tasks, register_task

__all__ = [
    "LabelPlace",
    "Task",
    "Variation",
    "as_task",
    "custom_task",
    "get_task",
    "known_tasks",
    "mean_of_units",
    "register_task",
]
