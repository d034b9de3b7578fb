"""Reads and writes large JSON files piece by piece, in memory that does not grow with the file.

members(file)   {"info": {...}, "images": [a, b]} -> ("info", {...}), ("images", a), ("images", b)
                [a, b]                            -> ("", a), ("", b)
JsonParts       the other way round: several growing arrays, joined into one document at the end
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from misfire_runtime.errors import ConfigError

MAX_PIECE = 64 * 1024 * 1024
"""Characters of one element; a mask of 40 million pixels stays below."""
_CHUNK = 256 * 1024
_SPACE = re.compile(r"[ \t\r\n]*")
_REST_OF_NUMBER = re.compile(r"[-+.0-9eE]*")


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the members of a document: elements of arrays one by one, everything else whole.

    Args:
        path: a file whose outermost value is an object or an array.

    Raises:
        ConfigError: the file is unreadable, not JSON, cut off, nested too deep, or has an element of more
            than MAX_PIECE characters. The message has the file and the position.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _Scanner(stream, path).members()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error.reason})") from error


def outline(path: Path, *, most: int = 64 * 1024) -> str:
    """Returns the beginning of a file as text, for a first look; "" if it is no text."""
    try:
        with path.open("rb") as stream:
            return stream.read(most).decode("utf-8-sig", "ignore")
    except OSError:
        return ""


class _Scanner:
    """Parses a stream of text. `_text[_at:]` is what is read and not yet parsed."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self._stream, self._path = stream, path
        self._text, self._at, self._before = "", 0, 0
        self._decode = json.JSONDecoder(parse_constant=self._refuse).raw_decode

    def members(self) -> Iterator[tuple[str, Any]]:
        opening = self._next()
        if opening == "[":
            yield from (("", element) for element in self._elements())
        elif opening == "{":
            yield from self._pairs()
        else:
            raise self._wrong("expected an object or an array")
        if self._next() != "":
            raise self._wrong("has something after its end")

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "}":
            self._next()
            return
        while True:
            key = self._value()
            if not isinstance(key, str) or self._next() != ":":
                raise self._wrong("expected a key and a colon")
            if self._peek() == "[":
                self._next()
                yield from ((key, element) for element in self._elements())
            else:
                yield key, self._value()
            if self._goes_on("}") is False:
                return

    def _elements(self) -> Iterator[Any]:
        if self._peek() == "]":
            self._next()
            return
        while True:
            yield self._value()
            if self._goes_on("]") is False:
                return

    def _goes_on(self, closing: str) -> bool:
        mark = self._next()
        if mark not in (",", closing):
            raise self._wrong(f"expected , or {closing}" if mark else "ends in the middle: it was cut off")
        return mark == ","

    def _peek(self) -> str:
        while True:
            self._at = _past(_SPACE, self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def _next(self) -> str:
        mark = self._peek()
        self._at += len(mark)
        return mark

    def _value(self) -> Any:
        """Parses one value. What does not parse yet is tried again with twice as much text."""
        if self._peek() == "":
            raise self._wrong("ends in the middle: it was cut off")
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number at the end of the text may go on: 1 in 1.5, or in 1. at the end of what was read.
                if _past(_REST_OF_NUMBER, self._text, end) < len(self._text) or not self._more(_CHUNK):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_PIECE:
                    raise self._wrong(f"an element has more than {MAX_PIECE:,} characters") from error
                # Text far behind what is wrong shows that it is not the end of what was read.
                if error.pos < len(self._text) - 4096 and not error.msg.startswith("Unterminated"):
                    raise self._wrong(error.msg, error.pos) from error
                if not self._more(wanted):
                    cut = error.pos >= len(self._text) - 1 or error.msg.startswith("Unterminated")
                    what = "ends in the middle: it was cut off" if cut else error.msg
                    raise self._wrong(what, error.pos) from error
                wanted *= 2
            except (RecursionError, ValueError) as error:
                raise self._wrong(str(error).splitlines()[0]) from error

    def _more(self, characters: int) -> bool:
        read = self._stream.read(characters)
        if read:
            self._before += self._at
            self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)

    def _wrong(self, what: str, at: int | None = None) -> ConfigError:
        place = self._before + (self._at if at is None else at)
        return ConfigError(f"{self._path}: character {place:,}: {what}")

    def _refuse(self, constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Returns the place behind a pattern that may be empty."""
    found = pattern.match(text, at)
    return at if found is None else found.end()


class JsonParts:
    """Writes one JSON object with arrays that grow at the same time; each waits in a file of its own."""

    def __init__(self, path: Path, *, arrays: tuple[str, ...]) -> None:
        """path: of the document. arrays: their keys, in order."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files = ExitStack()
        self._parts = {key: self._open(path.with_name(f".{path.name}.{key}.part")) for key in arrays}
        self.counts = dict.fromkeys(arrays, 0)

    def _open(self, path: Path) -> IO[str]:
        return self._files.enter_context(path.open("w+", encoding="utf-8"))

    def add(self, key: str, element: Any) -> None:
        """Adds an element to an array."""
        self._parts[key].write((",\n" if self.counts[key] else "\n") + json_text(element))
        self.counts[key] += 1

    def join(self, head: Mapping[str, Any], tail: Mapping[str, Any] | None = None) -> None:
        """Writes the document: members of `head`, the arrays, then those of `tail`."""
        with self._path.open("w", encoding="utf-8") as stream:
            mark = "{"
            for key, value in head.items():
                stream.write(f"{mark}\n{json_text(key)}: {json_text(value)}")
                mark = ","
            for key, part in self._parts.items():
                stream.write(f"{mark}\n{json_text(key)}: [")
                part.seek(0)
                while text := part.read(_CHUNK):
                    stream.write(text)
                stream.write("\n]")
                mark = ","
            for key, value in (tail or {}).items():
                stream.write(f"{mark}\n{json_text(key)}: {json_text(value)}")
                mark = ","
            stream.write("\n}\n")

    def __enter__(self) -> JsonParts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()
        for key in self._parts:
            self._path.with_name(f".{self._path.name}.{key}.part").unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """Returns compact JSON in UTF-8. Raises ValueError for numbers that are not finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ": "))
