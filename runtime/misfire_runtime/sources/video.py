"""Decodes a video into pictures as they are to be shown: upright, and without damaged ones.

packet --decode--> pictures; those behind a damaged one may be built on it, up to the next key frame
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from misfire_runtime.errors import ImageError
from misfire_runtime.preprocess import MAX_PIXELS, Image
from misfire_runtime.sources.kinds import ends_early
from misfire_runtime.sources.recording_time import container_time

MAX_SUSPECT = 300
"""Pictures that are left out behind a damaged one if no key frame comes.

Streams with intra refresh have no key frames: they renew the picture part by part, usually within 250.
"""


class PictureDecoder:
    """Decodes the packets of one stream and leaves out what cannot be trusted."""

    def __init__(self, stream: av.VideoStream) -> None:
        self.damaged = 0
        self._suspect = 0
        if stream.codec_context.name == "mjpeg":
            # Else a picture that was cut off comes out grey below the cut. Other decoders flag such pictures,
            # and would refuse harmless oddities as well.
            stream.codec_context.options = {"err_detect": "explode"}

    def pictures(self, packet: av.Packet[av.VideoStream]) -> Iterator[av.VideoFrame | None]:
        """Yields the pictures of a packet; None for each that is damaged or may be built on a damaged one."""
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            self.damaged += 1
            self._suspect = MAX_SUSPECT
            yield None
            return
        for picture in decoded:
            if picture.is_corrupt:
                self._suspect = MAX_SUSPECT
            elif picture.key_frame:
                self._suspect = 0
            left_out = self._suspect > 0
            self._suspect -= left_out
            self.damaged += left_out
            yield None if left_out else picture


def upright(picture: av.VideoFrame) -> Image:
    """Returns a picture as RGB [H,W,3] uint8, turned and mirrored as its display matrix says."""
    image = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
    matrix: Any = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y with y downwards, as 16.16 fixed point in rows of three
    a, b, _u, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) > abs(a):
        # A turn by 90 degrees: rows and columns change places.
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


class VideoFile:
    """Reads one video file. `missing` and `damaged` are known when it was read to its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._start_s: float | None = None
        self._recorded_s: float | None = None
        self._decoder: PictureDecoder | None = None
        self.missing = 0

    @property
    def damaged(self) -> int:
        """Returns how many pictures were left out: damaged, or perhaps built on damaged ones."""
        return 0 if self._decoder is None else self._decoder.damaged

    def pictures(self, stop: threading.Event) -> Iterator[av.VideoFrame | None]:
        """Yields every picture to be shown, None for one that was left out.

        Raises ImageError if it has no video or one that is too large, av's errors if it cannot be opened.
        """
        # "replace": cameras write titles in other encodings, which would end the read.
        with av.open(str(self._file), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ImageError("no video stream")
            # Before the first picture is decoded, which needs the memory.
            if stream.width * stream.height > MAX_PIXELS:
                size = f"{stream.width}x{stream.height}"
                raise ImageError(f"{size} is above the limit of {MAX_PIXELS} pixels")
            self._begin(container, stream)
            decoder = self._decoder = PictureDecoder(stream)
            packets = 0
            for packet in container.demux(stream):
                if stop.is_set():
                    return
                # `demux` ends with an empty packet, which makes the decoder give its last pictures.
                packets += packet.size > 0
                yield from decoder.pictures(packet)
            self.missing = self._count_missing(container, stream, packets)

    def position_s(self, picture: av.VideoFrame) -> float | None:
        """Returns the seconds from the start of the video; None if it has no times."""
        if picture.pts is None:
            return None
        return picture.time - (self._start_s or 0.0)

    def recorded_at(self, picture: av.VideoFrame) -> float | None:
        """Returns seconds since 1970, if the video says when it was recorded."""
        position_s = self.position_s(picture)
        return None if self._recorded_s is None or position_s is None else self._recorded_s + position_s

    def _begin(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        # With several threads a decoder says nothing of the errors in slices that another thread decoded.
        stream.thread_type = "NONE"
        self._recorded_s = container_time(container.metadata, stream.metadata)
        if stream.start_time is not None and stream.time_base is not None:
            self._start_s = float(stream.start_time * stream.time_base)

    def _count_missing(
        self, container: av.container.InputContainer, stream: av.VideoStream, packets: int
    ) -> int:
        """Counts frames that a file should have and has not."""
        short = ends_early(self._file)
        if not short:
            return max(0, stream.frames - packets) if self.damaged else 0
        expected = stream.frames
        if not expected and container.duration and stream.average_rate:
            expected = round(container.duration / av.time_base * stream.average_rate)
        # At least one: the file ends early, even if its header does not give the count.
        return max(1, expected - packets)
