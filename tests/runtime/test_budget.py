"""Budgets hold over any window, survive restarts and wrong clocks, and take declined samples back."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime import files
from misfire_runtime.errors import SpoolError
from misfire_runtime.triggers.budget import Budget, Limits, Times


@dataclass
class Clock:
    wall: float = 1.7e9
    monotonic: float = 100.0
    boot: str = "a"
    log: list[Any] = field(default_factory=list)

    def __call__(self) -> Times:
        return Times(self.wall, self.monotonic, self.boot)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def fill(budget: Budget, count: int, *, size: int = 10, prefix: str = "s") -> int:
    """Spends until refused; how many went."""
    for number in range(count):
        if budget.refusal(size) is not None:
            return number
        budget.spend(f"{prefix}{number}", size)
    return count


def test_samples_and_bytes_per_hour_and_day(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(tmp_path / "b.json", limits=Limits(samples_per_hour=5, bytes_per_day=80), now=clock)
    assert fill(budget, 100) == 5
    assert budget.refusal(10) == "5 samples per hour are spent"
    clock.pass_time(3599)
    assert budget.refusal(10) is not None
    clock.pass_time(2)
    assert fill(budget, 100, prefix="t") == 3
    assert budget.refusal(10) == "80 bytes per day are spent"
    clock.pass_time(86400)
    assert fill(budget, 100, prefix="u") == 5


def test_a_restart_does_not_renew_a_budget(tmp_path: Path) -> None:
    clock = Clock()
    limits = Limits(samples_per_hour=3)
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9) == 3
    clock.pass_time(60)
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9) == 0
    clock.boot, clock.monotonic = "b", 5.0
    clock.wall += 60
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9) == 0
    clock.pass_time(3600)
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9, prefix="x") == 3


def test_a_wall_clock_that_jumps_changes_nothing_while_the_machine_is_up(tmp_path: Path) -> None:
    for jump in (3.2e8, -3.2e8):
        clock = Clock()
        budget = Budget(tmp_path / f"{jump}.json", limits=Limits(samples_per_hour=3), now=clock)
        assert fill(budget, 9) == 3
        clock.wall += jump
        assert fill(budget, 9) == 0
        clock.pass_time(3601)
        assert fill(budget, 9, prefix="x") == 3


def test_a_reboot_with_the_clock_set_back_does_not_lose_the_book(tmp_path: Path) -> None:
    clock, limits = Clock(), Limits(samples_per_hour=3)
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9) == 3
    clock.boot, clock.monotonic, clock.wall = "b", 1.0, 0.0
    assert fill(Budget(tmp_path / "b.json", limits=limits, now=clock), 9) == 0


def test_a_slow_disk_does_not_keep_the_frame_path_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(tmp_path / "b.json", limits=Limits(samples_per_hour=2), now=Clock())
    real, writing, go_on = files.os.fsync, threading.Event(), threading.Event()

    def fsync(handle: int) -> None:
        writing.set()
        assert go_on.wait(20)
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    first, second = (threading.Thread(target=budget.spend, args=(name, 1)) for name in "st")
    first.start()
    try:
        assert writing.wait(20)
        assert budget.refusal(1) is None
        second.start()
        deadline = time.monotonic() + 20
        while budget.refusal(1) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert budget.refusal(1) == "2 samples per hour are spent"
    finally:
        go_on.set()
        first.join()
        second.join()
    assert [sample for sample, _at, _size in json.loads((tmp_path / "b.json").read_text())["spent"]] == [
        "s",
        "t",
    ]


def test_a_declined_sample_gives_back_what_it_cost(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(tmp_path / "b.json", limits=Limits(bytes_per_hour=100), now=clock)
    budget.spend("big", 90)
    assert budget.refusal(20) is not None
    assert budget.credit("big")
    assert not budget.credit("big")
    assert budget.refusal(100) is None
    budget.keep()
    again = Budget(tmp_path / "b.json", limits=Limits(bytes_per_hour=100), now=clock)
    assert again.refusal(100) is None


@pytest.mark.parametrize(
    "damage",
    [
        b'{"spent": [[',
        b"\xff\xfe\x00",
        b"[]",
        b"[" * 100_000,
        b'{"wall": NaN, "monotonic": 1, "boot": "a", "clock": 5, "spent": []}',
        b'{"wall": 1, "monotonic": 1, "boot": "a", "clock": 5, "spent": [["s", 9.0, 10]]}',
        b'{"wall": 1, "monotonic": 1, "boot": "a", "clock": 5, "spent": [["s", 2.0, -10]]}',
        b'{"wall": 1, "monotonic": 1, "boot": "a", "clock": 1e999, "spent": []}',
    ],
)
def test_a_damaged_book_is_set_aside_and_counts_as_spent(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "b.json", Clock()
    file.write_bytes(damage)
    limits = Limits(samples_per_hour=2, samples_per_day=3)
    budget = Budget(file, limits=limits, now=clock)
    record = next(record for record in caplog.records if record.message == "state_damaged")
    fields: Any = record.__dict__["fields"]
    assert fields["file"] == str(file) and "count as spent" in fields["assume"]
    assert (tmp_path / "b.damaged").read_bytes() == damage
    written = file.read_bytes()
    file.unlink()
    assert Budget(file, limits=limits, now=clock).refusal(1) is not None, "a full disk took no new book"
    file.write_bytes(written)
    assert budget.refusal(1) == "what was spent in the last hour is not known: its record was damaged"
    clock.pass_time(3601)
    again = Budget(file, limits=limits, now=clock)
    assert "last day is not known" in str(again.refusal(1)), "a restart does not forget the damage"
    clock.pass_time(86400)
    assert fill(again, 5) == 2


def test_a_book_that_cannot_be_set_aside_does_not_stop_the_vehicle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b.json").mkdir()
    (tmp_path / "b.damaged").write_text("an earlier one")
    budget = Budget(tmp_path / "b.json", limits=Limits(samples_per_hour=1), now=Clock())
    assert budget.refusal(1) is not None
    assert any("not_set_aside" in record.__dict__.get("fields", {}) for record in caplog.records)
    with pytest.raises(SpoolError, match="budgets cannot be kept"):
        budget.spend("s", 1)


def test_a_budget_of_nothing_allows_nothing_and_none_allows_all(tmp_path: Path) -> None:
    assert fill(Budget(tmp_path / "a.json", limits=Limits(samples_per_day=0), now=Clock()), 5) == 0
    assert fill(Budget(tmp_path / "b.json", limits=Limits(), now=Clock()), 500) == 500
    assert not (tmp_path / "b.json").exists()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(0, 4000).map(lambda s: ("wait", s)),
            st.integers(1, 60).map(lambda n: ("spend", n)),
            st.just(("restart", 0)),
            st.floats(-4e8, 4e8).map(lambda s: ("jump", s)),
        ),
        max_size=40,
    )
)
def test_no_hour_ever_holds_more_than_its_budget(steps: list[tuple[str, Any]]) -> None:
    clock, limits, spent = Clock(), Limits(bytes_per_hour=100), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "b.json"
        budget = Budget(file, limits=limits, now=clock)
        for number, (what, value) in enumerate(steps):
            if what == "wait":
                clock.pass_time(value)
            elif what == "jump":
                clock.wall += value
            elif what == "restart":
                budget = Budget(file, limits=limits, now=clock)
            elif budget.refusal(value) is None:
                budget.spend(str(number), value)
                spent.append((clock.monotonic, value))
    for start, _size in spent:
        assert sum(size for at, size in spent if start <= at < start + 3600) <= 100
