"""Makes opaque cursors: where the next page of a list begins. What is in them may change with any version."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated

from fastapi import HTTPException, Query

MAX_CHARS = 400
Cursor = Annotated[
    str, Query(max_length=MAX_CHARS, description="`next` of the page before; empty for the first page.")
]


def cursor_of(kind: str, *values: str | int | float) -> str:
    """Returns a cursor for the list `kind` that continues after `values`."""
    text = json.dumps([kind, *values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode("ascii").rstrip("=")


def after_number(kind: str, cursor: str) -> int | None:
    """Returns the number in a cursor of the list `kind`; None for the first page.

    Raises:
        HTTPException: 422: the cursor is none of this list.
    """
    value = _value(kind, cursor)
    if value is None:
        return None
    # The database has integers of 64 bits.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _refused()
    return value


def after_text(kind: str, cursor: str) -> str:
    """Returns the text in a cursor of the list `kind`; "" for the first page. Raises HTTPException 422."""
    value = _value(kind, cursor)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value or not value.isprintable():
        raise _refused()
    return value


def _value(kind: str, cursor: str) -> object:
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = json.loads(raw)
    # RecursionError: many brackets.
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _refused() from error
    if not isinstance(found, list) or len(found) != 2 or found[0] != kind:
        raise _refused()
    value: object = found[1]
    return value


def _refused() -> HTTPException:
    return HTTPException(422, "cursor: give `next` of the page before, or none")
