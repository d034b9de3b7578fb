"""Reads and writes a vehicle's state files: a power cut leaves the old content or the new one.

write_state: FILE.tmp -> fsync -> rename to FILE -> fsync of the folder
read_state: FILE --parse--> value.  A damaged file is renamed to STEM.damaged and logged, and the caller gets
its default value.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from misfire_runtime.errors import MisfireError
from misfire_runtime.files import read_bounded, write_durably

_LOG = logging.getLogger(__name__)
# A damaged or exchanged file must not fill the memory at the start.
MAX_STATE_BYTES = 64 * 1024 * 1024
_UNREADABLE = (
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    MisfireError,
)
"""The errors that reading, `json.loads` and parsers raise on damaged files."""
T = TypeVar("T")


def write_state(path: Path, data: bytes) -> None:
    """Replaces a state file durably; only its user can read it.

    Two threads must not write the same file at once: they would use the same temporary name.

    Raises:
        OSError: the file cannot be written; the old content remains.
    """
    write_durably(path, data, mode=0o600, temporary=path.with_suffix(".tmp"))


def read_state(path: Path, parse: Callable[[Any], T], *, missing: T, damaged: T, assume: str) -> T:
    """Reads a state file. Never raises.

    Args:
        path: a JSON file.
        parse: converts the parsed JSON to the value.
        missing: returned if there is no file.
        damaged: returned if the file cannot be read or parsed; the file is then renamed.
        assume: what the vehicle does instead, for the log.
    """
    try:
        return parse(json.loads(read_bounded(path, max_bytes=MAX_STATE_BYTES)))
    except FileNotFoundError:
        return missing
    except _UNREADABLE as error:
        _set_aside(path, error, assume)
        return damaged


def _set_aside(path: Path, error: Exception, assume: str) -> None:
    # One name per file: a file that is damaged at each start must not fill the disk.
    aside = path.with_suffix(".damaged")
    fields = {"file": str(path), "problem": f"{type(error).__name__}: {error}"[:500], "assume": assume}
    try:
        path.replace(aside)
        fields["kept_as"] = str(aside)
    except OSError as trouble:
        fields["not_set_aside"] = trouble.strerror or str(trouble)
    _LOG.error("state_damaged", extra={"fields": fields})
