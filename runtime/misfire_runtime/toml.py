"""Reads TOML files and checks them against a model, so that every error names file, line and key.

file --read_toml--> TomlFile --check--> model.  Relative paths in a file are relative to its folder: tables.py
`explain` turns the errors of pydantic into text, for what came as JSON as well.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from misfire_runtime.errors import ConfigError
from misfire_runtime.files import read_bounded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_TOML_BYTES = 1024 * 1024
"""A configuration written by a person has some KiB; /dev/zero, named by mistake, has no end."""
_SHOWN = 5
"""Problems in one message: more would hide the first."""
_SECRET = ("broker",)
"""Tables whose values may be or hold a password: errors do not show them."""
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")

_Place = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class TomlFile:
    """Holds the tables of a TOML text.

    name: what errors call it. folder: what relative paths in it are relative to; None is the working folder.
    """

    values: dict[str, Any]
    text: str
    name: str
    folder: Path | None = None

    def check(self, model: type[M], values: dict[str, Any] | None = None) -> M:
        """Validates the tables.

        Args:
            model: what they must be.
            values: instead of the file's own tables: these with something on top.

        Raises:
            ConfigError: `file:line: key: what is wrong, what was expected`, the first five problems.
        """
        given = self.values if values is None else values
        try:
            return model.model_validate(given, context={"folder": self.folder})
        except ValidationError as error:
            raise ConfigError(explain(error, given, text=self.text, file=self.name)) from error


def read_toml(path: Path) -> TomlFile:
    """Reads a file; paths in it are relative to its folder. Raises ConfigError that names it."""
    try:
        text = read_bounded(path, max_bytes=MAX_TOML_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return parse_toml(text, name=str(path), folder=path.parent)


def parse_toml(text: str, *, name: str = "configuration", folder: Path | None = None) -> TomlFile:
    """Parses a text. Raises ConfigError with the line of a mistake."""
    try:
        return TomlFile(tomllib.loads(text), text, name, folder)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error


def explain(
    error: ValidationError,
    values: object = None,
    *,
    text: str = "",
    file: str = "",
    most: int = _SHOWN,
    show_input: bool = True,
) -> str:
    """Returns one sentence per problem, the first `most`: `file:line: key: what is wrong, what was given`.

    Args:
        error: what pydantic raised.
        values: what was validated. With it, keys do not name the member of a union that pydantic tried.
        text: the TOML text, for line numbers.
        file: what comes first in each sentence.
        most: how many problems are told; the rest are counted.
        show_input: whether sentences quote what was given; not where it is secret, or a stranger's.
    """
    sentences = []
    for problem in error.errors(include_url=False)[:most]:
        loc = problem["loc"] if values is None else _keys(problem["loc"], values, problem["type"])
        line = line_of(text, loc)
        place = f"{file}:{line}" if line else file
        parts = (place, ".".join(map(str, loc)), _message(problem, show_input=show_input))
        sentences.append(": ".join(part for part in parts if part))
    more = error.error_count() - len(sentences)
    return "; ".join(sentences) + (f"; and {more} more" if more > 0 else "")


def _keys(loc: Sequence[str | int], values: object, kind: str) -> tuple[str | int, ...]:
    """Returns the keys of pydantic's location, which also names the members of unions in between."""
    keys: list[str | int] = []
    inside: Any = values
    for depth, part in enumerate(loc):
        try:
            inside = inside[part]
        except (KeyError, IndexError, TypeError):
            if kind != "missing" or depth < len(loc) - 1:
                continue
        keys.append(part)
    return tuple(keys)


def _message(problem: Any, *, show_input: bool) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input") if show_input and problem["loc"][:1] != _SECRET else None
    return f"{message}, got {value!r}" if isinstance(value, str | int | float | bool) else message


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Returns the 1-based line of the key at `path` (array indices included), or of its nearest parent.

    A scan by lines, not a parser: the text has been parsed already, and only headers and `key =` matter.
    """
    lines = _index(text)
    at: _Place = tuple(path)
    while at:
        if at in lines:
            return lines[at]
        at = at[:-1]
    return None


def _index(text: str) -> dict[_Place, int]:
    found: dict[_Place, int] = {}
    arrays: dict[_Place, int] = {}
    table: _Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            table = _table(header, arrays)
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key:
            found.setdefault((*table, *_parts(key.group(1))), number)
    return found


def _table(header: re.Match[str], arrays: dict[_Place, int]) -> _Place:
    """Returns the path of a header, with the index of the newest element of every array of tables in it."""
    path: _Place = ()
    parts = _parts(header.group(2))
    for depth, part in enumerate(parts):
        path = (*path, part)
        last = depth == len(parts) - 1
        if last and header.group(1) == "[[":
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _parts(text: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(text)]
