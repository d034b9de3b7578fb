"""Reads recorded frames: an image, a video, or a folder of either, in natural order.

paths --one after another--> decoded frames. A file that cannot be read is skipped, counted and named; so are
frames of a video that are damaged or missing, and files of a folder that are neither. Nothing here ends a run
but an empty or missing path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import av

from misfire_runtime.encoded import exif_block, without_trailer
from misfire_runtime.errors import ImageError, SourceError
from misfire_runtime.preprocess import decode_image
from misfire_runtime.sources.frame import Frame, Source, SourceCounts, sniff_media_type
from misfire_runtime.sources.kinds import KNOWN_SUFFIXES, Kind, is_hidden, kind_of
from misfire_runtime.sources.names import shown
from misfire_runtime.sources.recording_time import exif_time
from misfire_runtime.sources.registry import SourceKind, SourceTable, register
from misfire_runtime.sources.video import VideoFile, upright

_LOG = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 256 * 1024 * 1024
"""A picture of 64 megapixels without compression has 192 MB; what is larger was named like one by mistake."""
_NAMED_AT_MOST = 5
"""File names in a message: the first few show which kind of file was meant."""


@register
class RecordedFiles(SourceKind):
    """Yields every frame of an image, a video, or a folder of them with all its subfolders."""

    live = False

    def __init__(self, path: Path, *, name: str = "") -> None:
        """Lists the files.

        Args:
            path: an image, a video, or a folder.
            name: what offers call it; "" takes the path's own.

        Raises:
            SourceError: there is nothing to read.
        """
        self.path = path
        self.channels = 3
        self.name = name or shown(path.name or path.resolve().name)
        self.counts = SourceCounts()
        self._files, self._passed = _list(path)
        self.identity = _identity(path, [file for file, _kind in self._files])
        self._zone_assumed = False

    @classmethod
    def reads(cls, path: Path) -> bool:
        """See SourceKind: whatever no other kind reads, if only to say what is wrong with it."""
        return True

    @classmethod
    def open(cls, settings: SourceTable) -> Source:
        """See SourceKind."""
        return cls(settings.path, name=settings.name)

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames in the order of the file names; what cannot be read keeps its index."""
        index = 0
        for file, kind in self._files:
            if stop.is_set():
                return
            if kind == "video" and self.channels == 4:
                self.counts.skip(f"{self._relative(file)}: a video has three channels, the model takes four")
                continue
            if kind == "video":
                # A video counts its frames itself, so it returns the index that follows.
                index = yield from self._video(file, index, start, stop)
                continue
            if index >= start:
                picture = self._image(file, index)
                if picture is not None:
                    yield picture
            index += 1
        self._name_passed()

    def close(self) -> None:
        """Does nothing: no file is open between frames."""

    def _relative(self, file: Path) -> str:
        return shown(file.name if file == self.path else file.relative_to(self.path).as_posix())

    def _image(self, file: Path, index: int) -> Frame | None:
        label = self._relative(file)
        try:
            # Before the file is read into memory.
            if file.stat().st_size > MAX_IMAGE_BYTES:
                raise ImageError(f"{label}: above the limit of {MAX_IMAGE_BYTES} bytes")
            data = without_trailer(file.read_bytes(), name=label)
            image = decode_image(data, name=label, channels=self.channels)
        except ImageError as error:
            self.counts.skip(str(error))
            return None
        except OSError as error:
            self.counts.skip(f"{label}: {error.strerror or error}")
            return None
        self.counts.read += 1
        return Frame(
            image,
            self.name,
            index,
            label,
            original=data,
            media_type=sniff_media_type(data),
            recorded_at=self._taken_at(data, label),
        )

    def _taken_at(self, data: bytes, label: str) -> float | None:
        found = exif_time(exif_block(data))
        if found is None:
            return None
        if not found[1] and not self._zone_assumed:
            self._zone_assumed = True  # logged once per source
            _LOG.warning(
                "recording_time_without_zone",
                extra={"fields": {"file": label, "taken_as": "local time of this computer (TZ)"}},
            )
        return found[0]

    def _video(
        self, file: Path, first: int, start: int, stop: threading.Event
    ) -> Generator[Frame, None, int]:
        """Yields the frames of a video; returns the index that follows its last."""
        label, video, index = self._relative(file), VideoFile(file), first
        try:
            for picture in video.pictures(stop):
                index += 1
                if index <= start:
                    continue
                if picture is None:
                    self.counts.unreadable += 1
                    continue
                self.counts.read += 1
                yield Frame(
                    upright(picture),
                    self.name,
                    index - 1,
                    label,
                    pts_s=video.position_s(picture),
                    recorded_at=video.recorded_at(picture),
                )
        except ImageError as error:
            self.counts.skip(f"{label}: {error}")
        except (av.error.FFmpegError, OSError) as error:
            self.counts.skip(f"{label}: {error.strerror or error}")
        self._name_damage(label, video)
        return index

    def _name_damage(self, label: str, video: VideoFile) -> None:
        if not video.damaged and not video.missing:
            return
        parts = []
        if video.missing:
            parts.append(f"truncated or damaged, {video.missing} frames are missing")
            self.counts.unreadable += video.missing
        if video.damaged:
            parts.append(f"{video.damaged} frames left out: damaged, or built on damaged ones")
        self.counts.problems.append(f"{label}: {'; '.join(parts)}")
        fields = {"file": label, "damaged": video.damaged, "missing": video.missing}
        _LOG.warning("video_damaged", extra={"fields": fields})

    def _name_passed(self) -> None:
        if self._passed:
            self.counts.problems.append(f"{self.name}: {_passed_over(self._passed)}")


