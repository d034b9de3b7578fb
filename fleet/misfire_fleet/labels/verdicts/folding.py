"""Folds near-duplicates: samples of one bundle whose answers are the same and whose embeddings are alike.

rows in the order of a queue --fold--> groups, each led by its first row

A group is what one verdict can be shared by. A row joins the first group whose leader is similar enough, so a
group never drifts: all of it resembles what the person sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIMILARITY = 0.98
"""Cosine similarity, as collectors decline near-duplicates by default."""
_MOST = 200


@dataclass(frozen=True)
class Foldable:
    """Holds what decides with which others a sample is folded. embedding: [D], None if there is none."""

    id: str
    bundle: str
    answer: tuple[Any, ...]
    embedding: NDArray[np.float32] | None


@dataclass
class Group:
    """Holds near-duplicates: the ids, the leader first."""

    ids: list[str] = field(default_factory=list)


def answer_key(prediction: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what two answers must share for one verdict to fit both.

    Of boxes, how many there are of each class; places, values and masks are compared by the embedding only.
    """
    boxes, several = prediction.get("boxes"), prediction.get("labels")
    if isinstance(boxes, list):
        names = Counter(str(each.get("class")) for each in boxes if isinstance(each, dict))
        return ("boxes", *sorted(names.items()))
    if isinstance(several, (dict, list)):
        return ("classes", *sorted(map(str, several)))
    if "class" in prediction:
        return ("class", str(prediction["class"]))
    return ("other", *sorted(map(str, prediction)))


def fold(rows: Sequence[Foldable], *, similarity: float = SIMILARITY) -> list[Group]:
    """Returns the groups, in the order of their leaders.

    Args:
        rows: in the order of the queue.
        similarity: the smallest cosine similarity to a group's leader, 0..1.
    """
    leaders: dict[tuple[Any, ...], _Leaders] = {}
    groups: list[Group] = []
    for row in rows:
        unit = None if row.embedding is None else _unit(row.embedding)
        if unit is None:
            groups.append(Group([row.id]))
            continue
        key = (row.bundle, row.answer, len(unit))
        known = leaders.setdefault(key, _Leaders(len(unit)))
        group = known.nearest(unit, similarity)
        if group is None:
            group = Group()
            groups.append(group)
            known.add(unit, group)
        group.ids.append(row.id)
    return groups


class _Leaders:
    """Holds the leaders of one bundle and answer as unit vectors, [capacity, D], grown by doubling."""

    def __init__(self, width: int) -> None:
        self._rows: NDArray[np.float32] = np.zeros((64, width), np.float32)
        self._groups: list[Group] = []

    def nearest(self, unit: NDArray[np.float32], similarity: float) -> Group | None:
        if not self._groups:
            return None
        values = self._rows[: len(self._groups)] @ unit
        # A full group takes no more; the next best may.
        for place in np.argsort(-values)[:8]:
            group = self._groups[int(place)]
            if values[place] < similarity:
                return None
            if len(group.ids) < _MOST:
                return group
        return None

    def add(self, unit: NDArray[np.float32], group: Group) -> None:
        if len(self._groups) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[len(self._groups)] = unit
        self._groups.append(group)


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Returns the embedding at length 1; None if it has no direction."""
    length = float(np.linalg.norm(embedding))
    return embedding / length if np.isfinite(length) and length > 0 else None
