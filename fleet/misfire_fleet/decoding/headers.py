"""Reads an upload's format and the cost of decoding it from its headers, without decoding it.

The media type selects the format; an upload with other magic bytes is refused. The cost is counted in bytes
(width x height x channels x depth, and a JPEG's coefficients) and in passes over the picture (a progressive
JPEG may require thousands). The number of pixels says little about either: decompression bombs have few.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from misfire_runtime.errors import ImageError

MIB = 1024 * 1024
IMAGES = frozenset({"image/jpeg", "image/png", "image/webp"})
VIDEOS = frozenset({"video/mp4", "video/x-matroska", "video/webm", "video/mp2t"})
MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten."""
MAX_PASSES_OF_LARGEST = 25
"""Passes over a picture of `max_pixels`; a smaller one may have more, up to MAX_SCANS."""
MAX_PARTS = 65_536
"""Segments of a JPEG or chunks of a PNG; libpng writes chunks of 8 KiB."""
MAX_BEHIND = 64 * 1024
"""Bytes after the end of a picture; cameras pad their buffers."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels by colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers; the three others in this range are DHT, JPG and DAC."""
_INTERLEAVED_ONLY = frozenset({0xC0, 0xC1})
"""Baseline and extended sequential: libjpeg decodes them row by row if there is a single scan."""
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers without a length field: restarts, start of image, and TEM."""
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SEGMENT_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Matches the first marker after coded data: neither a stuffed zero byte nor a restart marker."""
_STILL_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})
"""Brands of AVIF and HEIF images, which are stored in the container format of MP4."""
# The first bytes of EBML, the format beneath Matroska and WebM.
_EBML = b"\x1aE\xdf\xa3"
# 192: the M2TS form of recorders has a timestamp of 4 bytes before each packet.
_TS_PACKETS = (188, 192)


@dataclass(frozen=True)
class Limits:
    """Limits the cost of decoding one picture or clip."""

    max_pixels: int = 40_000_000
    """Pixels of a picture or frame; an 8K frame has 33 million."""
    max_bytes: int = 256 * MIB
    """Bytes of the decoded picture, or of the coefficients kept while it is decoded."""
    max_seconds: float = 10.0
    """Seconds of processor time."""


@dataclass(frozen=True)
class Header:
    """Holds the size in pixels, the bytes needed to decode, and the decoder's passes over the picture."""

    width: int
    height: int
    memory: int
    passes: int = 1


def read_header(data: bytes | bytearray, media_type: str, limits: Limits) -> Header:
    """Reads the header of a picture.

    Args:
        data: the whole upload.
        media_type: one of IMAGES, as in the offer.
        limits: costs that the picture may have.

    Raises:
        ImageError: it has another format, is truncated or exceeds a limit.
    """
    kind = _kind_of(data)
    if kind != media_type:
        raise ImageError(f"payload is {kind or 'neither JPEG, PNG nor WebP'}, the offer said {media_type}")
    header, end = _READERS[media_type](data, limits)
    if len(data) - end > MAX_BEHIND:
        raise ImageError(f"{len(data) - end} bytes behind the end of the picture; at most {MAX_BEHIND}")
    _check_limits(header, limits)
    return header


def check_container(data: bytes | bytearray, media_type: str) -> None:
    """Compares the magic bytes of a clip with its media type. Raises ImageError if they disagree."""
    if not _CONTAINERS[media_type](bytes(data[:4096])):
        raise ImageError(f"payload is {_kind_of(data) or 'of another format'}, the offer said {media_type}")


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises ImageError if an image has no pixels or more than the limit."""
    if width <= 0 or height <= 0:
        raise ImageError(f"an image of {width}x{height} has no pixels")
    if width * height > limits.max_pixels:
        raise ImageError(f"{width}x{height} is above the limit of {limits.max_pixels} pixels")


def _check_limits(header: Header, limits: Limits) -> None:
    """Raises ImageError, naming the cost, if a picture exceeds a limit."""
    check_pixels(header.width, header.height, limits)
    if header.memory > limits.max_bytes:
        raise ImageError(
            f"needs {header.memory} bytes to decode, which is above the limit of {limits.max_bytes}"
        )
    if header.passes * header.width * header.height > MAX_PASSES_OF_LARGEST * limits.max_pixels:
        raise ImageError(f"{header.passes} scans over {header.width}x{header.height} pixels are too many")


def _kind_of(data: bytes | bytearray) -> str:
    """Returns the media type according to the magic bytes; empty if it is not one of IMAGES."""
    if data.startswith(_PNG):
        return "image/png"
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return ""


def _number(data: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


# ---- JPEG


def _jpeg(data: bytes | bytearray, limits: Limits) -> tuple[Header, int]:
    """Returns the header of the first picture and the end of the last one.

    Cameras and phones write several JPEGs into one file (multi-picture format).
    """
    header, end = _one_jpeg(data, 0, limits)
    for _ in range(16):  # bounds the work; real files have a preview and a depth map or two
        if data[end : end + 3] != b"\xff\xd8\xff":
            break
        end = _one_jpeg(data, end, limits)[1]
    return header, end


def _one_jpeg(data: bytes | bytearray, start: int, limits: Limits) -> tuple[Header, int]:
    at, scans, frame = start + 2, 0, 0
    for _ in range(MAX_PARTS):
        marker, at = _marker(data, at)
        if marker == _EOI:
            if not frame or not scans:
                raise ImageError("damaged JPEG (no frame header or no scan)")
            return _jpeg_header(data, frame, scans), at
        if marker in _WITHOUT_LENGTH:
            continue
        # The length counts its own two bytes.
        following = at + _number(data, at, 2)
        if following < at + 2 or following > len(data):
            raise ImageError("truncated JPEG (no end marker)")
        if marker in _SOF and not frame:
            frame = at - 1
            # After the length: precision (one byte), height, width.
            check_pixels(_number(data, at + 5, 2), _number(data, at + 3, 2), limits)
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
            found = _SEGMENT_AFTER_SCAN.search(data, following)
            if found is None:
                raise ImageError("truncated JPEG (no end marker)")
            following = found.start()
        at = following
    raise ImageError(f"a JPEG of more than {MAX_PARTS} segments")


def _marker(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Returns the next marker and the start of its segment. Skips stray and fill bytes, as decoders do."""
    found = _MARKER.search(data, at)
    if found is None:
        raise ImageError("truncated JPEG (no end marker)")
    return data[found.end() - 1], found.end()


