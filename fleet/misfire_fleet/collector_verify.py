"""Is an upload what its offer said? Hash, kind, dimensions before decoding, then the decoding itself.

Every check reads only as much as it needs, and the header's dimensions come first: a decompression bomb is
refused before a single pixel is allocated.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import av
import av.error
import cv2
import numpy as np

from misfire_runtime.errors import ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01, 0xFF}
IMAGES = frozenset({"image/jpeg", "image/png", "image/webp"})
VIDEOS = frozenset({"video/mp4", "video/x-matroska", "video/webm", "video/mp2t"})


class HashMismatchError(ImageError):
    """The bytes are not those whose hash the offer named."""


@dataclass(frozen=True)
class Verified:
    """Width and height in pixels, of the picture or of the clip's first frame."""

    width: int
    height: int


def verify(data: bytes, *, sample: str, media_type: str, max_pixels: int) -> Verified:
    """Checks hash, kind and content.

    Raises HashMismatchError where the bytes are not the sample's, ImageError with the reason where they do
    not decode as `media_type` or have more than `max_pixels`.
    """
    if hashlib.sha256(data).hexdigest() != sample:
        raise HashMismatchError("sha256 of the payload is not the offer's id")
    if media_type in VIDEOS:
        return _first_frame(data, max_pixels)
    kind, width, height = dimensions(data)
    if kind != media_type:
        raise ImageError(f"payload is {kind}, the offer said {media_type}")
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} is above the limit of {max_pixels} pixels")
    return _decoded(data, kind, Verified(width, height))


def dimensions(data: bytes) -> tuple[str, int, int]:
    """(media type, width, height) of a JPEG, PNG or WebP by its header alone. Raises ImageError."""
    if data.startswith(_PNG):
        return "image/png", *_png(data)
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg", *_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp", *_webp(data)
    raise ImageError("payload is neither JPEG, PNG nor WebP")


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" or b"IEND" not in data[-16:]:
        raise ImageError("truncated PNG")
    return _sized(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _jpeg(data: bytes) -> tuple[int, int]:
    if b"\xff\xd9" not in data[-64:]:
        raise ImageError("truncated JPEG (no end marker)")
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            raise ImageError("damaged JPEG (no marker where one must be)")
        marker = data[at + 1]
        if marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _SOF:
            height, width = (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 7 : at + 9], "big"),
            )
            return _sized(width, height)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ImageError("damaged JPEG (no frame header)")


def _webp(data: bytes) -> tuple[int, int]:
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ImageError("truncated WebP")
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return _sized(width & 0x3FFF, height & 0x3FFF)
    raise ImageError("damaged WebP (unknown chunk)")


def _sized(width: int, height: int) -> tuple[int, int]:
    if width == 0 or height == 0:
        raise ImageError(f"an image of {width}x{height} has no pixels")
    return width, height


def _decoded(data: bytes, kind: str, expected: Verified) -> Verified:
    """A JPEG is decoded at an eighth of its size: every coded bit is read, few pixels are made."""
    flag = cv2.IMREAD_REDUCED_GRAYSCALE_8 if kind == "image/jpeg" else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise ImageError(f"payload does not decode ({error.err or 'OpenCV error'})") from error
    if image is None:
        raise ImageError(f"payload does not decode as {kind}")
    return expected


def _first_frame(data: bytes, max_pixels: int) -> Verified:
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise ImageError("clip has no video stream")
            if stream.width * stream.height > max_pixels:
                raise ImageError(f"{stream.width}x{stream.height} is above the limit of {max_pixels} pixels")
            for frame in container.decode(stream):
                return Verified(frame.width, frame.height)
    except (av.error.FFmpegError, ValueError) as error:
        raise ImageError(f"clip does not decode ({error})") from error
    raise ImageError("clip has no frame")
