"""Limits of the uplink: bucket by the monotonic clock, schedule by the wall clock, waits with jitter."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from misfire_runtime.mqtt.backoff import floor_jitter, full_jitter
from misfire_runtime.uplink.bandwidth import Bandwidth, TokenBucket, Window

UTC = timezone.utc


def at(day: int, clock: str) -> float:
    """Seconds of a day of November 2027, the 1st of which is a Monday."""
    hour, minute = map(int, clock.split(":"))
    return datetime(2027, 11, day, hour, minute, tzinfo=UTC).timestamp()


def test_the_first_window_that_holds_decides() -> None:
    plan = Bandwidth(
        bytes_per_s=100,
        windows=(
            Window(since="22:00", until="06:00", days=("mon", "tue", "wed", "thu", "fri"), bytes_per_s=None),
            Window(since="12:00", until="13:00", bytes_per_s=0),
        ),
    )

    def rate(day: int, clock: str) -> float:
        return plan.rate_at(at(day, clock), metered=False, zone=UTC)

    assert rate(1, "21:59") == 100
    assert rate(1, "22:00") == math.inf
    assert rate(2, "05:59") == math.inf
    assert rate(2, "06:00") == 100
    assert rate(6, "05:00") == math.inf  # the night from Friday
    assert rate(6, "23:00") == 100
    assert rate(7, "12:30") == 0


def test_a_metered_link_has_the_lower_of_two_limits() -> None:
    plan = Bandwidth(bytes_per_s=1000, metered_bytes_per_s=10)
    assert plan.rate_at(0, metered=False) == 1000
    assert plan.rate_at(0, metered=True) == 10
    assert Bandwidth(metered_bytes_per_s=10).rate_at(0, metered=False) == math.inf


@pytest.mark.parametrize("wall", [-1e18, 1e18, float("inf"), float("nan")])
def test_a_clock_out_of_its_mind_still_has_a_rate(wall: float) -> None:
    plan = Bandwidth(bytes_per_s=7, windows=(Window(since="01:00", until="02:00", bytes_per_s=9),))
    assert plan.rate_at(wall, metered=False) in (7, 9)


@pytest.mark.parametrize("wrong", [{"since": "24:00", "until": "01:00"}, {"since": "1:00", "until": "02:00"}])
def test_a_wrong_time_of_day_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="since"):
        Window.model_validate(wrong)


@given(
    rate=st.floats(1, 1e6),
    takes=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), max_size=50),
)
def test_never_gives_more_than_burst_and_rate_allow(rate: float, takes: list[tuple[int, float]]) -> None:
    burst, now, taken, largest = 2000.0, 100.0, 0, 0
    bucket = TokenBucket(rate=rate, burst=burst, now=now)
    for size, wait_s in takes:
        now += wait_s
        if bucket.take(size, now):
            taken, largest = taken + size, max(largest, size)
        else:
            later = bucket.ready_at(size, now)
            assert later > now and bucket.take(size, later + 1e-6)
            taken, largest, now = taken + size, max(largest, size), later + 1e-6
    assert taken <= burst + rate * (now - 100.0) + largest + 1.0


def test_time_that_goes_backwards_gives_and_takes_nothing() -> None:
    bucket = TokenBucket(rate=1000, burst=1000, now=50.0)
    assert bucket.take(1000, 50.0) and not bucket.take(1, -1e9)
    assert not bucket.take(500, 50.2) and bucket.take(500, 50.6)


def test_a_closed_link_is_never_ready_and_an_open_one_at_once() -> None:
    closed = TokenBucket(rate=0, burst=1024, now=0)
    closed.take(1024, 0)
    assert closed.ready_at(1, 5.0) == math.inf
    assert TokenBucket().ready_at(10**9, 5.0) == 5.0


@given(attempt=st.integers(0, 10_000), seed=st.integers())
def test_waits_stay_between_their_bounds(attempt: int, seed: int) -> None:
    rng = random.Random(seed)
    assert 0 <= full_jitter(attempt, base_s=1, cap_s=60, rng=rng) <= 60
    assert 1 <= floor_jitter(attempt, base_s=1, cap_s=60, rng=rng) <= 60
