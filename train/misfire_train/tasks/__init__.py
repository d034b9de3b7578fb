"""What a network is asked to do, and what counts as a failure at it."""

from misfire_train.tasks.tasks import (
    IGNORE,
    Task,
    custom_task,
    get_task,
    joints_found,
    mean_of_units,
    pixel_answers,
    tile_losses,
)

__all__ = [
    "IGNORE",
    "Task",
    "custom_task",
    "get_task",
    "joints_found",
    "mean_of_units",
    "pixel_answers",
    "tile_losses",
]
