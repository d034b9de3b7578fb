"""Parses what may follow the path of a data set: `PATH?size=96x64&group=REGEX&test=FILE`.

Each reader names the options that it takes; any other is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from misfire_runtime.bundle import sha256_file
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import MAX_SIDE

SPELLINGS = {
    "size": "size=WIDTHxHEIGHT",
    "channels": "channels=4",
    "group": "group=REGEX (or group=none)",
    "test": "test=FILE",
    "classes": "classes=FILE",
    "ignore": "ignore=LABEL,LABEL",
    "images": "images=FOLDER",
    "others": "others=drop (or others=ignore)",
}
NO_GROUPS = "none"
"""`group=none`: every image is its own group. No expression: that would need a capture."""


@dataclass(frozen=True)
class Options:
    """Specifies how to read a data set of one's own.

    Attributes:
        size: width and height of the network's input.
        channels: of the images; 4 keeps a fourth (alpha, infrared, depth).
        group: a regular expression with one capture, searched in an image's name; what it captures is the
            image's group (a drive, a track, a physical sign).
        grouped: False splits image by image.
        test: a file that names the test half.
        classes: a file that lists the classes in order.
        ignore: labels of masks that mean "not labelled".
        images: the folder of a COCO document's images.
        others: what becomes of boxes whose class the list lacks: "drop", "ignore", or "" for an error.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    group: re.Pattern[str] | None = None
    grouped: bool = True
    test: Path | None = None
    classes: Path | None = None
    ignore: frozenset[int] = frozenset()
    images: Path | None = None
    others: str = ""


def parse_argument(argument: str, *, takes: Collection[str] = tuple(SPELLINGS)) -> tuple[Path, Options]:
    """Splits `PATH?size=WIDTHxHEIGHT&group=REGEX` into a path and options.

    takes: names of the options that the reader understands. Raises ConfigError on any other and on an invalid
    value.
    """
    path, _, query = argument.partition("?")
    # Only the first = splits: a regular expression may contain more.
    given: dict[str, str] = dict(part.partition("=")[::2] for part in query.split("&") if part)
    unknown = sorted(set(given) - set(takes))
    if unknown:
        known = ", ".join(SPELLINGS[name] for name in SPELLINGS if name in takes)
        raise ConfigError(f"{argument}: no option {unknown[0]}; there are {known}")
    group = given.get("group")
    return Path(path).expanduser(), Options(
        size=_size(given.get("size")),
        channels=_channels(given.get("channels")),
        group=None if group == NO_GROUPS else _pattern(group),
        grouped=group != NO_GROUPS,
        test=_path("test", given),
        classes=_path("classes", given),
        ignore=_labels(given.get("ignore")),
        images=_path("images", given),
        others=_others(given.get("others")),
    )


def beside(given: Path, folder: Path) -> Path:
    """Returns an option's path: in the data set's folder if it is there, else from the working directory."""
    inside = folder / given
    return inside if inside.exists() else given


def list_digest(options: Options, folder: Path) -> dict[str, str]:
    """Returns name and checksum of the file that names the test half: another list is another data set."""
    if options.test is None:
        return {}
    return {str(options.test): sha256_file(beside(options.test, folder))}


def printable(path: str | os.PathLike[str]) -> str:
    r"""Returns a file's name as text that can be printed and stored; bytes that are not UTF-8: `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _path(name: str, given: dict[str, str]) -> Path | None:
    if name not in given:
        return None
    if not given[name]:
        raise ConfigError(f"{name}= needs a value: {SPELLINGS[name]}")
    return Path(given[name]).expanduser()


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    # At most four digits, so that a typing error does not ask for gigabytes.
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)
    if found is None or int(found.group(1)) < 1 or int(found.group(2) or 1) < 1:
        raise ConfigError(f"size={text}: expected WIDTHxHEIGHT in pixels, such as 96x64")
    size = int(found.group(1)), int(found.group(2) or found.group(1))
    if max(size) > MAX_SIDE:
        raise ConfigError(f"size={text}: a network's input has at most {MAX_SIDE} pixels a side")
    return size


def _channels(text: str | None) -> int:
    if text not in (None, "3", "4"):
        raise ConfigError(f"channels={text}: expected 3 or 4")
    return int(text or 3)


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


def _others(text: str | None) -> str:
    if text not in (None, "drop", "ignore"):
        raise ConfigError(f"others={text}: expected drop or ignore")
    return text or ""


def _labels(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(f"ignore={text}: expected label numbers with commas, such as ignore=0,11")
    return frozenset(int(word) for word in words)
