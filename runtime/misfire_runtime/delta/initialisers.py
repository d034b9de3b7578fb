"""Finds initialisers in the bytes of an ONNX file and replaces their values in place.

model.onnx --tags and lengths of protobuf--> where the bytes of each tensor are --same length--> patched copy

A vehicle has no onnx package. It needs four kinds of fields of the format, and no tensor changes its size: so
nothing is parsed but tags and lengths, and everything else of the file stays as it is, byte for byte.
"""

from __future__ import annotations

import math
import mmap
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import BundleError

FLOAT = 1
"""TensorProto.FLOAT: the only type of a head's tensors."""
_GRAPH, _INITIALISER = 7, 5
"""Field numbers of ModelProto.graph and GraphProto.initializer (onnx.proto)."""
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
"""Field numbers of TensorProto."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""
_MAX_NAME_BYTES = 4096
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True)
class Place:
    """Says where a tensor's values are in a file: `size` bytes from `start` on."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


def patch(source: Path, target: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes a copy of a graph in which these initialisers have other values.

    Raises:
        BundleError: the file is no graph, or an initialiser is not there, or is of another shape or type.
        OSError: it cannot be read or written.
    """
    places = find(source, tensors)
    for name, values in tensors.items():
        require_alike(name, places[name], values)
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        for name, values in tensors.items():
            stream.seek(places[name].start)
            # ONNX stores little-endian bytes, whatever the machine.
            stream.write(values.astype("<f4").tobytes())


def read(source: Path, names: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """Returns the values of initialisers: {key: values} for {key: name in the graph}. Raises as `patch`."""
    places = find(source, dict.fromkeys(names.values()))
    found = {}
    with source.open("rb") as stream:
        for key, name in names.items():
            place = places[name]
            if place.kind != FLOAT:
                raise BundleError(f"{source}: initialiser {name!r} is not float32")
            if place.size != 4 * math.prod(place.shape):
                raise BundleError(f"{source}: initialiser {name!r} is not stored as raw bytes")
            stream.seek(place.start)
            values = np.frombuffer(stream.read(place.size), "<f4").reshape(place.shape)
            found[key] = values.astype(np.float32)
    return found


def require_alike(name: str, place: Place, values: NDArray[np.float32]) -> None:
    """Raises BundleError if values do not fit the initialiser that they replace."""
    if place.kind != FLOAT:
        raise BundleError(f"initialiser {name!r} of the graph is not float32, so it cannot be replaced")
    if place.shape != values.shape:
        raise BundleError(
            f"initialiser {name!r} has the shape {list(place.shape)} in the graph, not {list(values.shape)}"
        )
    if place.size != values.size * 4:
        raise BundleError(f"initialiser {name!r}: its values are not stored as raw bytes in the graph")


def find(file: Path, names: Mapping[str, object]) -> dict[str, Place]:
    """Returns where the named initialisers are. Raises BundleError if one is not there, or there twice."""
    found: dict[str, Place] = {}
    with file.open("rb") as stream, _mapped(stream.fileno(), file) as data:
        try:
            for place_name, place in _initialisers(data):
                if place_name not in names:
                    continue
                if place_name in found:
                    raise BundleError(f"{file}: there are two initialisers {place_name!r}")
                found[place_name] = place
        except (IndexError, ValueError) as error:
            raise BundleError(f"{file}: not an ONNX graph that can be read: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise BundleError(f"{file}: the graph has no initialiser {missing[0]!r}")
    return found


def _mapped(handle: int, file: Path) -> mmap.mmap:
    try:
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise BundleError(f"{file}: it is empty") from error


def _initialisers(data: mmap.mmap) -> Iterator[tuple[str, Place]]:
    graphs = [(start, end) for number, start, end in _fields(data, 0, len(data)) if number == _GRAPH]
    # Protobuf joins repeated graphs to one, which could hide a second tensor of the same name.
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    for number, start, end in _fields(data, *graphs[0]):
        if number == _INITIALISER:
            yield _tensor(data, start, end)


def _tensor(data: mmap.mmap, start: int, end: int) -> tuple[str, Place]:
    name, kind, shape, raw = "", 0, [], (start, 0)
    for number, first, last in _fields(data, start, end):
        if number == _NAME:
            if last - first > _MAX_NAME_BYTES:
                raise ValueError("a tensor's name is too long")
            name = data[first:last].decode("utf-8")
        elif number == _TYPE:
            kind = _varint(data, first, last)[0]
        elif number == _DIMS:
            # One number, or several in a row: both are allowed.
            place = first
            while place < last:
                size, place = _varint(data, place, last)
                shape.append(size)
        elif number == _RAW:
            raw = (first, last - first)
    return name, Place(tuple(shape), kind, *raw)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (number, start, end) of each field's content between two places."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, place = _varint(data, place, end)
            last = place + size
        elif wire == _VARINT:
            last = _varint(data, place, end)[1]
        elif wire in (_FIXED64, _FIXED32):
            last = place + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if last > end:
            raise ValueError("a field ends behind its message")
        yield number, place, last
        place = last


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """Returns a variable-length integer and the place behind it."""
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if place + count >= end:
            raise ValueError("it ends within a number")
        byte = data[place + count]
        value |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            return value, place + count + 1
    raise ValueError("a number is too long")
