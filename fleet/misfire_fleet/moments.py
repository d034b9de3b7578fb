"""Times as people and programs write them, read in one way everywhere: options, filters, the API."""

from __future__ import annotations

from datetime import datetime, timezone


def parse_moment(text: str) -> float:
    """Returns seconds since 1970 of an ISO 8601 time, UTC if it names no zone.

    Raises ValueError that says what was expected.
    """
    # Python 3.10 does not know the Z.
    written = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    try:
        moment = datetime.fromisoformat(written)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except ValueError as error:
        raise ValueError("expected a time such as 2026-01-31T12:00 or 2026-01-31T12:00:00Z") from error
