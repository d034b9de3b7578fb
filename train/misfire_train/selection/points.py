"""Computes squared distances between points without a second copy of the pool.

EuclideanPoints      embeddings [N,D]: an array, or a memory map read in blocks
GradientPoints       BADGE's gradient embeddings [N,K*D] as two factors, never multiplied out

One distance column is one matrix-vector product: |x|^2 + |c|^2 - 2 x.c, in the pool's own precision (float16
and integers in float32). Rounding is about 1e-7 of |x|^2, so nearly equal points may get distance 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import SelectionError

Floats = NDArray[np.float32]
BLOCK_BYTES = 32 * 1024 * 1024
"""Bytes of a memory map, or of a pool in another precision, that are processed at a time."""
_TILE_ROWS = 4096
"""Rows whose products with a few centres stay in the processor's cache until they are stored."""


class Points(Protocol):
    """Is what greedy selection needs of a pool."""

    squared_norms: Floats

    def __len__(self) -> int: ...

    def squared_distances_to(self, index: int, out: Floats) -> None:
        """Writes the squared distances of all points [N] to point `index`; never below zero."""
        ...


class EuclideanPoints:
    """Holds embeddings [N,D].

    Raises SelectionError on a wrong shape, no rows, or values that are not finite.
    """

    def __init__(self, embeddings: ArrayLike, *, ids: Sequence[str] | None = None) -> None:
        self.values = as_matrix(embeddings, what="embeddings")
        self.squared_norms: Floats = np.empty(len(self.values), np.float32)
        for rows, block in blocks(self.values):
            np.einsum("nd,nd->n", block, block, out=self.squared_norms[rows], casting="same_kind")
        check_finite(self.squared_norms, what="embedding", ids=ids)

    def __len__(self) -> int:
        return len(self.values)

    def squared_distances_to(self, index: int, out: Floats) -> None:
        """Writes squared Euclidean distances to pool point `index` into out [N]."""
        self.squared_distances_to_vector(working_precision(self.values[index]), out)

    def squared_distances_to_many(self, indices: NDArray[np.intp]) -> Floats:
        """Returns squared Euclidean distances [M,N] to several pool points in one pass over the pool."""
        centres = working_precision(np.asarray(self.values[indices]))
        # The factor is applied to the few centres instead of to all products.
        centres = np.ascontiguousarray(-2 * centres.T)
        columns = np.empty((len(indices), len(self)), np.float32)
        for rows, block in blocks(self.values):
            for start in range(0, len(block), _TILE_ROWS):
                tile = block[start : start + _TILE_ROWS]
                columns[:, rows.start + start : rows.start + start + len(tile)] = (tile @ centres).T
        columns += self.squared_norms
        columns += self.squared_norms[indices, None]
        return np.maximum(columns, np.float32(0), out=columns)

    def squared_distances_to_vector(self, vector: NDArray[Any], out: Floats) -> None:
        """Writes squared Euclidean distances to any point [D] into out [N]."""
        for rows, block in blocks(self.values):
            if block.dtype == np.float32:
                np.dot(block, vector, out=out[rows])
            else:
                out[rows] = block @ vector
        out *= np.float32(-2)
        out += self.squared_norms
        out += np.float32(vector @ vector)
        np.maximum(out, np.float32(0), out=out)


class GradientPoints:
    """Holds BADGE's gradients (Ash et al. 2020) g_i = (p_i - onehot(argmax p_i)) x phi_i as two factors.

    |g_i - g_j|^2 = |r_i|^2 |phi_i|^2 + |r_j|^2 |phi_j|^2 - 2 (r_i.r_j)(phi_i.phi_j), so memory is N(K+D).

    Args:
        embeddings: [N,D], the inputs phi of the last layer.
        probabilities: [N,K], rows that sum to 1.
        ids: [N] names for messages.

    Raises:
        SelectionError: there are fewer than two classes (every gradient is zero), or a row does not sum to 1.
    """

    def __init__(
        self, embeddings: ArrayLike, *, probabilities: ArrayLike, ids: Sequence[str] | None = None
    ) -> None:
        self._features = EuclideanPoints(embeddings, ids=ids)
        given = as_matrix(probabilities, what="probabilities")
        if len(given) != len(self._features):
            raise SelectionError(f"{len(given)} rows of probabilities for {len(self._features)} embeddings")
        if given.shape[1] < 2:
            raise SelectionError(
                "BADGE needs at least two classes: with one, every gradient embedding is zero"
            )
        residuals = given.astype(np.float32)
        totals = residuals.sum(axis=1)
        check_finite(totals, what="probability", ids=ids)
        # Tolerates the rounding of float16.
        if residuals.min() < -1e-4 or np.abs(totals - 1).max() > 1e-2:
            raise SelectionError(
                "probabilities must be >= 0 and sum to 1 in every row (logits need a softmax)"
            )
        # BADGE takes the prediction for the label.
        residuals[np.arange(len(residuals)), residuals.argmax(axis=1)] -= 1
        self._residuals = residuals
        self.squared_norms: Floats = (
            np.einsum("nk,nk->n", residuals, residuals) * self._features.squared_norms
        )

    def __len__(self) -> int:
        return len(self._features)

    def squared_distances_to(self, index: int, out: Floats) -> None:
        """Writes squared distances of all gradient embeddings to that of point `index` into out [N]."""
        residual = self._residuals[index]
        feature = working_precision(self._features.values[index])
        for rows, block in blocks(self._features.values):
            np.multiply(block @ feature, self._residuals[rows] @ residual, out=out[rows], casting="same_kind")
        out *= np.float32(-2)
        out += self.squared_norms
        out += self.squared_norms[index]
        np.maximum(out, np.float32(0), out=out)


def as_matrix(values: ArrayLike, *, what: str) -> NDArray[Any]:
    """Returns numbers [N,D], not copied if they are an array already. Raises SelectionError otherwise."""
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.ndim != 2 or not (
        np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)
    ):
        raise SelectionError(f"{what} must be a table of numbers [N,D], got {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise SelectionError(
            f"{what} are empty ({array.shape[0]} rows of {array.shape[1]}): nothing to choose from"
        )
    return array


def blocks(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yields (rows, values as float32 or float64); arrays in working precision come whole and uncopied."""
    in_memory = not isinstance(values, np.memmap) and working_precision(values) is values
    step = len(values) if in_memory else max(1, BLOCK_BYTES // (4 * values.shape[1]))
    for start in range(0, len(values), step):
        rows = slice(start, min(start + step, len(values)))
        yield rows, working_precision(values[rows])


def working_precision(values: NDArray[Any]) -> NDArray[Any]:
    """Returns float32 and float64 as they are, everything else as float32."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def check_finite(values: NDArray[Any], *, what: str, ids: Sequence[str] | None) -> None:
    """Raises SelectionError that names the first rows that are NaN, infinite or too large to square."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        names = ", ".join(repr(ids[i]) if ids is not None else f"row {i}" for i in bad[:5])
        raise SelectionError(f"{what} is NaN, infinite or too large for {bad.size} of {len(values)}: {names}")
