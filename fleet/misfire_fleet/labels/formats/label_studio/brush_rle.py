"""Packs and unpacks Label Studio's brush masks: pixels of an RGBA picture, run-length encoded bit by bit.

A stream is 32 bits for the number of values, 5 for the bits of a value less one, and four times 4 for the
bits of a length less one. Then come runs: one bit (1 repeats one value, 0 lists values), two bits that choose
one of the four sizes of a length, the length less one, and the value or values. A pixel belongs to the mask
if its alpha is not 0. (`@thi.ng/rle-pack`, which Label Studio's editor uses.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 16 * 1024 * 1024
_CHANNELS = 4
_WORD = 8
_SIZES = (3, 4, 8, 16)
_HEADER = 32 + 5 + 4 * 4


class BrushError(ValueError):
    """Says why a stream is no brush mask of the expected size."""


def pack(mask: NDArray[np.bool_]) -> list[int]:
    """Returns a mask, [H,W] bool, as the bytes of a stream."""
    flat = np.ascontiguousarray(mask).ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    starts = np.concatenate(([0], ends[:-1]))
    bits = [f"{flat.size * _CHANNELS:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        bits += _runs((end - start) * _CHANNELS, 255 if flat[start] else 0)
    text = "".join(bits)
    count = -(-len(text) // 8)
    return list(int(text.ljust(8 * count, "0"), 2).to_bytes(count, "big"))


def _runs(length: int, value: int) -> list[str]:
    longest = 1 << _SIZES[-1]
    runs = []
    while length > 0:
        part = min(length, longest)
        number = next(i for i, size in enumerate(_SIZES) if part <= 1 << size)
        runs.append(f"1{number:02b}{part - 1:0{_SIZES[number]}b}{value:0{_WORD}b}")
        length -= part
    return runs


def unpack(stream: Sequence[Any], *, width: int, height: int) -> NDArray[np.bool_]:
    """Returns the mask of a stream, [H,W] bool.

    Args:
        stream: its bytes, as the numbers of a JSON list.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Raises:
        BrushError: the stream is damaged, too large, or of a picture of another size.
    """
    pixels = width * height
    if not 0 < pixels <= MAX_PIXELS:
        raise BrushError(f"a picture of {width} x {height} pixels")
    if not isinstance(stream, list) or len(stream) > MAX_BYTES:
        raise BrushError("its rle is no list of bytes, or too long")
    try:
        data = bytes(stream)
    except (TypeError, ValueError) as error:
        raise BrushError("its rle is no list of bytes") from error
    reader = _Bits(data)
    count, word = reader.take(32), reader.take(5) + 1
    sizes = [reader.take(4) + 1 for _ in range(4)]
    if count != pixels * _CHANNELS:
        raise BrushError(f"its rle has {count} values; {width} x {height} pixels have {pixels * _CHANNELS}")
    values = np.zeros(count, np.bool_)
    at = 0
    while at < count:
        repeats = reader.take(1)
        end = at + 1 + reader.take(sizes[reader.take(2)])
        if end > count:
            raise BrushError("its rle has more values than it states")
        values[at:end] = reader.take(word) != 0 if repeats else reader.words(end - at, word)
        at = end
    return values.reshape(height, width, _CHANNELS)[:, :, _CHANNELS - 1]


class _Bits:
    """Reads a stream bit by bit."""

    def __init__(self, data: bytes) -> None:
        self._size, self._at = 8 * len(data), 0
        # The zeros let every read take eight whole bytes.
        self._data = data + bytes(8)

    def take(self, bits: int) -> int:
        """Returns the next at most 32 bits. Raises BrushError at the end of the stream."""
        at = self._advance(bits)
        window = int.from_bytes(self._data[at >> 3 : (at >> 3) + 8], "big")
        return (window >> (64 - (at & 7) - bits)) & ((1 << bits) - 1)

    def words(self, count: int, bits: int) -> NDArray[np.bool_]:
        """Returns whether each of the next words, [count], is not 0."""
        at = self._advance(count * bits)
        first, last = at >> 3, (at + count * bits + 7) >> 3
        listed = np.unpackbits(np.frombuffer(self._data[first:last], np.uint8))
        listed = listed[at & 7 : (at & 7) + count * bits]
        return np.asarray(listed.reshape(count, bits).any(axis=1))

    def _advance(self, bits: int) -> int:
        at, self._at = self._at, self._at + bits
        if self._at > self._size:
            raise BrushError("its rle ends too early")
        return at
