"""Chooses which frames to label next: by score, by diversity, by density, and in fair shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_train.errors import SelectionError
    from misfire_train.selection.choosing import METHODS, select
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "METHODS": "misfire_train.selection.choosing",
            "SelectionError": "misfire_train.errors",
            "select": "misfire_train.selection.choosing",
        },
    )

__all__ = ["METHODS", "SelectionError", "select"]