def _list(path: Path) -> tuple[list[tuple[Path, Kind]], list[str]]:
    """Returns the files to read with their kinds, in natural order, and the names of all others."""
    if path.is_file():
        try:
            kind = kind_of(path)
        except OSError as error:
            raise SourceError(f"{shown(path)}: {error.strerror or error}") from error
        if kind not in ("image", "video"):
            kinds = ", ".join(KNOWN_SUFFIXES)
            raise SourceError(
                f"{shown(path)}: not an image or video by its name or content; known are {kinds}"
            )
        return [(path, kind)], []
    if not path.is_dir():
        raise SourceError(f"{shown(path)}: no such file or folder")
    found: list[tuple[Path, Kind]] = []
    passed: list[str] = []
    # Links are listed too, so that one that leads nowhere is named and not just missing.
    files = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    for file in sorted(files, key=lambda file: natural_order(file.relative_to(path).as_posix())):
        relative = file.relative_to(path)
        # A link that leads nowhere, or to a folder, is named among those passed over.
        kind = "" if is_hidden(relative) or not file.is_file() else _kind_or_none(file)
        if kind in ("image", "video"):
            found.append((file, kind))
        else:
            passed.append(shown(relative))
    if not found:
        more = f"; {_passed_over(passed)}" if passed else ""
        raise SourceError(f"{shown(path)}: no images or videos in this folder{more}")
    return found, passed


def _kind_or_none(file: Path) -> Kind:
    try:
        return kind_of(file)
    except OSError:
        return ""


def _passed_over(names: list[str]) -> str:
    first = ", ".join(names[:_NAMED_AT_MOST])
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"passed over {len(names)} files that are no images or videos, or hidden: {first}{more}"


def _identity(path: Path, files: list[Path]) -> str:
    """Returns a name of this recording and its content, as far as names, sizes and times tell."""
    digest = hashlib.sha256(os.fsencode(path.resolve()))
    for file in files:
        stat = file.stat()
        # Names, sizes and times: to hash the content would read a whole drive before the first frame.
        digest.update(os.fsencode(file.name) + f"|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def natural_order(text: str) -> list[tuple[int, int, str]]:
    """Returns a sort key that puts 2.png before 10.png."""
    # The group keeps the digits; the tuples never compare a number with text.
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
