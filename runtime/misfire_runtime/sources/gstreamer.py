"""A GStreamer pipeline as a source, through OpenCV: what a Jetson's CSI camera needs.

The pipeline must end in `appsink` and give BGR, e.g.
nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1920,height=1080 ! nvvidconv ! video/x-raw,format=BGRx !
videoconvert ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1
OpenCV's own wheels are built without GStreamer; JetPack's OpenCV has it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from misfire_runtime.errors import SourceError
from misfire_runtime.sources.frame import Frame, SourceCounts


def opencv_has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer."""
    lines = [line for line in cv2.getBuildInformation().splitlines() if "GStreamer" in line]
    return any("YES" in line for line in lines)


class GStreamerPipeline:
    """Frames of a GStreamer pipeline string; started again when it ends or fails."""

    live = True

    def __init__(self, pipeline: str, *, name: str = "gstreamer", max_wait_s: float = 30.0) -> None:
        """Raises SourceError where this OpenCV has no GStreamer, or the pipeline has no appsink."""
        if "appsink" not in pipeline:
            raise SourceError(f"GStreamer pipeline {pipeline!r} must end in appsink")
        if not opencv_has_gstreamer():
            raise SourceError(
                "this OpenCV is built without GStreamer; use JetPack's, or an rtsp:// or /dev/video source"
            )
        self.name = name
        self.counts = SourceCounts()
        self._pipeline = pipeline
        self._max_wait_s = max_wait_s

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Frames as they arrive, across restarts of the pipeline."""
        index, failures = start, 0
        while not stop.is_set():
            before = index
            capture = cv2.VideoCapture(self._pipeline, cv2.CAP_GSTREAMER)
            try:
                while not stop.is_set() and capture.isOpened():
                    ok, picture = capture.read()
                    if not ok:
                        break
                    image = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
                    self.counts.read += 1
                    yield Frame(image, self.name, index, self.name, monotonic=time.monotonic())
                    index += 1
            finally:
                capture.release()
            failures = 1 if index > before else failures + 1
            self.counts.reconnects += 1
            stop.wait(random.uniform(0, min(self._max_wait_s, 0.5 * 2 ** min(failures, 16))))

    def close(self) -> None:
        """The capture is released by its own thread."""
