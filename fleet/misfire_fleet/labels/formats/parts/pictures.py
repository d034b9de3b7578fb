"""Writes the pictures of an export, with the ending of their media type, and finds them in an import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from misfire_fleet.labels.formats.base import ExportItem

PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".avif", ".heic"}
)

_HEADER_BYTES = 64 * 1024
"""A JPEG's size is behind its metadata, such as a preview of some kilobytes."""


def write_picture(item: ExportItem, folder: Path) -> Path:
    """Writes a picture's bytes as they are; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / item.file_name
    file.write_bytes(item.read())
    return file


def files_below(folder: Path, *endings: str) -> Iterator[Path]:
    """Yields the files below a folder with these endings, by name; hidden and linked ones are left out.

    One folder is listed at a time, so a tree of a million files needs little memory.
    """
    names = sorted(folder.iterdir())
    for path in names:
        if path.name.startswith(".") or path.name == "__MACOSX" or path.is_symlink():
            continue
        if path.is_dir():
            yield from files_below(path, *endings)
        elif path.suffix.lower() in endings:
            yield path


def has_pictures(folder: Path) -> bool:
    """Returns whether there is a picture anywhere below a folder."""
    return next(files_below(folder, *PICTURE_ENDINGS), None) is not None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Returns width and height from the header of a PNG, JPEG or WebP; None if it has none of them."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
    except OSError:
        return None
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp_size(head)
    return _jpeg_size(head) if head.startswith(b"\xff\xd8") else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(
                head[28:30], "little"
            ) & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        # Start of a frame: all of C0 to CF but the tables C4, C8 and CC.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        at += 2 + length
    return None
