"""Makes thumbnails for the gallery, in processes with limits, and caches them within a byte budget.

No upload is decoded in the console's own process. Requests wait as coroutines, not as threads, so slow
pictures do not delay pages. Costly pictures have their own queue, so they do not delay small ones.
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
"""Widths in pixels. There are few, so that requests for many widths cannot fill the cache with one upload."""
_MAX_BYTES = 64 * 1024 * 1024
"""Bytes of the cache: some thousand thumbnails at the 10-20 KiB of a 320 pixel JPEG."""
_AS_IT_IS_BYTES = 64 * 1024
"""A picture of fitting width and at most this size is served unchanged: encoding it again gains nothing."""
_MAX_SECONDS = 5.0
"""Processor time for one thumbnail; a collector allows more for a check."""
_SMALL_AT_ONCE, _COSTLY_AT_ONCE = 4, 1
_PATIENCE_S = 20.0
"""A request that waits longer gets status 503 instead of an open connection."""
_PLACEHOLDER = (Path(__file__).parent / "static" / "unreadable.svg").read_bytes()

_Make = Callable[[StoredSample, bytes, int], "Picture | None"]


@dataclass(frozen=True)
class Picture:
    """Holds an encoded image and its media type."""

    data: bytes
    media_type: str


UNREADABLE = Picture(_PLACEHOLDER, "image/svg+xml")
"""Placeholder for an upload that does not decode."""


class Thumbnails:
    """Makes and caches thumbnails, for one event loop; the cache drops the least recently used."""

    def __init__(self, store: Store, *, decoder: Decoder | None = None) -> None:
        self._store = store
        # Two: one for small pictures, which must not wait for a costly one.
        self._decoder = decoder or Decoder(workers=2, limits=Limits(max_seconds=_MAX_SECONDS))
        self._small = anyio.CapacityLimiter(_SMALL_AT_ONCE)
        self._costly = anyio.CapacityLimiter(_COSTLY_AT_ONCE)
        self._kept = _Kept(_MAX_BYTES)

    async def of(self, sample: StoredSample, width: int) -> Picture:
        """Returns a thumbnail of an upload.

        Args:
            sample: the row of the upload.
            width: pixels; rounded up to the next of WIDTHS.

        Returns:
            A picture at most that wide; UNREADABLE if the upload does not decode.

        Raises:
            SampleGoneError: the blob is not in the store.
            StoreUnavailableError: the blob store does not answer.
            CheckFailedError: this machine cannot decode the upload now.
        """
        key = (sample.id, next((each for each in WIDTHS if each >= width), WIDTHS[-1]))
        with anyio.move_on_after(_PATIENCE_S):
            # The small queue first: only the decoder can say, from the header, whether a picture is costly.
            for places, make in ((self._small, self._make_small), (self._costly, self._make_costly)):
                if (picture := self._kept.get(key)) is not None:
                    return picture
                # The place is taken before the blob is read, so waiting requests hold no upload in memory.
                async with places:
                    if (picture := await anyio.to_thread.run_sync(self._made, make, sample, key)) is not None:
                        return picture
        raise CheckFailedError("too many pictures are waiting to be decoded; try again")

    def close(self) -> None:
        """Stops the decoding processes."""
        self._decoder.close()

    def _made(self, make: _Make, sample: StoredSample, key: tuple[str, int]) -> Picture | None:
        picture = self._kept.get(key)  # another request may have made it while this one waited
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
        """Returns None if the picture is too costly for the small queue."""
        if sample.media_type in IMAGES and sample.width <= width and len(data) <= _AS_IT_IS_BYTES:
            checked = self._decoder.check_small(data, sample.media_type)
            return None if checked is None else Picture(data, sample.media_type)
        small = self._decoder.thumbnail_small(data, sample.media_type, width)
        return None if small is None else Picture(small, "image/jpeg")

    def _make_costly(self, sample: StoredSample, data: bytes, width: int) -> Picture:
        return Picture(self._decoder.thumbnail(data, sample.media_type, width), "image/jpeg")


class _Kept:
    """Caches pictures up to `max_bytes`, and always the newest one. Thread-safe."""

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
