"""Keeps the embeddings of uploads as unit vectors in files of float16 beside the store, mapped into memory.

embedding --put--> slot in DIMENSIONS.f16, and (seq, id) in DIMENSIONS.rows; dot products read slots in chunks

The files are a cache that grows with the store: what a row of `.rows` does not name by seq and id is written
again. One process writes them; a second one keeps its own vectors in memory.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
log = logging.getLogger(__name__)
_ROW = np.dtype([("seq", "<i8"), ("id", "S64")])
_FIRST = 4096
_CHUNK = 65_536
"""Vectors that are multiplied at once: 64 MiB of float32 at 256 dimensions."""
MAX_DIMENSIONS = 4096


class Vectors:
    """Holds the vectors of one store. Not thread-safe for writing: its owner has a lock.

    Args:
        folder: where the files are; None keeps all in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._lock: IO[bytes] | None = None
        self._folder = None if folder is None else self._claimed(folder)
        self._files: dict[int, _File] = {}

    def put(self, seqs: Sequence[int], ids: Sequence[str], raw: Sequence[bytes]) -> tuple[Array, Array]:
        """Stores embeddings of samples.

        Args:
            seqs: of the samples.
            ids: of the samples.
            raw: little-endian float16 of each embedding.

        Returns:
            (dimensions, slot) of each; (0, -1) if it is no vector that has a direction.
        """
        dimensions, slots = np.zeros(len(seqs), np.int32), np.full(len(seqs), -1, np.int64)
        sizes = np.array([len(each) // 2 if len(each) % 2 == 0 else 0 for each in raw], np.int64)
        for size in np.unique(sizes[(sizes > 0) & (sizes <= MAX_DIMENSIONS)]):
            of = np.flatnonzero(sizes == size)
            vectors = np.stack([np.frombuffer(raw[each], "<f2") for each in of]).astype(np.float32)
            with np.errstate(all="ignore"):
                lengths = np.linalg.norm(vectors, axis=1)
                sound = np.isfinite(lengths) & (lengths > 0)
            of, vectors = of[sound], vectors[sound] / lengths[sound, None]
            if not len(of):
                continue
            file = self._file(int(size))
            dimensions[of] = size
            slots[of] = file.put([seqs[each] for each in of], [ids[each] for each in of], vectors)
        return dimensions, slots

    def read(self, dimensions: int, slots: Array) -> NDArray[np.float32]:
        """Returns the vectors in these slots, [N, D] float32."""
        return np.asarray(self._file(dimensions).vectors[slots], np.float32)

    def similarities(self, dimensions: int, slots: Array, vector: Array) -> NDArray[np.float32]:
        """Returns the cosine similarity of a unit vector to those in these slots, [N]."""
        vectors = self._file(dimensions).vectors
        found = np.empty(len(slots), np.float32)
        # Neighbouring slots are read as they lie; a list of places would copy each row by itself.
        dense = len(slots) > 0 and int(slots.max()) - int(slots.min()) < 2 * len(slots)
        if dense:
            first, end = int(slots.min()), int(slots.max()) + 1
            every = np.empty(end - first, np.float32)
            for start in range(first, end, _CHUNK):
                part = np.asarray(vectors[start : min(end, start + _CHUNK)], np.float32)
                every[start - first : start - first + len(part)] = part @ vector
            return np.asarray(every[slots - first], np.float32)
        for start in range(0, len(slots), _CHUNK):
            part = np.asarray(vectors[slots[start : start + _CHUNK]], np.float32)
            found[start : start + len(part)] = part @ vector
        return found

    def forget(self, dimensions: Array, slots: Array) -> None:
        """Overwrites the vectors of deleted samples."""
        for size in np.unique(dimensions[slots >= 0]):
            self._file(int(size)).forget(slots[(dimensions == size) & (slots >= 0)])

    def keep(self, seqs: Iterable[int]) -> int:
        """Overwrites the vectors of rows that the store does not have any more; returns their number."""
        kept = set(seqs)
        return sum(file.keep(kept) for file in self._files.values())

    def close(self) -> None:
        """Writes what is in memory to the files, and lets another process write them."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claimed(self, folder: Path) -> Path | None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise
        except OSError as error:
            log.warning("vectors_in_memory", extra={"fields": {"folder": str(folder), "why": str(error)}})
            return None
        self._lock = lock
        return folder

    def _file(self, dimensions: int) -> _File:
        if dimensions not in self._files:
            self._files[dimensions] = _File(self._folder, dimensions)
        return self._files[dimensions]


class _File:
    """Holds the vectors of one size and the rows that they belong to."""

    def __init__(self, folder: Path | None, dimensions: int) -> None:
        self._paths = None if folder is None else [folder / f"{dimensions}.{end}" for end in ("f16", "rows")]
        self._dimensions = dimensions
        self.vectors: Array = np.zeros((0, dimensions), "<f2")
        self._rows: Array = np.zeros(0, _ROW)
        self._known: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        if self._paths is not None and all(path.is_file() for path in self._paths):
            self._open()

    def put(self, seqs: Sequence[int], ids: Sequence[str], vectors: NDArray[np.float32]) -> Array:
        slots = np.empty(len(seqs), np.int64)
        fresh = []
        for place, (seq, name) in enumerate(zip(seqs, ids, strict=True)):
            slot = self._known.get(seq, -1)
            # After a rebuild of the store, another sample may have this seq. A power cut may leave zeros.
            same = slot >= 0 and self._rows["id"][slot] == name.encode() and bool(self.vectors[slot].any())
            slots[place] = slot if same else -1
            if not same:
                fresh.append(place)
        if fresh:
            taken = self._slots(len(fresh))
            slots[fresh] = taken
            self.vectors[taken] = vectors[fresh]
            for slot, place in zip(taken, fresh, strict=True):
                self._rows[slot] = (seqs[place], ids[place].encode("ascii", "replace"))
                self._known[seqs[place]] = int(slot)
        return slots

    def forget(self, slots: Array) -> None:
        self.vectors[slots] = 0
        for seq in self._rows["seq"][slots]:
            self._known.pop(int(seq), None)
        self._rows[slots] = (0, b"")
        self._free += [int(slot) for slot in slots]

    def keep(self, seqs: set[int]) -> int:
        gone = [slot for seq, slot in self._known.items() if seq not in seqs]
        self.forget(np.array(gone, np.int64))
        return len(gone)

    def close(self) -> None:
        for array in (self.vectors, self._rows):
            if isinstance(array, np.memmap):
                with suppress(OSError, ValueError):
                    array.flush()

    def _slots(self, count: int) -> Array:
        free, self._free = self._free[:count], self._free[count:]
        more = count - len(free)
        if self._used + more > len(self._rows):
            self._grow(max(_FIRST, 2 * len(self._rows), self._used + more))
        taken = np.array([*free, *range(self._used, self._used + more)], np.int64)
        self._used += more
        return taken

    def _grow(self, size: int) -> None:
        if self._paths is None:
            vectors, rows = np.zeros((size, self._dimensions), "<f2"), np.zeros(size, _ROW)
            vectors[: len(self.vectors)], rows[: len(self._rows)] = self.vectors, self._rows
            self.vectors, self._rows = vectors, rows
            return
        for path, width in zip(self._paths, (2 * self._dimensions, _ROW.itemsize), strict=True):
            with path.open("ab") as stream:
                stream.truncate(size * width)
        self._map(size)

    def _map(self, size: int) -> None:
        assert self._paths is not None
        self.vectors = np.memmap(self._paths[0], "<f2", "r+", shape=(size, self._dimensions))
        self._rows = np.memmap(self._paths[1], _ROW, "r+", shape=(size,))

    def _open(self) -> None:
        assert self._paths is not None
        widths = (2 * self._dimensions, _ROW.itemsize)
        size = min(path.stat().st_size // width for path, width in zip(self._paths, widths, strict=True))
        if not size:
            return
        self._map(size)
        seqs = np.asarray(self._rows["seq"])
        used = np.flatnonzero(seqs > 0)
        self._used = int(used[-1]) + 1 if len(used) else 0
        self._known = {int(seqs[slot]): int(slot) for slot in used}
        self._free = [int(slot) for slot in np.flatnonzero(seqs[: self._used] <= 0)]
