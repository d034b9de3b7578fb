"""Makes thumbnails of uploads and their boxes, in processes with limits; caches them in memory and on disk.

No upload is decoded in the console's own process. Both caches have a budget of bytes, and drop what was
used longest ago; what is of a deleted sample is removed from the disk. Requests wait as coroutines, not as
threads, so slow pictures do not delay pages. Costly pictures have their own queue, so they do not delay
small ones.
"""

from __future__ import annotations

import logging
import textwrap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path

import anyio
import anyio.to_thread

from misfire_fleet.console.overlay import answer_of
from misfire_fleet.decoding.decoder import Decoder
from misfire_fleet.decoding.headers import IMAGES, Limits
from misfire_fleet.decoding.wire import WHOLE, Part
from misfire_fleet.errors import CheckFailedError, SampleGoneError
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.errors import ImageError

log = logging.getLogger(__name__)

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

_REASON = 38
"""Characters of a line in the placeholder."""
_DISK_BYTES = 1024 * 1024 * 1024
"""Bytes of the cache on disk: some 70,000 thumbnails of 320 pixels."""
_MARGIN = 0.15
"""Of a box's sides, shown around it."""
_MAX_BOXES = 64

_Key = tuple[str, int, int]
"""Sample, width, and the number of a box; 0 is the whole picture."""
_Make = Callable[[StoredSample, bytes, int, Part], "Picture | None"]


@dataclass(frozen=True)
class Picture:
    """Holds an encoded image and its media type. `made`: it was encoded by a decoder's process."""

    data: bytes
    media_type: str
    made: bool = False


UNREADABLE = Picture(_PLACEHOLDER, "image/svg+xml")
"""Placeholder for an upload that does not decode, without a reason."""


def placeholder(reason: str) -> Picture:
    """Returns the placeholder with the reason why an upload does not decode."""
    words = "".join(each if each.isprintable() else " " for each in reason)
    lines = textwrap.wrap(words, _REASON, max_lines=3, placeholder=" …", break_long_words=True)
    spans = "".join(
        f'<tspan x="160" dy="{20 if line else 0}">{escape(text)}</tspan>'
        for line, text in enumerate(lines, start=1)
    )
    svg = _PLACEHOLDER.decode().replace("does not decode</text>", f"does not decode{spans}</text>")
    return Picture(svg.encode(), "image/svg+xml")


class Thumbnails:
    """Makes and caches thumbnails, for one event loop; the cache drops the least recently used."""

    def __init__(self, store: Store, *, decoder: Decoder | None = None, folder: Path | None = None) -> None:
        self._store = store
        self._disk = None if folder is None else DiskCache(folder, max_bytes=_DISK_BYTES)
        # Two: one for small pictures, which must not wait for a costly one.
        self.decoder = decoder or Decoder(workers=2, limits=Limits(max_seconds=_MAX_SECONDS))
        self._small = anyio.CapacityLimiter(_SMALL_AT_ONCE)
        self._costly = anyio.CapacityLimiter(_COSTLY_AT_ONCE)
        self._kept = _Kept(_MAX_BYTES)

    async def of(self, sample: StoredSample, width: int, *, box: int = 0) -> Picture:
        """Returns a thumbnail of an upload.

        Args:
            sample: the row of the upload.
            width: pixels; rounded up to the next of WIDTHS.
            box: number of a box of the answer, to be shown alone; 0 shows the whole picture.

        Returns:
            A picture at most that wide; a placeholder with the reason if the upload does not decode.

        Raises:
            SampleGoneError: the blob is not in the store.
            StoreUnavailableError: the blob store does not answer.
            CheckFailedError: this machine cannot decode the upload now.
        """
        part = WHOLE if box == 0 else part_of(sample, box)
        key = (sample.id, next((each for each in WIDTHS if each >= width), WIDTHS[-1]), box)
        with anyio.move_on_after(_PATIENCE_S):
            # The small queue first: only the decoder can say, from the header, whether a picture is costly.
            for places, make in ((self._small, self._make_small), (self._costly, self._make_costly)):
                if (picture := self._kept.get(key)) is not None:
                    return picture
                # The place is taken before the blob is read, so waiting requests hold no upload in memory.
                async with places:
                    picture = await anyio.to_thread.run_sync(self._made, make, sample, key, part)
                    if picture is not None:
                        return picture
        raise CheckFailedError("too many pictures are waiting to be decoded; try again")

    def close(self) -> None:
        """Stops the decoding processes."""
        self.decoder.close()

    def forget_deleted(self) -> None:
        """Removes what is of deleted samples from the disk."""
        if self._disk is not None:
            self._disk.keep(self._store.known)

    def _made(self, make: _Make, sample: StoredSample, key: _Key, part: Part) -> Picture | None:
        picture = self._kept.get(key)  # another request may have made it while this one waited
        if picture is None and self._disk is not None:
            picture = self._disk.get(key)
        if picture is None:
            data = self._store.read_blob(sample.id)
            try:
                picture = make(sample, data, key[1], part)
            except ImageError as error:
                picture = placeholder(str(error))
            # Only what was encoded here: an upload that is shown as it is lies beside it already.
            if self._disk is not None and picture is not None and picture.made:
                self._disk.add(key, picture)
        if picture is not None:
            self._kept.add(key, picture)
        return picture

    def _make_small(self, sample: StoredSample, data: bytes, width: int, part: Part) -> Picture | None:
        """Returns None if the picture is too costly for the small queue."""
        whole = part == WHOLE
        if whole and sample.media_type in IMAGES and sample.width <= width and len(data) <= _AS_IT_IS_BYTES:
            checked = self.decoder.check_small(data, sample.media_type)
            return None if checked is None else Picture(data, sample.media_type)
        cut = {} if whole else {"part": part}
        small = self.decoder.thumbnail_small(data, sample.media_type, width, **cut)
        return None if small is None else Picture(small, "image/jpeg", made=True)

    def _make_costly(self, sample: StoredSample, data: bytes, width: int, part: Part) -> Picture:
        cut = {} if part == WHOLE else {"part": part}
        return Picture(self.decoder.thumbnail(data, sample.media_type, width, **cut), "image/jpeg", made=True)


