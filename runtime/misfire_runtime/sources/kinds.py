"""Finds out what a file is, by its suffix or else by its first bytes, and whether it is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Literal

from misfire_runtime.encoded import picture_format

Kind = Literal["image", "video", "mcap", ""]

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".ts", ".mpg", ".mpeg"})
_RAW_VIDEOS = frozenset({".h264", ".264", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg"})
KNOWN_SUFFIXES = tuple(sorted(_IMAGES | _VIDEOS | _RAW_VIDEOS | {".mcap"}))
_MAGIC_BYTES = 400
"""Two packets of a transport stream of 192 bytes each, the longest pattern below."""
_MCAP = b"\x89MCAP0\r\n"
_EBML = b"\x1a\x45\xdf\xa3"
_VIDEO_MAGIC = re.compile(
    rb"....ftyp(?!heic|heix|mif1|avif|avis|M4A |M4B )"  # MP4, MOV, 3GP; HEIF pictures and audio are left out
    rb"|" + _EBML + rb"|RIFF....AVI |\x00\x00\x01[\xb3\xba]|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11"
    rb"|\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47",  # transport streams of 188 and 192 bytes
    re.DOTALL,
)
_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information"})


def kind_of(file: Path) -> Kind:
    """Returns what a file is; "" for anything that is no image, video or recording. Raises OSError."""
    # The suffix first: it needs no read, and a folder may hold a hundred thousand files.
    suffix = file.suffix.lower()
    if suffix in _IMAGES:
        return "image"
    if suffix in _VIDEOS | _RAW_VIDEOS:
        return "video"
    if suffix == ".mcap":
        return "mcap"
    with file.open("rb") as stream:
        head = stream.read(_MAGIC_BYTES)
    if head.startswith(_MCAP):
        return "mcap"
    if picture_format(head):
        return "image"
    return "video" if _VIDEO_MAGIC.match(head) else ""


def is_hidden(relative: Path) -> bool:
    """Returns True for hidden files and for what systems put beside files (thumbnails, resource forks)."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in relative.parts)


def ends_early(file: Path) -> bool:
    """Returns True if an MP4, MOV, AVI, MKV or WebM is shorter than its own headers say. Raises OSError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(4) == _EBML:
            return (_matroska_end(stream) or 0) > size
        at = 0
        while at + 8 <= size:
            # Only headers are read, so the check takes as long for a large file.
            stream.seek(at)
            length = _box_length(stream.read(16))
            if length is None:
                return False
            # Lengths are at least 8, so this ends.
            at += length
    return at > size


def _box_length(head: bytes) -> int | None:
    """Returns the length of a box (MP4, MOV) or RIFF chunk; None if it reaches to the end, or is none."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if not re.fullmatch(rb"[\x20-\x7e\xa9]{4}", head[4:8]):
        return None
    length = int.from_bytes(head[:4], "big")
    # 1 announces a length of 64 bits, for boxes above 4 GiB.
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 else None


def _matroska_end(stream: BinaryIO) -> int | None:
    """Returns where the segment of a Matroska file ends; None if its length is open (live)."""
    stream.seek(0)
    # The EBML header is some dozen bytes long; the segment follows it.
    head = stream.read(4096)
    size, at = _ebml_length(head, 4)
    if size is None or head[at + size : at + size + 4] != b"\x18\x53\x80\x67":
        return None
    length, at = _ebml_length(head, at + size + 4)
    return None if length is None else at + length


def _ebml_length(data: bytes, at: int) -> tuple[int | None, int]:
    """Reads a number whose first byte says its length; returns it (None: all bits set) and where it ends."""
    if at >= len(data) or data[at] == 0:
        return None, at
    # The number of leading zero bits is the number of bytes that follow.
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
    return (None if value == (1 << 7 * width) - 1 else value), at + width
