"""Holds sequences of images that become network input fast.

    ImageArray      images of one size in one array; grey ones are stored grey and replicated on access
    DecodedImages   images of any size, decoded on access; what the network sees of them is cached
    ImageSubset     some images of another sequence, in any order, without a copy

`planes(images, indices, contract)` returns uint8 [n,C,H,W], equal bit for bit to what
`misfire_runtime.preprocess.to_tensor` gives a vehicle for each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract, to_tensor

Indices = Sequence[int] | NDArray[np.integer]
# Bounds the memory of cached images; a larger set is decoded anew in every epoch.
MAX_CACHE_BYTES = 512 * 1024 * 1024


class ImageArray(Sequence[Image]):
    """Holds images of one size. data: uint8 [N,H,W] (grey), [N,H,W,3] (RGB) or [N,H,W,4]."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        if data.dtype != np.uint8 or not (data.ndim == 3 or (data.ndim == 4 and data.shape[3] in (3, 4))):
            raise ValueError(f"expected uint8 [N,H,W], [N,H,W,3] or [N,H,W,4], got {data.dtype} {data.shape}")
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        """Returns an RGB image [H,W,3]; a slice is a view."""
        if isinstance(index, slice):
            return ImageArray(self.data[index])
        image = self.data[index]
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)

    def planes(self, indices: NDArray[np.int64], contract: InputContract) -> NDArray[np.uint8]:
        """Returns uint8 [n,C,H,W]; without a loop if size and colour need no conversion."""
        grey = self.data.ndim == 3
        fits = self.data.shape[1:3] == (contract.height, contract.width)
        # OpenCV's grey of three equal channels is that channel exactly: its integer weights sum to one.
        if fits and grey and contract.channels != 4:
            chosen = self.data[indices][:, None]
            return np.repeat(chosen, 3, axis=1) if contract.channels == 3 else chosen
        if fits and not grey and contract.channels == self.data.shape[3]:
            order = slice(None, None, -1) if contract.color == "bgr" else slice(None)
            return np.ascontiguousarray(self.data[indices][..., order].transpose(0, 3, 1, 2))
        return _one_by_one(self, indices, contract)


class DecodedImages(Sequence[Image]):
    """Decodes images on access: `decode(i)` for i in 0..count-1, which must always return the same image.

    sizes: int64 [count,2], width and height of each image, if they are known without decoding it.

    Results are cached for the next epoch if all of them fit in `max_cache_bytes`: the images themselves if
    all have one `shape`, else what the network sees of them under the last contract used.
    """

    def __init__(
        self,
        decode: Callable[[int], Image],
        *,
        count: int,
        shape: tuple[int, int, int] | None = None,
        sizes: NDArray[np.int64] | None = None,
        max_cache_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self._decode = decode
        self.sizes = sizes
        self._count = count
        self._max_cache_bytes = max_cache_bytes
        self._images = self._room(shape) if shape is not None else None
        self._planes: tuple[InputContract, _Kept | None] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        """Returns an RGB image [H,W,3], decoded now or before; do not write into it."""
        if isinstance(index, slice):
            return ImageSubset(self, np.arange(self._count)[index])
        place = range(self._count)[index]
        if self._images is None:
            return self._decode(place)
        self._images.fill(np.array([place]), self._decode)
        return np.asarray(self._images.values[place])

    def planes(self, indices: NDArray[np.int64], contract: InputContract) -> NDArray[np.uint8]:
        """Returns uint8 [n,C,H,W] and decodes only what is not cached."""
        if self._images is not None:
            self._images.fill(indices, self._decode)
            return ImageArray(self._images.values).planes(indices, contract)
        key = _pixels_of(contract)
        # One contract is cached at a time: a run uses one, and two would double the memory.
        if self._planes is None or self._planes[0] != key:
            self._planes = (key, self._room((key.channels, key.height, key.width)))
        kept = self._planes[1]
        if kept is None:
            return _one_by_one(self, indices, contract)
        kept.fill(indices, lambda place: to_tensor(self._decode(place), key)[0])
        return np.asarray(kept.values[indices])

    def _room(self, shape: tuple[int, int, int]) -> _Kept | None:
        return _Kept(self._count, shape) if self._count * math.prod(shape) <= self._max_cache_bytes else None


class _Kept:
    """Caches values, uint8 [N,...]. The system takes memory for zeros only as rows are written."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.values: NDArray[np.uint8] = np.zeros((count, *shape), np.uint8)
        self._filled = np.zeros(count, bool)

    def fill(self, indices: NDArray[np.int64], make: Callable[[int], NDArray[Any]]) -> None:
        for place in np.unique(indices[~self._filled[indices]]):
            self.values[place] = make(int(place))
            self._filled[place] = True


class ImageSubset(Sequence[Image]):
    """Presents `base[indices]` without a copy; a subset of a subset refers to the original."""

    def __init__(self, base: Sequence[Image], indices: Indices) -> None:
        chosen = np.asarray(indices, np.int64)
        self.base: Sequence[Image] = base.base if isinstance(base, ImageSubset) else base
        self.indices: NDArray[np.int64] = base.indices[chosen] if isinstance(base, ImageSubset) else chosen

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        """Returns an RGB image [H,W,3]."""
        if isinstance(index, slice):
            return ImageSubset(self.base, self.indices[index])
        return self.base[int(self.indices[index])]

    def planes(self, indices: NDArray[np.int64], contract: InputContract) -> NDArray[np.uint8]:
        """Returns uint8 [n,C,H,W] from the base."""
        return planes(self.base, self.indices[indices], contract)


def planes(images: Sequence[Image], indices: Indices, contract: InputContract) -> NDArray[np.uint8]:
    """Returns what the network sees of images[indices] before normalisation, uint8 [n,C,H,W]."""
    chosen = np.asarray(indices, np.int64)
    if isinstance(images, ImageArray | DecodedImages | ImageSubset):
        return images.planes(chosen, contract)
    return _one_by_one(images, chosen, contract)


def sizes_of(images: Sequence[Image]) -> NDArray[np.int64]:
    """Returns width and height of each image, int64 [n,2]; decodes only images whose size is not known."""
    if isinstance(images, ImageSubset):
        known = images.base
        if isinstance(known, DecodedImages) and known.sizes is not None:
            return np.asarray(known.sizes[images.indices])
    if isinstance(images, DecodedImages) and images.sizes is not None:
        return images.sizes
    return np.array([image.shape[1::-1] for image in images], np.int64).reshape(-1, 2)


def _pixels_of(contract: InputContract) -> InputContract:
    """Returns the contract without what acts after the pixels: dtype and normalisation."""
    return contract.model_copy(update={"dtype": "uint8", "mean": (0.0,), "std": (1.0,), "name": "image"})


def _one_by_one(
    images: Sequence[Image], indices: NDArray[np.int64], contract: InputContract
) -> NDArray[np.uint8]:
    raw = _pixels_of(contract)
    result = np.empty((len(indices), contract.channels, contract.height, contract.width), np.uint8)
    for row, index in enumerate(indices):
        result[row] = to_tensor(images[int(index)], raw)[0]
    return result
