"""Reading folders of images that somebody else made: some are broken, and that is said, not hidden.

Every file is decoded once at loading time, several at a time. What cannot be decoded is skipped, counted and
named; nothing else about a folder is guessed silently.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import Image, InputContract, decode_image
from misfire_train.data.catalogue import digest_of
from misfire_train.data.examples import Examples
from misfire_train.data.images import DecodedImages
from misfire_train.data.splits import split
from misfire_train.errors import DatasetError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
TEST_FRACTION = 0.2
_LONGEST_SIDE = 128
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class ImageFile:
    """An image that decodes. name: relative to the data set, with forward slashes."""

    path: Path
    name: str
    sha256: str
    height: int
    width: int


@dataclass(frozen=True)
class Options:
    """What may follow a path: `PATH?size=96x64&group=REGEX`.

    size: width and height of the network's input.  group: a regular expression with one capture, searched in
    an image's name; what it captures is the image's group (a drive, a track, a physical sign).
    """

    size: tuple[int, int] | None = None
    group: re.Pattern[str] | None = None

    def group_of(self, name: str, otherwise: str) -> str:
        """The group of an image. Raises DatasetError where the expression does not match."""
        if self.group is None:
            return otherwise
        found = self.group.search(name)
        if found is None:
            raise DatasetError(f"{name}: the group expression {self.group.pattern!r} does not match it")
        return found.group(1)


def parse_argument(argument: str) -> tuple[Path, Options]:
    """`PATH?size=WIDTHxHEIGHT&group=REGEX` to a path and options. Raises ConfigError on anything else."""
    path, _, query = argument.partition("?")
    given: dict[str, str] = dict(part.partition("=")[::2] for part in query.split("&") if part)
    unknown = sorted(set(given) - {"size", "group"})
    if unknown:
        raise ConfigError(
            f"{argument!r}: no option {unknown[0]!r}; there are size=WIDTHxHEIGHT and group=REGEX"
        )
    return Path(path).expanduser(), Options(size=_size(given.get("size")), group=_pattern(given.get("group")))


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their names. Raises DatasetError without a folder."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    hidden = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS]
    return sorted(path for path in hidden if path.is_file() and not path.name.startswith("."))


def read_images(paths: Sequence[Path], *, base: Path) -> tuple[list[ImageFile], list[str]]:
    """The files that decode, in order, and one sentence for each that does not."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda path: _read_one(path, base), paths))
    return [r for r in results if isinstance(r, ImageFile)], [r for r in results if isinstance(r, str)]


def skipped_notes(problems: Sequence[str]) -> tuple[str, ...]:
    """One note that counts the skipped files and names the first ones; none where nothing was skipped."""
    if not problems:
        return ()
    more = f"; and {len(problems) - _NAMED_AT_MOST} more" if len(problems) > _NAMED_AT_MOST else ""
    return (f"{len(problems)} unreadable images skipped: {'; '.join(problems[:_NAMED_AT_MOST])}{more}",)


def decoded(files: Sequence[ImageFile]) -> DecodedImages:
    """The images of these files, read when asked for."""

    def decode(index: int) -> Image:
        return decode_image(files[index].path.read_bytes(), name=files[index].name)

    return DecodedImages(decode, count=len(files))


def digest_files(files: Iterable[ImageFile], *, more: Mapping[str, str] | None = None) -> str:
    """SHA-256 of all names and contents, and of `more` (name to checksum)."""
    return digest_of([*((file.name, file.sha256) for file in files), *(more or {}).items()])


def natural_contract(files: Sequence[ImageFile], size: tuple[int, int] | None) -> InputContract:
    """The asked-for size, else the files' median one with the longer side at most 128, in multiples of 8."""
    if size is not None:
        width, height = size
    else:
        median_h = float(np.median([file.height for file in files]))
        median_w = float(np.median([file.width for file in files]))
        scale = min(1.0, _LONGEST_SIDE / max(median_h, median_w))
        height, width = (max(8, 8 * round(side * scale / 8)) for side in (median_h, median_w))
    return InputContract(height=height, width=width, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25))


def train_and_test(
    examples: Examples, is_test: Callable[[str], bool] | None = None
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Both halves: by `is_test(id)` where the data set says it, else a fifth of the groups; and a note."""
    if is_test is not None:
        tests = np.array([is_test(identity) for identity in examples.ids], bool)
        if tests.any() and not tests.all():
            return examples.take(np.flatnonzero(~tests)), examples.take(np.flatnonzero(tests)), ()
    parts = split(examples, fractions={"train": 1 - TEST_FRACTION, "test": TEST_FRACTION}, seed=0)
    note = (
        f"no test half was given: {len(parts['test'])} of {len(examples)} examples were set aside, by group"
    )
    return parts["train"], parts["test"], (note,)


def _read_one(path: Path, base: Path) -> ImageFile | str:
    name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    try:
        data = path.read_bytes()
        height, width = decode_image(data, name=name).shape[:2]
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    return ImageFile(path, name, hashlib.sha256(data).hexdigest(), height, width)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)
    if found is None or int(found.group(1)) < 1 or int(found.group(2) or 1) < 1:
        raise ConfigError(f"size={text}: expected WIDTHxHEIGHT in pixels, such as 96x64")
    return int(found.group(1)), int(found.group(2) or found.group(1))


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"group={text}: not a regular expression ({error})") from error
    if pattern.groups != 1:
        raise ConfigError(f"group={text}: needs exactly one capture, in parentheses; it has {pattern.groups}")
    return pattern
