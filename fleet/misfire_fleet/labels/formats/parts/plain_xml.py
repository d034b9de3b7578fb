"""Parses XML that others wrote, whole or element by element, without a document type and its entities.

A document type can define entities that expand to gigabytes or name files of this machine; label files need
none. Depth and size of what is kept are bounded, so a large file with small elements is read in small memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element
from xml.parsers import expat

from misfire_runtime.errors import ConfigError

MAX_WHOLE = 16 * 1024 * 1024
_MAX_DEPTH = 32
_MAX_KEPT = 2_000_000
"""Elements in one kept element: far more than a picture has boxes."""
_CHUNK = 256 * 1024


def parse_xml(data: bytes) -> Element:
    """Returns the root element of a small document.

    Raises:
        ValueError: it is malformed, too large, too deep, or has a document type.
    """
    if len(data) > MAX_WHOLE:
        raise ValueError(f"{len(data):,} bytes; at most {MAX_WHOLE:,} are read")
    collector = _Collector(None)
    collector.feed(data, last=True)
    return collector.kept.pop()


def elements(path: Path, *, kept: frozenset[str]) -> Iterator[tuple[Element, int]]:
    """Yields elements of a file one by one, each with its line.

    Args:
        path: of the file.
        kept: tags of the elements; one inside another belongs to the outer one. The root element is yielded
            first, without its children.

    Raises:
        ConfigError: the file is unreadable, malformed, too deep, or has a document type.
    """
    collector = _Collector(kept)
    try:
        with path.open("rb") as stream:
            while data := stream.read(_CHUNK):
                collector.feed(data)
                yield from collector.taken()
            collector.feed(b"", last=True)
            yield from collector.taken()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as XML ({error})") from error


class _Collector:
    """Builds the elements that are kept; with `tags` None, the whole document."""

    def __init__(self, tags: frozenset[str] | None) -> None:
        self._tags = tags
        self._depth, self._count = 0, 0
        self._open: list[Element] = []
        self._lines: list[int] = []
        self._started = 0
        self.kept: list[Element] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = _refuse_document_type
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Parses a part. Raises ValueError."""
        try:
            self._parser.Parse(data, last)
        # LookupError: an encoding that Python does not know.
        except (expat.ExpatError, LookupError) as error:
            raise ValueError(str(error)) from error

    def taken(self) -> Iterator[tuple[Element, int]]:
        """Yields the elements that are complete, and forgets them."""
        found, lines = self.kept, self._lines
        self.kept, self._lines = [], []
        yield from zip(found, lines, strict=True)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"elements are nested more than {_MAX_DEPTH} deep")
        if self._depth == 1 and self._tags is not None:
            self._keep(Element(tag, attributes), self._parser.CurrentLineNumber)
        elif self._open or self._tags is None or tag in self._tags:
            self._count += 1
            if self._count > _MAX_KEPT:
                raise ValueError(f"an element has more than {_MAX_KEPT:,} parts")
            element = Element(tag, attributes)
            if self._open:
                self._open[-1].append(element)
            else:
                self._started = self._parser.CurrentLineNumber
            self._open.append(element)

    def _end(self, _tag: str) -> None:
        self._depth -= 1
        if self._open:
            element = self._open.pop()
            if not self._open:
                self._count = 0
                self._keep(element, self._started)

    def _text(self, text: str) -> None:
        if not self._open:
            return
        element = self._open[-1]
        if len(element):
            element[-1].tail = (element[-1].tail or "") + text
        else:
            element.text = (element.text or "") + text

    def _keep(self, element: Element, line: int) -> None:
        self.kept.append(element)
        self._lines.append(line)


def _refuse_document_type(*_declared: Any) -> NoReturn:
    raise ValueError("it declares a document type, which label files do not need")
