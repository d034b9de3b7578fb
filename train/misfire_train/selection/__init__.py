"""Which frames to label next: by score, by diversity, by density, and by fair shares."""

from misfire_train.errors import SelectionError
from misfire_train.selection.choosing import METHODS, select

__all__ = ["METHODS", "SelectionError", "select"]
