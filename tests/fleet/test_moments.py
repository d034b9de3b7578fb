"""Times that people write are read in one way."""

from __future__ import annotations

import pytest

from misfire_fleet.commands.options import moment
from misfire_fleet.moments import parse_moment
from misfire_runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:01", 60.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01 00:00:00.500", 0.5),
    ],
)
def test_options_and_filters_read_the_same_times(text: str, seconds: float) -> None:
    assert parse_moment(text) == moment("--from", text) == seconds


@pytest.mark.parametrize("text", ["", "noon", "Z", "2026-01-31T12:00ZZ"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_moment(text)
    with pytest.raises(ConfigError, match=r"--from .*: expected a time such as"):
        moment("--from", text)
