"""Parses times in options, filters and the API, everywhere in the same way."""

from __future__ import annotations

from datetime import datetime, timezone


def parse_moment(text: str) -> float:
    """Returns an ISO 8601 time as seconds since 1970. A time without a zone is UTC.

    Raises:
        ValueError: the text is not such a time.
    """
    # Python 3.10's fromisoformat does not accept Z.
    written = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    try:
        moment = datetime.fromisoformat(written)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except ValueError as error:
        raise ValueError("expected a time such as 2026-01-31T12:00 or 2026-01-31T12:00:00Z") from error
