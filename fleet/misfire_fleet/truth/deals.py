"""Deals frames of the random stream for labelling, and remembers with which probability each was dealt.

frames of a cell (slice and stratum), by their order --deal--> those up to a cut;  cuts --> probabilities

A sample's order is a hash of its id: uniform, and the same for ever (permanent random numbers, Ohlsson 1995).
A deal takes a cell's frames up to a cut, so a frame is dealt if its order is below the highest cut of all
deals that covered it, and that decides its probability. Deals need no list of ids, and may overlap and follow
each other. They are lines of the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.schema import audit
from misfire_fleet.truth.curve import deal as share_out
from misfire_fleet.truth.curve import stratum_of
from misfire_fleet.truth.histogram import binned
from misfire_fleet.truth.stream import StreamFrame
from misfire_fleet.truth.stream import frames as frames_of
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
        stored_to: it covers frames that were stored until then; row numbers change in a rebuild.
    """

    bundle: str
    score: str
    edges: tuple[float, ...]
    by: str
    cuts: dict[str, tuple[float, ...]]
    since: float | None
    until: float | None
    stored_to: float

    def covers(self, frame: StreamFrame) -> bool:
        """Returns whether the frame could have been dealt."""
        after = self.until is not None and frame.captured_at >= self.until
        before = self.since is not None and frame.captured_at < self.since
        return (
            not (frame.stored_at > self.stored_to or before or after) and frame.slices[self.by] in self.cuts
        )

    def cells_of(self, frames: Sequence[StreamFrame]) -> NDArray[np.int64]:
        """Returns the number of each frame's cell, [N]; -1 for those that the deal does not cover."""
        numbers = {name: number for number, name in enumerate(sorted(self.cuts))}
        places = strata_of(frames, self.edges)
        return np.array(
            [
                numbers[frame.slices[self.by]] * (len(self.edges) + 1) + place if self.covers(frame) else -1
                for frame, place in zip(frames, places, strict=True)
            ],
            np.int64,
        )

    def cuts_of(self, frames: Sequence[StreamFrame]) -> NDArray[np.float64]:
        """Returns the cut of each frame's cell, [N]; 0 for those that the deal does not cover."""
        places = strata_of(frames, self.edges)
        return np.array(
            [
                self.cuts[frame.slices[self.by]][place] if self.covers(frame) else 0.0
                for frame, place in zip(frames, places, strict=True)
            ]
        )


def strata_of(frames: Sequence[StreamFrame], edges: Sequence[float]) -> NDArray[np.int64]:
    """Returns the stratum of each frame, [N]; a refused score is in the highest one."""
    scores = np.array([np.inf if frame.score is None else frame.score for frame in frames], float)
    known = np.isfinite(scores)
    places = stratum_of(binned(np.where(known, scores, 0.0)), np.asarray(edges))
    return np.where(known, places, len(edges))


def probabilities(deals: Sequence[Deal], frames: Sequence[StreamFrame]) -> NDArray[np.float64]:
    """Returns the probability with which each frame was dealt, [N]: 0 if it was not, 1 without any deal.

    It is the dealt share of the frames that all deals treat alike. The cut itself is that share but for the
    draw's chance, which would only add noise to the weights.
    """
    if not deals:
        return np.ones(len(frames))
    highest = np.max([deal.cuts_of(frames) for deal in deals], axis=0)
    dealt = np.array([frame.order for frame in frames]) <= highest
    treated = np.stack([deal.cells_of(frames) for deal in deals], axis=1)
    _kinds, kind = np.unique(treated, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    share = np.bincount(kind, dealt) / np.bincount(kind)
    return np.where(dealt, share[kind], 0.0)


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


def dealt_frames(store: Store, bundle: str) -> list[str]:
    """Returns the ids of all frames of a bundle that were dealt, in an order that says nothing of scores.

    If deals were made by several scores, only those by the last one count, as in a report by that score.
    """
    kept = kept_deals(store, bundle)
    if not kept:
        return []
    deals = [deal for deal in kept if deal.score == kept[-1].score]
    filters = SampleFilter(bundle=bundle, random=True)
    found = list(frames_of(store, filters, score=kept[-1].score, by={"", *(deal.by for deal in deals)}))
    if not found:
        return []
    dealt = probabilities(deals, found)
    chosen = [frame for frame, probability in zip(found, dealt, strict=True) if probability > 0]
    return [frame.id for frame in sorted(chosen, key=lambda frame: frame.order)]


def _deal(detail: dict[str, Any]) -> Deal:
    return Deal(
        **{name: detail[name] for name in ("bundle", "score", "by", "since", "until", "stored_to")},
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
