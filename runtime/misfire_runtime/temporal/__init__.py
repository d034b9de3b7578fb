"""Compares answers in time: an answer that differs from those just before and after it is probably wrong.

answers of one source, in order --Lane--> what each was worth, one or two frames late

`base` defines what is found and how; `boxes`, `masks` and `classes` are one class each, found by the kind of
the answer (`registry`). `lane` watches the rate, gaps and cuts of one source, `levels` learns percentiles.
"""

from __future__ import annotations

from misfire_runtime.temporal.boxes import BoxComparison
from misfire_runtime.temporal.classes import ClassComparison
from misfire_runtime.temporal.masks import MaskComparison

__all__ = ["BoxComparison", "ClassComparison", "MaskComparison"]
