"""Decodes pictures and clips with OpenCV and FFmpeg. Only a decoder's process imports this module.

Each decoder gets the format; it never guesses it. A picture is checked at the lowest cost that still reads
every coded bit: a JPEG at an eighth of its size, other formats in grey. Of a clip, only the first frame is
decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av
import av.error
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from misfire_fleet.decoding.headers import Header, Limits, check_container, check_pixels
from misfire_runtime.errors import ImageError

Pixels = NDArray[np.uint8]
_DEMUXERS = {
    "video/mp4": "mp4",
    "video/x-matroska": "matroska",
    "video/webm": "webm",
    "video/mp2t": "mpegts",
}
_CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"})
"""Canonical codec names. FFmpeg has hundreds of codecs; each allowed one is code that reads foreign bytes."""
_DECODERS = ",".join(sorted(_CODECS | {"libdav1d", "libvpx", "libvpx-vp9"}))
"""Decoder names for FFmpeg's whitelist: AV1, VP8 and VP9 have decoders named differently from the codec."""
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
_JPEG_QUALITY = 82


class OutOfMemoryError(Exception):
    """Reports that an allocation failed."""


def check_picture(data: bytes | bytearray, media_type: str, header: Header) -> tuple[int, int]:
    """Decodes a picture and returns (width, height) in pixels. Raises ImageError or OutOfMemoryError."""
    jpeg = media_type == "image/jpeg"
    flag = cv2.IMREAD_REDUCED_GRAYSCALE_8 if jpeg else cv2.IMREAD_GRAYSCALE
    # EXIF orientation swaps width and height, which are compared with the header below.
    image = _decoded(data, media_type, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    step = 8 if jpeg else 1
    # libjpeg rounds a reduced size up.
    if image.shape[:2] != (-(-header.height // step), -(-header.width // step)):
        raise ImageError(f"header and content of the {media_type} differ in size")
    return header.width, header.height


def check_clip(data: bytes | bytearray, media_type: str, limits: Limits) -> tuple[int, int]:
    """Decodes a clip's first frame and returns (width, height). Raises ImageError or OutOfMemoryError."""
    with _first_frame(data, media_type, limits) as frame:
        return frame.width, frame.height


def picture_thumbnail(data: bytes | bytearray, media_type: str, header: Header, width: int) -> bytes:
    """Returns a JPEG at most `width` pixels wide, upright. Raises ImageError or OutOfMemoryError."""
    flag = cv2.IMREAD_COLOR
    if media_type == "image/jpeg":
        # The shorter side, because decoding may rotate the picture (EXIF orientation).
        side = min(header.width, header.height)
        flag = next((flag for step, flag in _REDUCED if side >= step * width), flag)
    return _encoded(_decoded(data, media_type, flag), width)


def clip_thumbnail(data: bytes | bytearray, media_type: str, limits: Limits, width: int) -> bytes:
    """Returns the first frame as a JPEG up to `width` pixels wide. Raises ImageError or OutOfMemoryError."""
    with _first_frame(data, media_type, limits) as frame:
        return _encoded(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8), width)


def _decoded(data: bytes | bytearray, media_type: str, flag: int) -> Pixels:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise OutOfMemoryError from error
        raise ImageError(f"payload does not decode ({error.err or 'OpenCV error'})") from error
    except MemoryError as error:
        raise OutOfMemoryError from error
    if image is None:
        raise ImageError(f"payload does not decode as {media_type}")
    return np.asarray(image, np.uint8)


def _encoded(image: Pixels, width: int) -> bytes:
    if image.shape[1] > width:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ImageError(f"JPEG encoding failed for shape {image.shape}")
    return bytes(data)


@contextmanager
def _first_frame(data: bytes | bytearray, media_type: str, limits: Limits) -> Iterator[VideoFrame]:
    """Yields the first frame of a clip, decoded with the demuxer of the media type.

    FFmpeg must not guess the format: a playlist offered as a clip would make it open sockets and read files
    of the server.
    """
    check_container(data, media_type)
    # No protocol: the demuxer cannot open another file or URL that the clip refers to.
    options = {"protocol_whitelist": "", "codec_whitelist": _DECODERS}
    try:
        with av.open(io.BytesIO(data), format=_DEMUXERS[media_type], options=options) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise ImageError("clip has no video stream")
            codec = stream.codec_context.codec.canonical_name
            if codec not in _CODECS:
                raise ImageError(f"clips of codec {codec} are not taken")
            # Before the first frame is decoded: a large one costs memory.
            check_pixels(stream.width, stream.height, limits)
            stream.codec_context.thread_count = 1  # one decoder per process; the pool uses the other cores
            for frame in container.decode(stream):
                # The stream's header may say less than its frames have.
                check_pixels(frame.width, frame.height, limits)
                yield frame
                return
    except MemoryError as error:  # also FFmpeg's own
        raise OutOfMemoryError from error
    except (av.error.FFmpegError, ValueError, AttributeError) as error:
        raise ImageError(f"clip does not decode ({error})") from error
    raise ImageError("clip has no frame")