def part_of(sample: StoredSample, number: int) -> Part:
    """Returns where a box of a sample's answer lies, with a margin. Raises SampleGoneError if it has none."""
    answer = answer_of(sample)
    box = next((each for each in answer.boxes if each.number == number), None)
    if box is None:
        raise SampleGoneError(f"sample {sample.id[:16]}: its answer has no box {number}")
    # As much on all sides, so that a narrow box is seen in what is around it.
    margin = _MARGIN * max(box.width, box.height)
    x0, y0 = (box.x - margin) / answer.width, (box.y - margin) / answer.height
    x1 = (box.x + box.width + margin) / answer.width
    y1 = (box.y + box.height + margin) / answer.height
    part = tuple(min(1.0, max(0.0, side)) for side in (x0, y0, x1, y1))
    if part[2] <= part[0] or part[3] <= part[1]:
        raise SampleGoneError(f"sample {sample.id[:16]}: box {number} lies outside of the picture")
    return part[0], part[1], part[2], part[3]


class DiskCache:
    """Keeps JPEG thumbnails in a folder, up to `max_bytes`. Thread-safe.

    A file is whole or not there: it is written under another name first. It need not survive a power cut.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] | None = None
        self._bytes = 0

    def get(self, key: _Key) -> Picture | None:
        """Returns a cached picture, None if it is not there."""
        name = _file_of(key)
        with self._lock:
            known = self._known()
            if name not in known:
                return None
            known.move_to_end(name)
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        # A power cut may leave a file that is too short.
        return Picture(data, "image/jpeg", made=True) if data[-2:] == b"\xff\xd9" else None

    def add(self, key: _Key, picture: Picture) -> None:
        """Caches a picture; a full disk is no reason to fail."""
        name = _file_of(key)
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{threading.get_ident()}.tmp")
            partial.write_bytes(picture.data)
            partial.replace(path)
        except OSError as error:
            log.warning("thumbnail_not_kept", extra={"fields": {"why": str(error)}})
            return
        with self._lock:
            known = self._known()
            self._bytes += len(picture.data) - known.pop(name, 0)
            known[name] = len(picture.data)
            old = []
            while self._bytes > self._max_bytes and len(known) > 1:
                oldest, size = known.popitem(last=False)
                self._bytes -= size
                old.append(oldest)
        for each in old:
            self._remove(each)

    def keep(self, known: Callable[[Sequence[str]], set[str]]) -> None:
        """Removes what is of other samples than those that `known` returns of a list of ids."""
        with self._lock:
            names = list(self._known())
        ids = sorted({_id_of(name) for name in names})
        stored: set[str] = set()
        for start in range(0, len(ids), 500):
            stored |= known(ids[start : start + 500])
        gone = [name for name in names if _id_of(name) not in stored]
        with self._lock:
            for name in gone:
                self._bytes -= self._known().pop(name, 0)
        for name in gone:
            self._remove(name)

    def _known(self) -> OrderedDict[str, int]:
        """Returns the files with their sizes, the one used longest ago first; reads the folder once."""
        if self._sizes is None:
            found = []
            for path in self._folder.glob("??/*"):
                with suppress(OSError):
                    state = path.stat()
                    if path.suffix == ".jpg":
                        found.append((state.st_mtime, f"{path.parent.name}/{path.name}", state.st_size))
                    else:  # of a console that was killed
                        path.unlink()
            self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
            self._bytes = sum(self._sizes.values())
        return self._sizes

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()


def _file_of(key: _Key) -> str:
    name, width, box = key
    return f"{name[:2]}/{name}-{width}-{box}.jpg"


def _id_of(name: str) -> str:
    return name[3:].split("-", maxsplit=1)[0]


class _Kept:
    """Caches pictures up to `max_bytes`, and always the newest one. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[_Key, Picture] = OrderedDict()
        self._bytes = 0

    def get(self, key: _Key) -> Picture | None:
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def add(self, key: _Key, picture: Picture) -> None:
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = picture
                self._bytes += len(picture.data)
            while self._bytes > self._max_bytes and len(self._pictures) > 1:
                self._bytes -= len(self._pictures.popitem(last=False)[1].data)
