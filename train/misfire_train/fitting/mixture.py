"""Mixes old data and a fleet's uploads: how often an epoch of retraining shows each example.

    replay            share of an epoch that is old data; the rest is uploads
    class balance     rare classes more often, within old data and within uploads
    slice balance     rare slices (vehicle, weather, ...) more often, within uploads

A count need not be whole: 0.3 shows an example in three of ten epochs, drawn anew in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from misfire_train.data import Examples
from misfire_train.tasks import Task
from misfire_train.train_config import MixtureTable

Floats = NDArray[np.float64]
_MAX_RATIO = 10.0
"""Limit of a class's or slice's weight against the commonest one: a single frame must not fill an epoch."""


def shown_counts(
    old: Examples,
    uploads: Examples,
    *,
    table: MixtureTable,
    task: Task,
    slices: Sequence[str] | None = None,
) -> Floats:
    """Returns how often an epoch shows each example, first those of `old`, then the uploads: [N+M].

    Without balance, old examples are shown once, and every upload equally often: as often as `replay` asks.
    Balance shifts the counts within the two sides, whose shares stay. No upload is shown more than
    `max_repeats` times, whatever is asked: it would be memorised.

    Args:
        old: N examples of the data set.
        uploads: M labelled examples of the fleet.
        table: shares and strengths.
        task: knows which classes an example shows.
        slices: name of each upload's slice, [M]; None: there are no slices.
    """
    counts: Floats = np.ones(len(old) + len(uploads))
    if not len(uploads):
        return counts
    # Uploads per old example so that they fill 1 - replay of the epoch.
    times = len(old) * (1 - table.replay) / max(table.replay, 1e-9) / len(uploads)
    counts[len(old) :] = np.clip(times, 1.0, table.max_repeats)
    if table.class_balance > 0:
        for side, part in ((slice(0, len(old)), old), (slice(len(old), None), uploads)):
            counts[side] *= class_weights(part, task=task, strength=table.class_balance)
    if table.slice_balance > 0 and slices is not None:
        counts[len(old) :] *= slice_weights(slices, strength=table.slice_balance)
    counts[len(old) :] = np.minimum(counts[len(old) :], table.max_repeats)
    return counts


def class_weights(examples: Examples, *, task: Task, strength: float) -> Floats:
    """Returns a weight for each example, mean 1: the weight of the rarest class that it shows.

    A class that a share f of the examples shows weighs f^-strength (Gupta et al. 2019, LVIS: 1/2).
    Examples without a class have that of the commonest one; so have all of a task without classes.
    """
    shown = task.present(examples.targets)
    if shown is None or not len(examples):
        return np.ones(len(examples))
    share = shown.mean(0)
    common = float(share.max(initial=0.0))
    weight = np.where(share > 0, (common / np.maximum(share, 1e-12)) ** strength, 1.0)
    rarest = np.where(shown, np.minimum(weight, _MAX_RATIO), 1.0).max(1, initial=1.0)
    return np.asarray(rarest / rarest.mean(), np.float64)


def slice_weights(slices: Sequence[str], *, strength: float) -> Floats:
    """Returns a weight for each upload, mean 1: a slice with a share f of them has f^-strength."""
    _, members, counts = np.unique(np.asarray(slices), return_inverse=True, return_counts=True)
    weight = np.minimum((counts.max() / counts) ** strength, _MAX_RATIO)[members]
    return np.asarray(weight / weight.mean(), np.float64)
