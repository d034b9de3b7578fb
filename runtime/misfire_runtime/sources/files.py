"""Recorded frames: an image, a video, or a folder of either, in natural order.

paths --one after another--> decoded frames. A file that cannot be read is skipped, counted and named; a video
that ends before its header says is named too. Nothing here ends a run but an empty or missing path.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import av
import numpy as np

from misfire_runtime.errors import ImageError, SourceError
from misfire_runtime.preprocess import MAX_PIXELS, Image, decode_image
from misfire_runtime.sources.frame import Frame, SourceCounts, sniff_media_type

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".ts", ".mpg", ".mpeg", ".h264", ".mjpeg"}
)
MAX_IMAGE_BYTES = 256 * 1024 * 1024


class RecordedFiles:
    """Every frame of an image, a video, or a folder of them (searched to the bottom)."""

    live = False

    def __init__(self, path: Path, *, name: str = "") -> None:
        """Raises SourceError where there is nothing to read."""
        self.path = path
        self.name = name or path.name
        self.counts = SourceCounts()
        self._files = _list(path)
        self.identity = _identity(path, self._files)

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Frames in the order of the file names; an image that cannot be read keeps its index."""
        index = 0
        for file in self._files:
            if stop.is_set():
                return
            if file.suffix.lower() in VIDEO_SUFFIXES:
                index = yield from self._video(file, index, start, stop)
                continue
            if index >= start:
                picture = self._image(file, index)
                if picture is not None:
                    yield picture
            index += 1

    def close(self) -> None:
        """Nothing is held between frames."""

    def _relative(self, file: Path) -> str:
        return file.name if file == self.path else file.relative_to(self.path).as_posix()

    def _image(self, file: Path, index: int) -> Frame | None:
        label = self._relative(file)
        try:
            if file.stat().st_size > MAX_IMAGE_BYTES:
                raise ImageError(f"{label}: above the limit of {MAX_IMAGE_BYTES} bytes")
            data = file.read_bytes()
            image = decode_image(data, name=label)
        except ImageError as error:
            self.counts.skip(str(error))
            return None
        except OSError as error:
            self.counts.skip(f"{label}: {error.strerror or error}")
            return None
        self.counts.read += 1
        return Frame(image, self.name, index, label, original=data, media_type=sniff_media_type(data))

    def _video(
        self, file: Path, first: int, start: int, stop: threading.Event
    ) -> Generator[Frame, None, int]:
        """Yields the frames of a video; returns the index that follows its last."""
        label = self._relative(file)
        try:
            with av.open(str(file)) as container:
                if container.streams.video:
                    return (yield from self._decoded(container, label, first, start, stop))
                self.counts.skip(f"{label}: no video stream")
        except (av.error.FFmpegError, OSError) as error:
            self.counts.skip(f"{label}: {error.strerror or error}")
        return first

    def _decoded(
        self,
        container: av.container.InputContainer,
        label: str,
        first: int,
        start: int,
        stop: threading.Event,
    ) -> Generator[Frame, None, int]:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            self.counts.skip(
                f"{label}: {stream.width}x{stream.height} is above the limit of {MAX_PIXELS} pixels"
            )
            return first
        index, damaged = first, 0
        for packet in container.demux(stream):
            if stop.is_set():
                return index
            try:
                pictures = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            for picture in pictures:
                index += 1
                if index <= start:
                    continue
                self.counts.read += 1
                # No name is kept here: the picture's memory is free for the next one as soon as it is used.
                yield Frame(_rgb(picture), self.name, index - 1, label, pts_s=picture.time)
        missing = max(damaged, stream.frames - (index - first))
        if missing > 0:
            self.counts.skip(
                f"{label}: truncated or damaged, {missing} frames cannot be read", frames=missing
            )
        return index


def _rgb(picture: av.VideoFrame) -> Image:
    return np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)


def _list(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            return [path]
        kinds = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise SourceError(f"{path}: not an image or video by its name; known are {kinds}")
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or folder")
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found = [file for file in path.rglob("*") if file.suffix.lower() in wanted and file.is_file()]
    if not found:
        raise SourceError(f"{path}: no images or videos in this folder")
    return sorted(found, key=lambda file: _natural(file.relative_to(path).as_posix()))


def _identity(path: Path, files: list[Path]) -> str:
    """Names this recording with its content as far as names, sizes and times tell."""
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
