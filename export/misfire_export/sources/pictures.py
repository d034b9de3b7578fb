"""Provides frames without labels: `--dataset images:PATH`, a folder of pictures or a video.

folder --every picture below it, by name--> Examples without targets, a group for each subfolder
video  --frames spread evenly over it--> Examples without targets, a group for each tenth of it

Such frames calibrate upload rates and nothing else: a threshold for the top 2 % needs no label, recall does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import av
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import sha256_file
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import Image
from misfire_runtime.sources.kinds import kind_of
from misfire_runtime.sources.video import VideoFile, upright
from misfire_train.data import Examples
from misfire_train.data.readers.files import (
    decoded,
    digest_files,
    find_images,
    first_of,
    read_images,
    skipped_notes,
)

PREFIX = "images:"
MOST = 4_000
"""Frames that calibrate: a quantile of 99.9 % then has four frames above it."""
_VIDEO_GROUPS = 10
"""Neighbouring frames are alike, so whole stretches are put into one fold."""


def read_pictures(path: Path, *, channels: int = 3) -> tuple[Examples, str, tuple[str, ...]]:
    """Returns (frames without targets, sha256, notes) of a folder of pictures or a video.

    channels: 3, or 4 for pictures with a fourth.
    Raises ConfigError if there is nothing to read.
    """
    if path.is_dir():
        return _folder(path, channels)
    if not path.is_file():
        raise ConfigError(f"{PREFIX}{path}: no such file or folder")
    if kind_of(path) != "video":
        raise ConfigError(f"{PREFIX}{path}: expected a folder of pictures, or a video")
    if channels == 4:
        raise ConfigError(f"{PREFIX}{path}: a video has three channels, the model takes four")
    return _video(path)


def unlabelled(images: Sequence[Image], ids: Sequence[str], groups: Sequence[str]) -> Examples:
    """Returns examples whose targets are empty rows."""
    return Examples(images, np.zeros((len(ids), 0), np.float32), tuple(ids), tuple(groups))


def _folder(path: Path, channels: int) -> tuple[Examples, str, tuple[str, ...]]:
    found = find_images(path)
    if not found.paths:
        raise ConfigError(f"{PREFIX}{path}: no pictures in this folder or below it")
    chosen = [found.paths[i] for i in _spread(len(found.paths), MOST)]
    files, problems = read_images(chosen, base=path, channels=channels)
    if not files:
        raise ConfigError(f"{PREFIX}{path}: no picture can be read; {first_of(problems)}")
    names = [file.name for file in files]
    frames = unlabelled(decoded(files, channels=channels), names, [_group(name) for name in names])
    few = (_chosen_note(len(chosen), len(found.paths)),) if len(chosen) < len(found.paths) else ()
    return frames, digest_files(files), (*few, *skipped_notes(problems), *found.notes)


def _group(name: str) -> str:
    """Returns the folder of a picture; a picture at the top is a group by itself."""
    return name.rpartition("/")[0] or name


def _video(path: Path) -> tuple[Examples, str, tuple[str, ...]]:
    frames = VideoFrames(path, most=MOST)
    count = len(frames)
    if not count:
        raise ConfigError(f"{PREFIX}{path}: the video has no frame that can be decoded")
    ids = [f"{path.name}#{place}" for place in frames.places]
    groups = [f"{path.name}, part {i * _VIDEO_GROUPS // count + 1}" for i in range(count)]
    notes = (_chosen_note(count, frames.total),) if count < frames.total else ()
    return unlabelled(frames, ids, groups), sha256_file(path), notes


def _chosen_note(chosen: int, total: int) -> str:
    return f"{chosen} of {total} frames were read, spread evenly"


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Returns at most `most` positions of 0..count-1, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


class VideoFrames(Sequence[Image]):
    """Presents frames of a video, spread evenly over it; reading them in order decodes the video once."""

    def __init__(self, path: Path, *, most: int) -> None:
        self.path = path
        readable = [place for place, _ in self._pictures()]
        self.total = len(readable)
        self.places: tuple[int, ...] = tuple(readable[i] for i in _spread(len(readable), most))
        self._open: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._next = 0
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: Any) -> Any:
        """Returns an RGB image [H,W,3], or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = self.places[index]
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        if place < self._next or self._next == 0:
            # Backwards, or for the first time: from the start of the file.
            self._open, self._next = self._pictures(), 0
        for found, picture in self._open:
            self._next = found + 1
            if found == place:
                self._last = (place, upright(picture))
                return self._last[1]
        raise ImageError(f"{self.path.name}: frame {place} is gone; did the file change?")

    def _pictures(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (position, picture) of what can be decoded; positions count the damaged ones too."""
        try:
            for place, picture in enumerate(VideoFile(self.path).pictures(threading.Event())):
                if picture is not None:
                    yield place, picture
        except av.error.FFmpegError:
            return  # what was decoded before the damage serves
