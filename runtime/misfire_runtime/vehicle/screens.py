"""Shows pictures of one size: in a video file, or in a window.

check_target(FILE or "window") --> Film | Window --put(picture, time)--> --close-->
"""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import ConfigError

WINDOW = "window"
SUFFIXES = (".mp4", ".mkv")
_TIME_BASE = Fraction(1, 1000)
# The first that this FFmpeg has: H.264 plays in every browser.
_CODECS = ("libx264", "libopenh264", "mpeg4")


class Screen(Protocol):
    """Shows pictures of one size."""

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Shows a picture at a time of the film."""
        ...

    def close(self) -> None:
        """Completes the film, or closes the window."""
        ...


class WindowClosedError(Exception):
    """The user closed the window."""


class Film:
    """Writes a video file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In fragments: a run that is killed leaves a film that can be played.
        options = {"flush_packets": "1"}
        if path.suffix.lower() == ".mp4":
            options["movflags"] = "frag_keyframe+empty_moov"
        self._container = av.open(str(path), "w", options=options)
        self._stream: Any = None

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """See Screen."""
        if self._stream is None:
            self._stream = self._container.add_stream(_codec(), rate=30)
            self._stream.width, self._stream.height = image.shape[1], image.shape[0]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = _TIME_BASE
            # Short groups of pictures: each is written when it is complete. No B-frames: the first is at 0.
            self._stream.codec_context.gop_size, self._stream.codec_context.max_b_frames = 30, 0
            # A vehicle's processor has other work: the fastest that still looks right.
            self._stream.options = {"preset": "veryfast", "crf": "22"}
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.pts, picture.time_base = round(time_s * 1000), _TIME_BASE
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """See Screen."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class Window:
    """Shows pictures in a window of OpenCV; closing it, or the key q, ends the show."""

    def __init__(self, name: str) -> None:
        self._name = f"misfire: {name}"
        self._open = False

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """See Screen."""
        if self._open and cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) < 1:
            raise WindowClosedError
        cv2.imshow(self._name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._open = True
        # Without this call a window is never painted.
        if cv2.waitKey(1) & 0xFF == ord("q"):
            raise WindowClosedError

    def close(self) -> None:
        """See Screen."""
        cv2.destroyAllWindows()


def check_target(target: str) -> None:
    """Checks where to show: a file (.mp4, .mkv), or "window".

    Raises:
        ConfigError: the file has another ending or cannot be written, or there are no windows here.
    """
    if target == WINDOW:
        _check_windows()
    else:
        _check_file(Path(target))


def _check_windows() -> None:
    # Qt ends the whole process if there is no display, so it is asked for first.
    displayed = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    try:
        if displayed:
            cv2.namedWindow("misfire")
            cv2.destroyWindow("misfire")
            return
        why = "there is no display"
    except cv2.error:
        why = "this OpenCV was built without windows"
    raise ConfigError(f"--show window: {why}; write a video instead: --show FILE.mp4")


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--show {path}: expected a file with the ending {' or '.join(SUFFIXES)}, or 'window'"
        )
    was_there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"--show {path}: cannot be written ({error.strerror})") from error


def _codec() -> str:
    """Returns the name of the best encoder that this FFmpeg has."""
    for name in _CODECS:
        try:
            av.codec.Codec(name, "w")
        except (ValueError, av.error.FFmpegError):
            continue
        return name
    raise OSError("this FFmpeg has no encoder for video")
