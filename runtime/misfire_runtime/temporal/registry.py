"""Finds the comparison for a kind of answer. `@register` above a class adds it."""

from __future__ import annotations

from typing import Any, TypeVar

from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.temporal.base import NAME, Comparison

MAX_SCORES = 64
"""What an offer takes."""
_CLASSES: dict[str, type[Comparison[Any]]] = {}
T = TypeVar("T", bound=type[Comparison[Any]])


def register(comparison: T) -> T:
    """Adds a class under its kind of output; for use as a decorator.

    Raises:
        ValueError: another class has that kind already.
    """
    if _CLASSES.setdefault(comparison.kind, comparison) is not comparison:
        raise ValueError(f"outputs of kind {comparison.kind!r} are compared by {_CLASSES[comparison.kind]}")
    return comparison


def comparison_of(scorer: Scorer) -> type[Comparison[Any]] | None:
    """Returns the class that compares a bundle's answers, by the first registered kind that it has.

    Returns:
        None if its answers cannot be compared, if it has a score of that name itself, or has no room for one
        more in an offer.
    """
    if NAME in scorer.tables or len(scorer.tables) >= MAX_SCORES:
        return None
    return next((found for kind, found in _CLASSES.items() if scorer.output_of(kind) is not None), None)
