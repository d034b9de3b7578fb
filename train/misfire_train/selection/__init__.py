"""Which frames to label next: by score, by diversity, by density, and by fair shares."""

from misfire_train.selection.choosing import METHODS, select
from misfire_train.selection.errors import SelectionError

__all__ = ["METHODS", "SelectionError", "select"]
