"""Finds and reads folders of images, and notes what is broken or left out.

Every file is decoded once at loading time, several at a time. Files that cannot be decoded are skipped,
counted and named; nothing else about a folder is guessed silently.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from misfire_runtime.errors import ImageError
from misfire_runtime.preprocess import Image, InputContract, Resize, decode_image
from misfire_train.data.catalogue import digest_of
from misfire_train.data.images import DecodedImages
from misfire_train.data.readers.class_lists import JSON_NAME, TEXT_NAME
from misfire_train.data.readers.options import printable
from misfire_train.errors import DatasetError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
# First bytes of JPEG, PNG, TIFF (little and big endian) and GIF.
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\x00",
    b"MM\x00*",
    b"GIF8",
)
# Folders of Synology, macOS archives, QNAP, Windows and ext file systems.
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
_LONGEST_SIDE = 128
# Enough to recognise a pattern; all names of a large folder would drown a note.
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class ImageFile:
    """Describes an image that decodes. name: relative to the data set, with forward slashes, printable."""

    path: Path
    name: str
    sha256: str
    height: int
    width: int


@dataclass(frozen=True)
class Found:
    """Holds image files below a folder, in the order of their names, and notes on what was left out."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def find_images(folder: Path) -> Found:
    """Finds all image files below a folder: by their ending, else by their first bytes. Links are followed.

    Hidden and system files and folders are left out. Raises DatasetError if there is no folder,
    or one that cannot be listed.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    left_out: Counter[str] = Counter()
    images: list[Path] = []
    unusual: list[Path] = []
    other: list[Path] = []
    for path in _walk(folder, left_out):
        if path.suffix.lower() in EXTENSIONS:
            images.append(path)
        elif path.name not in (TEXT_NAME, JSON_NAME):
            (unusual if _looks_like_an_image(path) else other).append(path)
    notes = []
    if left_out:
        names = [f"{name} ({count})" if count > 1 else name for name, count in left_out.most_common()]
        notes.append(f"hidden and system files and folders left out: {first_of(names)}")
    if unusual:
        notes.append(f"{len(unusual)} images were recognised by their content ({_endings(unusual)})")
    if other:
        notes.append(f"{len(other)} files are not images and were left out ({_endings(other)})")
    return Found(tuple(sorted([*images, *unusual])), tuple(notes))


def subfolders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, by name, without hidden ones and those of operating systems."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _not_data(path.name))


def read_images(paths: Sequence[Path], *, base: Path, channels: int = 3) -> tuple[list[ImageFile], list[str]]:
    """Returns the files that decode, in order, and one sentence for each that does not.

    channels: 3, or 4 to want a fourth.
    """
    # Threads suffice: decoders release Python's lock. Each holds one decoded image in memory, hence a limit.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda path: _read_one(path, base, channels), paths))
    return [r for r in results if isinstance(r, ImageFile)], [r for r in results if isinstance(r, str)]


def skipped_notes(problems: Sequence[str]) -> tuple[str, ...]:
    """Returns one note that counts the skipped files and names the first ones.

    None if nothing was skipped.
    """
    return (f"{len(problems)} unreadable images skipped: {first_of(problems)}",) if problems else ()


def first_of(sentences: Sequence[str]) -> str:
    """Joins the first few sentences and counts the rest."""
    more = f"; and {len(sentences) - _NAMED_AT_MOST} more" if len(sentences) > _NAMED_AT_MOST else ""
    return f"{'; '.join(sentences[:_NAMED_AT_MOST])}{more}"


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Returns the images directly in a folder by their names without the ending; none if it is not there."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS}


def named_file(text: str, folders: Sequence[Path]) -> Path | None:
    """Finds a file that a document names, in the first folder with it; Windows' separators are fine."""
    for name in dict.fromkeys((text, PureWindowsPath(text).as_posix())):
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is not None:
            return found
    return None


def name_below(path: Path, base: Path) -> str:
    """Returns a file's printable name below the data set's folder; outside of it, its own name."""
    relative = path.relative_to(base) if path.is_relative_to(base) else PurePosixPath(path.name)
    return printable(relative.as_posix())


def decoded(files: Sequence[ImageFile], *, channels: int = 3) -> DecodedImages:
    """Returns the images of these files, read on access. channels: 3, or 4 to keep a fourth."""

    def decode(index: int) -> Image:
        file = files[index]
        return decode_image(file.path.read_bytes(), name=file.name, channels=channels)

    sizes = np.array([(file.width, file.height) for file in files], np.int64).reshape(-1, 2)
    return DecodedImages(decode, count=len(files), sizes=sizes)


def digest_files(files: Iterable[ImageFile], *, more: Mapping[str, str] | None = None) -> str:
    """Returns the SHA-256 of all names and contents, and of `more` (name to checksum)."""
    return digest_of([*((file.name, file.sha256) for file in files), *(more or {}).items()])


def natural_contract(
    files: Sequence[ImageFile],
    size: tuple[int, int] | None,
    *,
    longest: int = _LONGEST_SIDE,
    multiple: int = 8,
    resize: Resize = "stretch",
    channels: int = 3,
) -> InputContract:
    """Returns an input contract of the requested size.

    Args:
        files: the images.
        size: width and height. None takes the files' median size.
        longest: limit of the median size's longer side.
        multiple: of which width and height of the median size are multiples.
        resize: how images of another shape are fitted in.
        channels: 3 or 4.
    """
    if size is not None:
        width, height = size
    else:
        median_h = float(np.median([file.height for file in files]))
        median_w = float(np.median([file.width for file in files]))
        scale = min(1.0, longest / max(median_h, median_w))
        height, width = (
            max(multiple, multiple * round(side * scale / multiple)) for side in (median_h, median_w)
        )
    return InputContract(
        height=height,
        width=width,
        color="rgba" if channels == 4 else "rgb",
        mean=(0.45,) * channels,
        std=(0.25,) * channels,
        resize=resize,
    )


def _read_one(path: Path, base: Path, channels: int) -> ImageFile | str:
    name = name_below(path, base)
    try:
        data = path.read_bytes()
        height, width = decode_image(data, name=name, channels=channels).shape[:2]
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    return ImageFile(path, name, hashlib.sha256(data).hexdigest(), height, width)


def _walk(folder: Path, left_out: Counter[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yields files below a folder; counts what it leaves out by name. Links that lead back up end there."""
    try:
        status, content = folder.stat(), sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{printable(folder)}: cannot be listed ({error.strerror})") from error
    here = (*above, (status.st_dev, status.st_ino))
    for path in content:
        if _not_data(path.name):
            # A hidden file that is no picture, such as .DS_Store, is not worth a note.
            if path.is_dir() or path.suffix.lower() in EXTENSIONS:
                left_out[printable(path.name)] += 1
        elif path.is_dir():
            status = path.stat()
            if (status.st_dev, status.st_ino) not in here:
                yield from _walk(path, left_out, here)
        elif path.is_file() or path.is_symlink():  # a link to nowhere is a broken file, and is named
            yield path


def _not_data(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _looks_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _endings(paths: Sequence[Path]) -> str:
    counts = Counter(printable(path.suffix.lower()) or "no ending" for path in paths)
    return ", ".join(f"{ending}: {count}" for ending, count in counts.most_common(_NAMED_AT_MOST))