def _jpeg_header(data: bytes | bytearray, at: int, scans: int) -> Header:
    """Returns the header and the cost of a JPEG whose frame header's marker is at `at`."""
    kind, components = data[at], data[at + 8]
    height, width = _number(data, at + 4, 2), _number(data, at + 6, 2)
    factors = [data[at + 10 + 3 * n] for n in range(components) if at + 10 + 3 * n < len(data)]
    areas = [(factor >> 4) * (factor & 15) for factor in factors]
    if not areas or 0 in areas or len(areas) > 4:
        raise ImageError("damaged JPEG (frame header)")
    # The largest sampling factor is full resolution; the other components are that much smaller.
    samples = width * height * sum(areas) // max(areas)
    # With several scans libjpeg keeps the coefficients of the whole picture, 2 bytes each.
    coefficients = 0 if kind in _INTERLEAVED_ONLY and scans == 1 else 2 * samples
    return Header(width, height, memory=max(coefficients, width * height // 64), passes=scans)


# ---- PNG, WebP


def _png(data: bytes | bytearray, limits: Limits) -> tuple[Header, int]:
    # 33 bytes: the signature (8) and the IHDR chunk (length 4, name 4, content 13, checksum 4).
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ImageError("truncated PNG")
    header = _png_header(data)
    check_pixels(header.width, header.height, limits)
    at = len(_PNG)
    for _ in range(MAX_PARTS):
        # A chunk's length counts its content; length, name and checksum are 12 bytes more.
        kind, following = bytes(data[at + 4 : at + 8]), at + 12 + _number(data, at, 4)
        if following > len(data) or len(kind) < 4:
            raise ImageError("truncated PNG")
        if kind == b"acTL":
            raise ImageError("an animated PNG; one picture is taken, or a clip as video")
        if kind == b"IEND":
            return header, following
        at = following
    raise ImageError(f"a PNG of more than {MAX_PARTS} chunks")


def _png_header(data: bytes | bytearray) -> Header:
    width, height = _number(data, 16, 4), _number(data, 20, 4)
    bits = data[24] * _PNG_CHANNELS.get(data[25], 4)
    # The larger of the file's own rows and the 3 bytes per pixel that OpenCV returns.
    return Header(width, height, memory=max(height * ((width * bits + 7) // 8), 3 * width * height))


def _webp(data: bytes | bytearray, limits: Limits) -> tuple[Header, int]:
    size = int.from_bytes(data[4:8], "little")
    end = 8 + size + (size & 1)  # RIFF pads chunks to an even length
    if len(data) < 30 or 8 + size > len(data):
        raise ImageError("truncated WebP")
    kind = data[12:16]
    if kind == b"VP8X":
        # The flag of an animation.
        if data[20] & 2:
            raise ImageError("an animated WebP; one picture is taken, or a clip as video")
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        # Two numbers of 14 bits: width and height, less one.
        packed = int.from_bytes(data[21:25], "little")
        width, height = (packed & 0x3FFF) + 1, ((packed >> 14) & 0x3FFF) + 1
    elif kind == b"VP8 ":
        # 14 bits each; the other two are a hint for scaling.
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        raise ImageError("damaged WebP (unknown chunk)")
    # Lossless pictures are unpacked to four bytes per pixel, in addition to the result.
    return Header(width, height, memory=6 * width * height), min(end, len(data))


_READERS: dict[str, Callable[[bytes | bytearray, Limits], tuple[Header, int]]] = {
    "image/jpeg": _jpeg,
    "image/png": _png,
    "image/webp": _webp,
}


# ---- clips


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] not in _STILL_BRANDS


def _is_matroska(head: bytes) -> bool:
    return head.startswith(_EBML) and (b"matroska" in head[:64] or b"webm" in head[:64])


def _is_webm(head: bytes) -> bool:
    return head.startswith(_EBML) and b"webm" in head[:64]


def _is_transport_stream(head: bytes) -> bool:
    """Returns True if each packet starts with 0x47.

    Packets have 188 bytes, or 192 with a timestamp before each. A recording may begin within a packet.
    """
    return len(head) >= 2 * max(_TS_PACKETS) and any(
        set(head[first::step]) == {0x47} for step in _TS_PACKETS for first in range(step)
    )


_CONTAINERS: dict[str, Callable[[bytes], bool]] = {
    "video/mp4": _is_mp4,
    "video/x-matroska": _is_matroska,
    "video/webm": _is_webm,
    "video/mp2t": _is_transport_stream,
}
