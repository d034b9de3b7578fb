"""Deals frames of the random stream for labelling, and remembers with which probability each was dealt.

frames of a cell (slice and stratum), by their order --deal--> those up to a cut;  cuts --> probabilities

A sample's order is a hash of its id: uniform, and the same for ever (permanent random numbers, Ohlsson 1995).
A deal takes a cell's frames up to a cut, so a frame is dealt if its order is below the highest cut of all
deals that covered it, and that cut is its probability. Deals need no list of ids, and may overlap and follow
each other. They are lines of the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import select

from misfire_fleet.store import Store
from misfire_fleet.store.schema import audit
from misfire_fleet.truth.curve import deal as share_out
from misfire_fleet.truth.curve import stratum_of
from misfire_fleet.truth.histogram import binned
from misfire_fleet.truth.stream import StreamFrame
from misfire_runtime.clock import wall_time

ACTION = "truth-deal"


@dataclass(frozen=True)
class Deal:
    """Holds what decides whether a frame was dealt.

    Attributes:
        bundle, score: of the frames; strata are cut by this score.
        edges: of the strata.
        by: name of the slices; "" for one slice.
        cuts: by slice, the cut of each stratum.
        since, until: capture times that it covers; None is open.
        last_seq: it covers rows up to this one.
    """

    bundle: str
    score: str
    edges: tuple[float, ...]
    by: str
    cuts: dict[str, tuple[float, ...]]
    since: float | None
    until: float | None
    last_seq: int

    def cut_of(self, frame: StreamFrame) -> float:
        """Returns the cut of the frame's cell; 0 if the deal does not cover it."""
        own_slice = frame.slices[self.by]
        after = self.until is not None and frame.captured_at >= self.until
        before = self.since is not None and frame.captured_at < self.since
        if frame.seq > self.last_seq or before or after or own_slice not in self.cuts:
            return 0.0
        cuts = self.cuts[own_slice]
        return cuts[min(stratum_number(frame, self.edges), len(cuts) - 1)]


def stratum_number(frame: StreamFrame, edges: Sequence[float]) -> int:
    """Returns the stratum of a frame; a refused score is in the highest one."""
    if frame.score is None:
        return len(edges)
    return int(stratum_of(binned(frame.score), np.asarray(edges)))


def kept_deals(store: Store, bundle: str) -> list[Deal]:
    """Returns all deals of a bundle, oldest first."""
    query = select(audit.c.detail).where(audit.c.action == ACTION).order_by(audit.c.seq)
    with store.database.read() as connection:
        details = [json.loads(text) for text in connection.scalars(query)]
    return [_deal(detail) for detail in details if detail.get("bundle") == bundle]


def keep(store: Store, deal: Deal, *, actor: str) -> None:
    """Writes a deal to the audit log. Raises StoreUnavailableError."""
    with store.database.write() as connection:
        store.deletion.log(connection, actor[:64], ACTION, asdict(deal), at=wall_time())


def _deal(detail: dict[str, Any]) -> Deal:
    return Deal(
        **{name: detail[name] for name in ("bundle", "score", "by", "since", "until", "last_seq")},
        edges=tuple(detail["edges"]),
        cuts={name: tuple(cuts) for name, cuts in detail["cuts"].items()},
    )


def draw(
    cells: dict[str, list[list[StreamFrame]]], worths: Sequence[float], labelled: set[str], count: int
) -> tuple[dict[str, tuple[float, ...]], list[StreamFrame]]:
    """Deals `count` frames that have no label, in equal parts to the slices, and by worth to the strata.

    Args:
        cells: by slice, the frames of each stratum.
        worths: shares of the labels that the strata deserve.
        labelled: ids that have a label.
        count: wanted frames.

    Returns:
        The cuts by slice, and the frames to label, in an order that says nothing of their scores.
    """
    open_ = {name: [[f for f in cell if f.id not in labelled] for cell in row] for name, row in cells.items()}
    available = [sum(map(len, row)) for row in open_.values()]
    parts = share_out(count, np.ones(len(available)), available)
    cuts: dict[str, tuple[float, ...]] = {}
    chosen: list[StreamFrame] = []
    for (name, row), part in zip(open_.items(), parts, strict=True):
        dealt = share_out(int(part), worths, [len(cell) for cell in row])
        edge = []
        for cell, number in zip(row, dealt, strict=True):
            taken = sorted(cell, key=lambda frame: frame.order)[: int(number)]
            chosen += taken
            edge.append(taken[-1].order if taken else 0.0)
        cuts[name] = tuple(edge)
    return cuts, sorted(chosen, key=lambda frame: frame.order)
