"""Lays embeddings out in a plane: the two directions in which those of a bundle differ most (PCA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.gallery.columns import VERDICTS
from misfire_fleet.gallery.query import Answered, Gallery, Question

MAX_POINTS = 100_000
_FITTED = 20_000
"""Samples that the directions are fitted on."""
_STEPS = 65_535
"""Places along an axis: 16 bits, finer than any screen."""
FAILED = (VERDICTS.index("wrong"), VERDICTS.index("missed"))


@dataclass(frozen=True)
class Plane:
    """Holds points of one bundle, [N] each.

    Attributes:
        bundle: whose embeddings they are.
        seq: of the samples.
        x, y: 0 to 65,535.
        verdict: place in VERDICTS.
        level: percentile times 255; 255 is the highest.
        loss: rank of the expected loss among the points times 254, from 1; 0 if it is not known.
        matching: samples of the question; `compared`: of them, with an embedding of this bundle.
        explained: share of the variance that the two directions have.
    """

    bundle: str
    seq: NDArray[Any]
    x: NDArray[Any]
    y: NDArray[Any]
    verdict: NDArray[Any]
    level: NDArray[Any]
    loss: NDArray[Any]
    random: NDArray[Any]
    matching: int
    compared: int
    explained: float


def plane_of(gallery: Gallery, question: Question) -> Plane:
    """Returns the plane of the samples that match: of the bundle that most of them are of, the newest."""
    found = gallery.answered(question)
    columns = found.view.columns
    rows, bundle, size = _largest(found)
    compared = len(rows)
    rows = rows[-MAX_POINTS:]
    if not len(rows):
        none: NDArray[Any] = np.zeros(0)
        return Plane("", none, none, none, none, none, none, none, found.count, 0, 0.0)
    vectors = gallery.index.vectors(found.view, rows, size)
    places, explained = principal(vectors)
    losses = gallery.losses.column(found.view)[rows]
    return Plane(
        found.view.names["bundle"].names[bundle],
        found.view.seq[rows],
        _steps(places[:, 0]),
        _steps(places[:, 1]),
        columns["verdict"][rows],
        np.rint(255 * np.nan_to_num(np.clip(columns["percentile"][rows], 0, 1))).astype(np.uint8),
        _ranks(losses),
        columns["random"][rows],
        found.count,
        compared,
        explained,
    )


def principal(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Returns the places along the two principal directions, [N, 2], and their share of the variance."""
    step = max(1, len(vectors) // _FITTED)
    some = vectors[::step].astype(np.float64)
    centre = some.mean(0)
    some = some - centre
    values, directions = np.linalg.eigh(some.T @ some / max(1, len(some) - 1))
    best = directions[:, ::-1][:, :2]
    # The sign of a direction is arbitrary; a fixed one keeps the map as it is when samples are added.
    signs = np.sign(best[np.abs(best).argmax(0), np.arange(best.shape[1])])
    best = best * np.where(signs == 0, 1, signs)
    if best.shape[1] < 2:
        best = np.concatenate([best, np.zeros_like(best)], 1)
    total = float(values.clip(0).sum())
    places = ((vectors - centre.astype(np.float32)) @ best.astype(np.float32)).astype(np.float32)
    return places, float(values[-2:].clip(0).sum()) / total if total else 0.0


def _largest(found: Answered) -> tuple[NDArray[Any], int, int]:
    """Returns the rows of the bundle and size that most embeddings are of."""
    columns = found.view.columns
    rows = np.flatnonzero(found.mask & (columns["slot"] >= 0) & (columns["bundle"] >= 0))
    if not len(rows):
        return rows, -1, 0
    kinds = columns["bundle"][rows].astype(np.int64) << 16 | columns["dimensions"][rows]
    values, counts = np.unique(kinds, return_counts=True)
    kind = int(values[counts.argmax()])
    return rows[kinds == kind], kind >> 16, kind & 0xFFFF


def _steps(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    # A few far points must not squeeze all others together: they lie on the border.
    low, high = np.quantile(values, (0.001, 0.999))
    wide = max(float(high - low), 1e-9)
    shares = np.clip((values - low) / wide * 0.96 + 0.02, 0, 1)
    return np.asarray(np.rint(_STEPS * shares), np.uint16)


def _ranks(losses: NDArray[np.float64]) -> NDArray[np.uint8]:
    known = ~np.isnan(losses)
    ranks = np.zeros(len(losses), np.uint8)
    if known.any():
        order = np.argsort(np.argsort(losses[known], kind="stable"), kind="stable")
        ranks[known] = 1 + (254 * order // max(1, int(known.sum()))).astype(np.uint8)
    return ranks
