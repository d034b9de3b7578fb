"""Finds format, end and Exif block of encoded pictures without decoding them.

Cameras pad pictures to a block size, driver buffers are larger than their pictures, and phones append
previews and short videos. So the end of a picture is found by following its segments, not by searching for an
end marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from misfire_runtime.errors import ImageError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAGIC = (
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/png", re.compile(re.escape(PNG_MAGIC))),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("image/tiff", re.compile(rb"II\*\0|MM\0\*")),
    ("image/bmp", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/x-portable-anymap", re.compile(rb"P[1-6]\s")),
)
# Matches a marker that is followed by a length, or the end marker. Excluded are stuffed bytes and markers
# without a length: FF 00, TEM, RST0 to RST7, SOI, and fill bytes.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_JPEG_END, _JPEG_APP1 = b"\xd9", b"\xe1"
# Start of frame, for every way of coding. C4, C8 and CC in between are other things.
_JPEG_FRAMES = frozenset(bytes([code]) for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
_EXIF = b"Exif\0\0"


def picture_format(data: bytes) -> str:
    """Returns the media type of an encoded picture by its first bytes; "" if the format is unknown."""
    return next((media_type for media_type, magic in _MAGIC if magic.match(data)), "")


def without_trailer(data: bytes, *, name: str = "image") -> bytes:
    """Returns the picture without the bytes after its end; formats without an end mark are unchanged.

    Args:
        data: the encoded picture.
        name: name of the picture, for errors.

    Raises:
        ImageError: a JPEG, PNG or WebP is truncated.
    """
    media_type = picture_format(data)
    end = None
    if media_type == "image/jpeg":
        end = next((at for marker, at, _end in _jpeg_segments(data) if marker == _JPEG_END), None)
        missing = "JPEG (no end marker)"
    elif media_type == "image/png":
        end = next((end for kind, _at, end in _png_chunks(data) if kind == b"IEND"), None)
        missing = "PNG (no IEND chunk)"
    elif media_type == "image/webp":
        # RIFF's length leaves out its own first eight bytes.
        end, missing = 8 + int.from_bytes(data[4:8], "little"), "WebP"
    else:
        return data
    if end is None or end > len(data):
        raise ImageError(f"{name}: truncated {missing}")
    return data if end == len(data) else data[:end]


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height as the header of a JPEG or PNG states them; None if it does not."""
    media_type = picture_format(data)
    if media_type == "image/png" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if media_type != "image/jpeg":
        return None
    at = next((at for marker, at, _end in _jpeg_segments(data) if marker in _JPEG_FRAMES), None)
    if at is None or len(data) < at + 5:
        return None
    # Bits per sample, height, width.
    return int.from_bytes(data[at + 3 : at + 5], "big"), int.from_bytes(data[at + 1 : at + 3], "big")


def exif_block(data: bytes) -> bytes:
    """Returns the Exif block (a TIFF structure) of a JPEG, PNG, WebP or TIFF; empty if there is none."""
    media_type = picture_format(data)
    if media_type == "image/tiff":
        return data
    for kind, at, end in _SEGMENTS.get(media_type, lambda _data: iter(()))(data):
        block = data[at:end]
        if kind == _JPEG_APP1 and block.startswith(_EXIF):
            return block[len(_EXIF) :]
        if kind == b"eXIf":
            return block[:-4]  # its checksum
        if kind == b"EXIF":
            return block.removeprefix(_EXIF)
    return b""


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields marker, start and end of the payload of every segment, across all scans, up to the end marker.

    Stray bytes between segments are skipped, as decoders do.
    """
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        at = found.end()
        if found[1] == _JPEG_END:
            yield found[1], at, at
            return
        # The length includes its own two bytes; less is damage, and would go backwards.
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        yield found[1], at + 2, end
        at = end


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start of the payload and end (after the checksum) of every chunk."""
    at = len(PNG_MAGIC)
    # A chunk is its length, kind and checksum, four bytes each, and the payload.
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at + 8, end
        at = end


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start and end of the payload of every chunk."""
    at = 12
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], at + 8, end
        # Chunks of RIFF begin at even offsets.
        at = end + (end & 1)


_SEGMENTS = {"image/jpeg": _jpeg_segments, "image/png": _png_chunks, "image/webp": _webp_chunks}
