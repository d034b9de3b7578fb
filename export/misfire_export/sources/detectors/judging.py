"""Decides on real pictures which layout a graph has: its boxes must be boxes, and lie where its cells are.

readings --dense answer on a few frames--> finite? corners in order? inside? near their cells? --> Fit
fits --strongest--> one layout, or a question for --layout, or a refusal in one sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_export.errors import GraphError
from misfire_export.graph.rename import own_name
from misfire_export.sources.detectors.base import Reading, Seen
from misfire_export.sources.detectors.decoding import LEAST
from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.columns import FINAL

_VALID = 0.98
"""Share of boxes whose corners must be in order; a few cells of a poor network may turn theirs."""
_INSIDE = 0.9
"""Share of the boxes that must lie in the picture, a margin of a tenth of it included."""
_NEAR = 4.0
"""Strides from a cell within which the median centre of its boxes must be."""
_CLEARLY_BETTER = 0.02
_TOP = 50
"""Best boxes of each frame that are looked at apart: these are the ones that a vehicle shows."""


@dataclass(frozen=True)
class Fit:
    """Holds how well a reading's boxes look like boxes.

    valid: share with corners in order.  inside: share in the picture.
    area: mean share of a box's area that is in the picture.
    near: strides from its cell to the centre of the median box.
    problem: why they are no boxes, "" if they are.
    spread: the uncertainty of the sides is known.
    """

    reading: Reading
    contract: InputContract
    valid: float
    inside: float
    area: float
    near: float
    problem: str
    spread: bool = False

    @property
    def badness(self) -> float:
        """Returns a number to compare readings of one layout; lower is better."""
        far = 0.0 if np.isnan(self.near) else 0.05 * self.near
        return (1 - self.valid) + (1 - self.inside) + (1 - self.area) + far


def judge(reading: Reading, contract: InputContract, dense: NDArray[np.float32]) -> Fit:
    """Returns how well the dense answer [n,P,K+8] of real pictures looks like boxes."""
    if not np.isfinite(dense[..., :4]).all() or not np.isfinite(dense[..., 4:-4]).all():
        return Fit(reading, contract, 0.0, 0.0, 0.0, np.nan, "boxes or scores are NaN or infinite")
    best = dense[..., 4:-4].max(-1)
    # Rows without any score are padding, whatever is in their boxes.
    used = best > np.log(LEAST) + 1
    if not used.any():
        used = np.ones_like(used)
    wide = dense[..., 2] - dense[..., 0]
    tall = dense[..., 3] - dense[..., 1]
    valid = float(((wide >= 0) & (tall >= 0))[used].mean())
    within = _inside(dense, contract)
    order = np.argsort(-best, axis=1)[:, :_TOP]
    top = np.take_along_axis(within & (wide >= 0) & (tall >= 0), order, 1)
    used_top = np.take_along_axis(used, order, 1)
    inside = min(float(within[used].mean()), float(top[used_top].mean()) if used_top.any() else 1.0)
    near = _near(dense)
    area = float(_area_inside(dense, contract)[used].mean())
    spread = bool((dense[..., -4] > 0).any())
    return Fit(reading, contract, valid, inside, area, near, _problem(valid, inside, near), spread)


def _area_inside(dense: NDArray[np.float32], contract: InputContract) -> NDArray[np.float32]:
    """Returns the share of each box's area that is in the picture, [n,P].

    A box read by corners where it has a centre and a size, or the reverse, reaches far out of it.
    """
    size = np.array([contract.width, contract.height], np.float32)
    low, high = dense[..., :2], dense[..., 2:4]
    whole = np.maximum(high - low, 0).prod(-1)
    cut = np.maximum(np.minimum(high, size) - np.maximum(low, 0), 0).prod(-1)
    return np.asarray(np.where(whole > 0, cut / np.maximum(whole, 1e-6), 1), np.float32)


def _inside(dense: NDArray[np.float32], contract: InputContract) -> NDArray[np.bool_]:
    """Returns which boxes have their centre in the picture and their corners not far outside, [n,P]."""
    size = np.array([contract.width, contract.height], np.float32)
    centre = (dense[..., :2] + dense[..., 2:4]) / 2
    margin = 0.1 * size
    held = ((centre >= -margin) & (centre <= size + margin)).all(-1)
    # A box of a cell at the border may reach beyond it, by half of the picture at most.
    low, high = dense[..., :2] >= -size / 2, dense[..., 2:4] <= 1.5 * size
    return np.asarray(held & low.all(-1) & high.all(-1))


def _near(dense: NDArray[np.float32]) -> float:
    """Returns the median distance of a box's centre from its cell, in strides; NaN without cells."""
    stride = dense[..., -1]
    if not (stride > 0).all():
        return float("nan")
    centre = (dense[..., :2] + dense[..., 2:4]) / 2
    return float(np.median(np.abs(centre - dense[..., -3:-1]).max(-1) / stride))


