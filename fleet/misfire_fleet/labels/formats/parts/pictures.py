"""Writes the pictures of an export, with the ending of their media type, and finds them in an import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from misfire_fleet.labels.formats.base import ExportItem

PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".avif", ".heic"}
)


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
