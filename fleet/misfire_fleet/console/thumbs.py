"""Small pictures for the gallery: decoded in limited processes, a few at a time, and kept within a budget.

No upload is decoded in the console's own process. Who waits for a picture waits as a coroutine, so that
pictures which take long hold up no page; costly ones wait in a row of their own, and hold up no small ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from misfire_fleet.decoding.decoder import Decoder
from misfire_fleet.decoding.headers import IMAGES, Limits
from misfire_fleet.errors import CheckFailedError
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.errors import ImageError

WIDTHS = (160, 320, 640, 1024)
"""Few, so that one upload has few cache entries, whatever is asked for."""
_MAX_BYTES = 64 * 1024 * 1024
_AS_IT_IS_BYTES = 64 * 1024
_MAX_SECONDS = 5.0
"""Of processor time for a thumbnail; a collector allows more for a check."""
_SMALL_AT_ONCE, _COSTLY_AT_ONCE = 4, 1
_PATIENCE_S = 20.0
_PLACEHOLDER = (Path(__file__).parent / "static" / "unreadable.svg").read_bytes()

_Make = Callable[[StoredSample, bytes, int], "Picture | None"]


@dataclass(frozen=True)
class Picture:
    """Encoded bytes and their kind."""

    data: bytes
    media_type: str


UNREADABLE = Picture(_PLACEHOLDER, "image/svg+xml")
"""In the place of an upload that does not decode."""


class Thumbnails:
    """For one event loop; the least recently shown are forgotten first."""

    def __init__(self, store: Store, *, decoder: Decoder | None = None) -> None:
        self._store = store
        self._decoder = decoder or Decoder(workers=2, limits=Limits(max_seconds=_MAX_SECONDS))
        self._small = anyio.CapacityLimiter(_SMALL_AT_ONCE)
        self._costly = anyio.CapacityLimiter(_COSTLY_AT_ONCE)
        self._kept = _Kept(_MAX_BYTES)

    async def of(self, sample: StoredSample, width: int) -> Picture:
        """The upload at most as wide as the next of WIDTHS; UNREADABLE if it does not decode.

        Raises SampleGoneError, StoreUnavailableError, and CheckFailedError if this machine cannot decode now.
        """
        key = (sample.id, next((each for each in WIDTHS if each >= width), WIDTHS[-1]))
        with anyio.move_on_after(_PATIENCE_S):
            for places, make in ((self._small, self._make_small), (self._costly, self._make_costly)):
                if (picture := self._kept.get(key)) is not None:
                    return picture
                async with places:
                    if (picture := await anyio.to_thread.run_sync(self._made, make, sample, key)) is not None:
                        return picture
        raise CheckFailedError("too many pictures are waiting to be decoded; try again")

    def close(self) -> None:
        """Ends the decoding processes."""
        self._decoder.close()

    def _made(self, make: _Make, sample: StoredSample, key: tuple[str, int]) -> Picture | None:
        picture = self._kept.get(key)  # made meanwhile for somebody else?
        if picture is None:
            data = self._store.read_blob(sample.id)
            try:
                picture = make(sample, data, key[1])
            except ImageError:
                picture = UNREADABLE
        if picture is not None:
            self._kept.add(key, picture)
        return picture

    def _make_small(self, sample: StoredSample, data: bytes, width: int) -> Picture | None:
        """None if it is costly."""
        if sample.media_type in IMAGES and sample.width <= width and len(data) <= _AS_IT_IS_BYTES:
            checked = self._decoder.check_small(data, sample.media_type)
            return None if checked is None else Picture(data, sample.media_type)
        small = self._decoder.thumbnail_small(data, sample.media_type, width)
        return None if small is None else Picture(small, "image/jpeg")

    def _make_costly(self, sample: StoredSample, data: bytes, width: int) -> Picture:
        return Picture(self._decoder.thumbnail(data, sample.media_type, width), "image/jpeg")


class _Kept:
    """Thread-safe; holds at most `max_bytes`, and the newest in any case."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, int]) -> Picture | None:
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def add(self, key: tuple[str, int], picture: Picture) -> None:
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = picture
                self._bytes += len(picture.data)
            while self._bytes > self._max_bytes and len(self._pictures) > 1:
                self._bytes -= len(self._pictures.popitem(last=False)[1].data)