def _problem(valid: float, inside: float, near: float) -> str:
    if valid < _VALID:
        return f"{1 - valid:.0%} of the boxes have x1 < x0 or y1 < y0"
    if inside < _INSIDE:
        return f"{1 - inside:.0%} of the boxes lie outside the picture"
    if not np.isnan(near) and near > _NEAR:
        return f"boxes lie {near:.0f} cells away from their own cells"
    return ""


def choose(fits: Sequence[Fit], seen: Seen, *, wanted: str = "") -> Fit:
    """Returns the reading that fits best.

    wanted: a layout that the user named, or "". Raises GraphError if none fits, or two layouts do.
    """
    if not fits:
        raise GraphError(_nothing(seen, wanted))
    good = [fit for fit in fits if not fit.problem]
    if not good:
        nearest = min(fits, key=lambda fit: fit.badness)
        raise GraphError(
            f"this does not look like a detector's answer: read as {nearest.reading.layout} "
            f"({nearest.reading.why}), {nearest.problem}; state --layout, --image or another --output"
        )
    strongest = max(fit.reading.strength for fit in good)
    left = [fit for fit in good if fit.reading.strength == strongest]
    best: dict[str, Fit] = {}
    for fit in left:
        # On a tie the layout's usual form, which it yields first.
        if fit.reading.layout not in best or fit.badness < best[fit.reading.layout].badness - _CLEARLY_BETTER:
            best[fit.reading.layout] = fit
    if len(best) > 1:
        listed = " or ".join(f"{name} ({fit.reading.why})" for name, fit in sorted(best.items()))
        raise GraphError(f"which layout is it? Two fit: {listed}. Name it with --layout")
    return next(iter(best.values()))


def _nothing(seen: Seen, wanted: str) -> str:
    shapes = ", ".join(
        f"{own_name(name)} {list(seen.values[name].shape)}" for name in seen.outputs if name in seen.values
    )
    kind = f"the layout {wanted}" if wanted else "no layout of a detector"
    known = f" and {seen.classes} classes" if seen.classes else ""
    has = "does not have" if wanted else "has"
    return f"{kind} {has} these outputs{known}: {shapes or 'none'}{_hint(seen)}"


def _hint(seen: Seen) -> str:
    """Returns what is probably wrong, for the outputs that no layout has."""
    own = [seen.values[name] for name in seen.outputs if name in seen.values]
    if len(own) == 1 and own[0].ndim >= 2 and own[0].shape[-1] == 4:
        return "; these are boxes without scores"
    if len(own) == 1 and own[0].ndim == 3:
        value = own[0]
        rows = value if value.shape[2] < value.shape[1] else value.transpose(0, 2, 1)
        if rows.shape[2] == FINAL and rows.size and _unit(rows[..., 4]):
            return "; class numbers of chosen boxes (x0 y0 x1 y1 score class) must be whole, from 0 on"
        if rows.shape[2] > 4 and rows.size and not _unit(rows[..., 4:]):
            low, high = float(rows[..., 4:].min()), float(rows[..., 4:].max())
            return f"; scores go from {low:.3g} to {high:.3g} where a layout would have sigmoids of 0..1"
    return "; `misfire export --help` lists the layouts"


def _unit(value: NDArray[np.float32]) -> bool:
    return bool(value.min() >= -1e-3 and value.max() <= 1.001)


def decode(reading: Reading, seen: Seen) -> NDArray[np.float32]:
    """Returns the dense answer of a reading on the pictures that were seen."""
    with torch.no_grad():
        tensors = [torch.from_numpy(np.ascontiguousarray(seen.values[name])) for name in reading.tensors]
        return np.asarray(reading.decoder.eval()(*tensors).numpy(), np.float32)
