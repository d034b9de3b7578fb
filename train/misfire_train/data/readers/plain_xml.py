"""Parses XML of label files: elements, attributes and text, without a document type and its entities.

A document type can define entities that expand to gigabytes or name files of this machine. Labels need none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from misfire_train.errors import DatasetError

# Thousands of objects fit in a megabyte; a larger file is a mistake, and would be read whole.
_MAX_BYTES = 16 * 1024 * 1024


class _NotPlainError(Exception):
    """Says what plain XML does not have."""


def read_xml(path: Path) -> Element:
    """Returns the root element. Raises DatasetError if the file is unreadable, malformed or not plain."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path}: a label file has at most {_MAX_BYTES} bytes")
        return _parsed(path.read_bytes())
    # LookupError: an encoding that Python does not know.
    except (OSError, LookupError, ValueError, expat.ExpatError, _NotPlainError) as error:
        raise DatasetError(f"{path}: cannot be read as XML ({error})") from error


def _parsed(data: bytes) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes) and None
    parser.EndElementHandler = lambda tag: builder.end(tag) and None
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()


def _refuse_document_type(*_declared: Any) -> None:
    raise _NotPlainError("it declares a document type, which labels do not need")
