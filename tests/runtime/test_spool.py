"""The spool keeps what it took, whole and once, keeps its books, and says so after any crash."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misfire_runtime import files
from misfire_runtime.errors import DiskFullError, SpoolError
from misfire_runtime.messages import (
    Clock,
    Counters,
    Declined,
    Offer,
    Rejected,
    Stored,
    Trigger,
    decode,
    encode,
)
from misfire_runtime.spool import RESUME, Spool
from misfire_runtime.spool import files as spool_files
from misfire_runtime.spool.ballast import BALLAST_BYTES
from misfire_runtime.spool.files import SampleFiles
from misfire_runtime.spool.inspection import rejected
from misfire_runtime.spool.schema import MIGRATIONS, connect
from proving_ground.services import missing, need_root


def offer_of(
    payload: bytes, *, priority: int = 5, percentile: float = 0.9, random_stream: bool = False
) -> Offer:
    return Offer(
        id=hashlib.sha256(payload).hexdigest(),
        vehicle="car",
        size=len(payload),
        captured_at=Clock(wall=1.0, monotonic=1.0, boot_id="boot"),
        bundle="b@1",
        scores={"entropy": 0.5},
        percentiles={"entropy": percentile},
        trigger=Trigger(name="t", random=random_stream),
        priority=priority,
    )


def payload_of(number: int, size: int = 1000) -> bytes:
    return random.Random(number).randbytes(size)


def put(spool: Spool, number: int, *, size: int = 1000, **fields: object) -> str:
    payload = payload_of(number, size)
    offer = offer_of(payload, **fields)  # type: ignore[arg-type]
    spool.add(payload, offer)
    return offer.id


def balanced(books: Counters) -> bool:
    return books.captured == books.stored + books.pending + books.declined + books.rejected + books.evicted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_keeps_bytes_and_offers_across_restarts(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        sample = put(spool, 1, size=200_000)
        assert spool.session == 1
    with Spool(folder, reserve_bytes=0) as spool:
        (pending,) = spool.next_offers(10)
        whole = b"".join(spool.read(sample, at, 65536) or b"" for at in range(0, 200_000, 65536))
        assert pending.id == sample and whole == payload_of(1, 200_000)
        assert spool.read(sample, 199_990, 100) == whole[-10:]
        assert spool.read(sample, 200_000, 100) == b""
        assert spool.session == 2


def test_knows_what_is_pending_or_settled(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        payload = payload_of(1)
        assert spool.add(payload, offer_of(payload))
        assert not spool.add(payload, offer_of(payload))
        assert spool.settle(offer_of(payload).id, Stored(id=offer_of(payload).id))
        assert not spool.settle(offer_of(payload).id, Stored(id=offer_of(payload).id))
        assert not spool.add(payload, offer_of(payload))
        assert spool.counters().captured == spool.counters().stored == 1


def test_refuses_a_payload_that_is_not_its_offer(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool, pytest.raises(SpoolError, match="hash"):
        spool.add(b"other bytes", offer_of(payload_of(1)))


def test_books_verdicts_with_their_reasons(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(4)]
        news = spool.settle_many(
            [
                Stored(id=ids[0]),
                Declined(id=ids[1], reason="quota"),
                Rejected(id=ids[2], reason="not an image"),
                Stored(id="f" * 64),
            ]
        )
        books = spool.counters()
        assert len(news) == 3
        assert (books.stored, books.declined, books.rejected, books.pending) == (1, 1, 1, 1)
        assert balanced(books) and books.bytes_stored == 1000
        assert {(line.verdict, line.reason) for line in spool.account()} == {
            ("declined", "quota"),
            ("rejected", "not an image"),
        }


def test_offers_by_priority_but_lets_nothing_starve(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        low = put(spool, 0, priority=4, size=10)
        high = put(spool, 1, priority=9, size=10)
        assert [p.id for p in spool.next_offers(2)] == [high, low]
        assert [p.id for p in spool.next_offers(2, skip={high})] == [low]
        assert [p.id for p in spool.next_offers(2, min_priority=5)] == [high]
        spool._ledger._sql.execute("UPDATE sqlite_sequence SET seq = seq + 2600 WHERE name = 'samples'")
        late = put(spool, 2, priority=9, size=10)
        assert [p.id for p in spool.next_offers(3)] == [high, low, late]


def test_evicts_the_least_worthy_and_accounts_for_it(folder: Path) -> None:
    with Spool(folder, max_bytes=16_000, reserve_bytes=0) as spool:
        first = put(spool, 0, priority=2, percentile=0.9)
        worst = put(spool, 1, priority=2, percentile=0.1)
        unbiased = put(spool, 2, priority=2, percentile=0.0, random_stream=True)
        for number in range(3, 30):
            put(spool, number, priority=5)
        left = {p.id for p in spool.next_offers(100)}
        books = spool.counters()
        assert not left & {first, worst, unbiased}
        assert balanced(books) and books.evicted > 0 and books.captured == 30
        assert spool.pending_bytes() <= 16_000
        lines = [line for line in spool.account() if line.verdict == "evicted"]
        assert sum(line.samples for line in lines) == books.evicted
        assert len(list((folder / "samples").iterdir())) == books.pending


def test_evicts_the_newcomer_where_all_else_is_worth_more(folder: Path) -> None:
    with Spool(folder, max_bytes=4_000, reserve_bytes=0) as spool:
        kept = [put(spool, n, priority=8) for n in range(2)]
        put(spool, 5, priority=1)
        assert {p.id for p in spool.next_offers(9)} == set(kept)
        assert spool.counters().evicted == 1 and balanced(spool.counters())


def test_an_evicted_sample_that_the_fleet_has_after_all_is_booked_as_stored(folder: Path) -> None:
    with Spool(folder, max_bytes=2_000, reserve_bytes=0) as spool:
        gone = put(spool, 0)
        put(spool, 1)
        assert spool.counters().evicted == 1
        assert spool.settle(gone, Stored(id=gone))
        assert (spool.counters().evicted, spool.counters().stored) == (0, 1)
        assert balanced(spool.counters())


def test_a_damaged_file_is_quarantined_and_does_not_block_the_rest(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        bad, good = put(spool, 0), put(spool, 1)
        file = folder / "samples" / bad
        data = bytearray(file.read_bytes())
        data[500] ^= 1
        file.write_bytes(data)
        assert spool.read(bad, 0, 100) is None
        assert spool.read(good, 0, 100) == payload_of(1)[:100]
        assert [p.id for p in spool.next_offers(9)] == [good]
        assert (folder / "quarantine" / bad).exists()
        assert spool.counters().rejected == 1 and balanced(spool.counters())


@pytest.mark.parametrize("damage", ["missing", "short", "stray", "temporary"])
def test_repairs_itself_when_files_and_rows_disagree(folder: Path, damage: str) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        victim, other = put(spool, 0), put(spool, 1)
    file = folder / "samples" / victim
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "stray":
        (folder / "samples" / ("0" * 64)).write_bytes(b"left by a crash before the commit")
    else:
        (folder / "tmp" / "half").write_bytes(b"half")
    with Spool(folder, reserve_bytes=0) as spool:
        books = spool.counters()
        expected = {other} if damage in ("missing", "short") else {victim, other}
        assert {p.id for p in spool.next_offers(9)} == expected
        assert balanced(books) and books.captured == 2
        assert {f.name for f in (folder / "samples").iterdir()} == expected
        assert not list((folder / "tmp").iterdir())


def test_a_damaged_database_is_rebuilt_from_the_files(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = {put(spool, n, priority=n) for n in range(5)}
    database = folder / "spool.sqlite"
    database.write_bytes(b"this is no database" * 100)
    (folder / "samples" / "strange").write_bytes(b"whose?")
    with Spool(folder, reserve_bytes=0) as spool:
        found = spool.next_offers(9)
        assert {p.id for p in found} == ids
        assert sorted(p.priority for p in found) == list(range(5))
        assert spool.counters().captured == 5 and balanced(spool.counters())
        names = {f.name.split(".")[0] for f in (folder / "quarantine").iterdir()}
        assert names == {"spool", "strange"}


def test_migrates_an_older_schema_and_refuses_a_newer_one(folder: Path) -> None:
    folder.mkdir()
    connect(folder / "spool.sqlite", migrations=MIGRATIONS[:1]).close()
    with Spool(folder, reserve_bytes=0) as spool:
        put(spool, 0)
    raw = sqlite3.connect(folder / "spool.sqlite")
    assert raw.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(SpoolError, match="schema 99"):
        Spool(folder, reserve_bytes=0)
    assert len(list((folder / "samples").iterdir())) == 1


def test_one_process_at_a_time(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0), pytest.raises(SpoolError, match="in use"):
        Spool(folder, reserve_bytes=0)
    Spool(folder, reserve_bytes=0).close()


def test_a_second_process_leaves_what_the_first_is_writing_alone(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0):
        half = folder / "tmp" / "half"
        half.write_bytes(b"being written")
        with pytest.raises(SpoolError, match="in use"):
            Spool(folder, reserve_bytes=0)
        assert half.exists()


def test_a_disk_below_its_reserve_evicts_or_refuses_and_keeps_nothing_half(folder: Path) -> None:
    with Spool(folder, reserve_bytes=1 << 60) as spool:
        with pytest.raises(DiskFullError, match="reserve"):
            put(spool, 0)
        assert spool.counters() == Counters()
        assert not list((folder / "samples").iterdir()) and not list((folder / "tmp").iterdir())


def test_a_disk_that_fills_in_mid_file_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def write(self, handle: int, data: memoryview) -> int:
            os.write(handle, data[:10])
            raise OSError(28, "No space left on device")

    with Spool(folder, reserve_bytes=0) as spool:
        put(spool, 0)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", FullDisk())
            with pytest.raises(DiskFullError):
                put(spool, 1)
        assert spool.counters().captured == 1
        assert len(list((folder / "samples").iterdir())) == 1 and not list((folder / "tmp").iterdir())
        put(spool, 1)
        assert spool.counters().captured == 2


def test_on_a_really_full_file_system_it_says_so_and_goes_on_afterwards(tmp_path: Path) -> None:
    need_root("a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        missing("a small file system", "run where mounting is allowed (CAP_SYS_ADMIN)")
    try:
        with Spool(mount / "spool", reserve_bytes=0) as spool:
            taken = 0
            with pytest.raises(DiskFullError):
                for number in range(1000):
                    payload = payload_of(number, 30_000)
                    spool._files.write(
                        offer_of(payload).id, payload, b"{}"
                    )  # fills the disk behind the books
            for file in list((mount / "spool" / "samples").iterdir())[:10]:
                file.unlink()
            for number in range(2000, 2100):
                try:
                    put(spool, number, size=30_000)
                    taken += 1
                except DiskFullError:
                    break
            books = spool.counters()
            assert balanced(books) and books.captured >= taken > 0
        with Spool(mount / "spool", reserve_bytes=0) as spool:
            assert spool.counters().captured == books.captured and balanced(spool.counters())
            assert spool.counters().rejected == 0
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _steps_until_survival(folder: Path, act: Callable[[Spool], None], check: Callable[[Spool], None]) -> int:
    """Forks a child that runs `act` and is killed at its n-th step, for n = 0, 1, ... until it survives."""
    for steps in range(500):
        pid = os.fork()
        if pid == 0:
            try:
                with Spool(folder, max_bytes=8_000, reserve_bytes=0) as spool:
                    left = [steps]

                    def trace(
                        frame: object, event: str, argument: object, left: list[int] = left
                    ) -> Callable[..., object] | None:
                        if "misfire_runtime/spool" not in frame.f_code.co_filename:  # type: ignore[attr-defined]
                            return None
                        if event == "line":
                            left[0] -= 1
                            if left[0] < 0:
                                os.kill(os.getpid(), signal.SIGKILL)
                        return trace

                    sys.settrace(trace)
                    act(spool)
                    sys.settrace(None)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        with Spool(folder, max_bytes=8_000, reserve_bytes=0) as spool:
            assert balanced(spool.counters()), (steps, spool.counters())
            pending = {p.id for p in spool.next_offers(100)}
            assert {f.name for f in (folder / "samples").iterdir()} == pending
            assert not list((folder / "tmp").iterdir())
            for sample in pending:
                data = spool.read(sample, 0, 10_000)
                assert data is not None and hashlib.sha256(data).hexdigest() == sample
            check(spool)
        if not os.WIFSIGNALED(status):
            return steps
    raise AssertionError("never survived")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_line_of_adding_it_has_the_sample_whole_or_not_at_all(folder: Path) -> None:
    number = [0]

    def act(spool: Spool) -> None:
        put(spool, number[0], size=3000)

    def check(spool: Spool) -> None:
        assert spool.counters().rejected == 0
        number[0] += 1

    assert _steps_until_survival(folder, act, check) > 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_line_of_rejecting_and_resuming_the_sample_is_still_there(folder: Path) -> None:
    sample = offer_of(payload_of(1, 2000)).id

    def act(spool: Spool) -> None:
        if spool.counters().pending:
            spool.settle(sample, Rejected(id=sample, reason="r"))
        else:
            spool.resume()

    def check(spool: Spool) -> None:
        books = spool.counters()
        assert books.captured == 1 and books.pending + books.rejected == 1
        assert len(rejected(spool.path)) == books.rejected

    with Spool(folder, reserve_bytes=0) as spool:
        put(spool, 1, size=2000)
    assert _steps_until_survival(folder, act, check) > 20
    assert _steps_until_survival(folder, act, check) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_line_of_settling_it_has_settled_or_not(folder: Path) -> None:
    def act(spool: Spool) -> None:
        (first,) = spool.next_offers(1)
        spool.settle(first.id, Stored(id=first.id))

    def check(spool: Spool) -> None:
        assert spool.counters().rejected == 0
        if spool.counters().pending < 2:
            put(spool, 100 + spool.counters().captured, size=2000)

    with Spool(folder, reserve_bytes=0) as spool:
        put(spool, 1, size=2000)
        put(spool, 2, size=2000)
    assert _steps_until_survival(folder, act, check) > 20


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "stored", "declined", "rejected", "late", "resume", "reopen"]),
            st.integers(0, 12),
        ),
        max_size=40,
    )
)
def test_the_books_balance_after_any_sequence(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, max_bytes=6_000, reserve_bytes=0)
    for step, number in steps:
        sample = offer_of(payload_of(number, 100 * (number + 1))).id
        if step == "add":
            put(spool, number, size=100 * (number + 1), priority=number % 10, percentile=number / 12)
        elif step in ("stored", "late"):
            spool.settle(sample, Stored(id=sample))
        elif step == "declined":
            spool.settle(sample, Declined(id=sample, reason="r"))
        elif step == "rejected":
            spool.settle(sample, Rejected(id=sample, reason="r"))
        elif step == "resume":
            spool.resume()
        else:
            spool.close()
            spool = Spool(folder, max_bytes=6_000, reserve_bytes=0)
        assert balanced(spool.counters())
        assert spool.pending_bytes() <= 6_000
    spool.close()


def test_counts_what_is_not_in_the_books_and_refuses_what_is(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        spool.count(frames=3, frames_dropped=1)
        spool.count(frames=2)
        assert spool.counters().frames == 5
        with pytest.raises(SpoolError, match="stored"):
            spool.count(stored=1)
    with Spool(folder, reserve_bytes=0) as spool:
        assert (spool.counters().frames, spool.counters().frames_dropped) == (5, 1)
    with pytest.raises(SpoolError, match="closed"):
        spool.counters()


def test_a_file_that_cannot_be_deleted_is_settled_all_the_same_and_goes_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SampleFiles, sample: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Spool(folder, reserve_bytes=0) as spool:
        sample = put(spool, 1)
        with monkeypatch.context() as patch:
            patch.setattr(SampleFiles, "remove", refuse)
            assert spool.settle(sample, Stored(id=sample))
        assert spool.counters().stored == 1 and balanced(spool.counters())
        assert (folder / "samples" / sample).exists()
    with Spool(folder, reserve_bytes=0) as spool:
        assert not (folder / "samples" / sample).exists()
        assert spool.counters().stored == 1 and spool.counters().pending == 0


def reject(spool: Spool, *samples: str, reason: str = "not an image") -> int:
    return len(spool.settle_many([Rejected(id=sample, reason=reason) for sample in samples]))


def test_ten_rejections_in_a_row_begin_a_hold_that_survives_a_restart(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(30)]
        assert reject(spool, *ids[:6]) == 6
        assert spool.settle(ids[6], Stored(id=ids[6])) and spool.hold is None
        assert reject(spool, *ids[7:16]) == 9 and spool.hold is None
    with Spool(folder, reserve_bytes=0) as spool:
        assert spool.hold is None
        assert reject(spool, ids[16], reason="unstorable") == 1
        assert spool.hold is not None and "unstorable" in spool.hold.reason
        assert reject(spool, *ids[17:20]) == 0, "no rejection is believed after the wave"
        assert spool.settle(ids[17], Stored(id=ids[17])), "what the fleet stored is"
    with Spool(folder, reserve_bytes=0) as spool:
        books = spool.counters()
        assert spool.hold is not None and balanced(books)
        assert (books.rejected, books.stored, books.pending) == (16, 2, 12)
        assert len(list((folder / "samples").iterdir())) == 12


def test_a_wave_within_one_reply_costs_no_more_than_a_wave(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(40)]
        assert reject(spool, *ids) == 10
        assert spool.counters().pending == 30 and balanced(spool.counters())


def test_resuming_offers_the_rejected_samples_again_byte_for_byte(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(12)]
        reject(spool, *ids, reason="unstorable")
        kept = {(each["id"], each["reason"]) for each in rejected(spool.path)}
        assert kept == {(i, "unstorable") for i in ids[:10]}
        assert spool.resume() == 10
        books = spool.counters()
        assert spool.hold is None and rejected(spool.path) == [] and balanced(books)
        assert (books.captured, books.pending, books.rejected) == (12, 12, 0)
        assert {p.id for p in spool.next_offers(20)} == set(ids)
        assert all(spool.read(sample, 0, 1000) == payload_of(n) for n, sample in enumerate(ids))
    with Spool(folder, reserve_bytes=0) as spool:
        assert len(spool.settle_many([Stored(id=sample) for sample in ids])) == 12
        assert spool.counters().stored == 12 and balanced(spool.counters())


def test_samples_that_are_rejected_again_do_not_begin_another_hold(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(10)]
        reject(spool, *ids)
        spool.resume()
        assert reject(spool, *ids) == 10
        assert spool.hold is None and balanced(spool.counters())
        assert len(rejected(spool.path)) == 10, "and are still there"


def test_another_process_asks_the_one_that_has_the_spool_open_to_resume(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        reject(spool, *[put(spool, n) for n in range(10)])
        assert not spool.resume_if_asked()
        (folder / RESUME).touch()
        assert spool.resume_if_asked() and spool.hold is None and not (folder / RESUME).exists()


def test_rejected_files_are_bounded_and_the_oldest_go_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_files, "MAX_REJECTED_BYTES", 6000)
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, n) for n in range(9)]
        reject(spool, *ids)
        kept = [sample["id"] for sample in rejected(spool.path)]
        assert kept == ids[-len(kept) :] and 0 < len(kept) < 9
        assert spool.resume() == len(kept) and balanced(spool.counters())


def test_a_rejected_sample_that_the_fleet_has_after_all_is_booked_as_stored(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        sample = put(spool, 1)
        reject(spool, sample)
        assert spool.settle(sample, Stored(id=sample))
        assert rejected(spool.path) == [] and balanced(spool.counters()) and spool.counters().stored == 1


def test_a_rejected_sample_whose_file_was_not_moved_yet_is_kept_by_the_next_start(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        sample = put(spool, 1)
        reject(spool, sample)
    (folder / "rejected" / sample).rename(folder / "samples" / sample)
    with Spool(folder, reserve_bytes=0) as spool:
        assert [kept["id"] for kept in rejected(spool.path)] == [sample]
        assert spool.counters().rejected == 1 and balanced(spool.counters())


def test_what_is_lost_is_counted_by_reason_and_survives_restarts(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        spool.lose("disk full")
        spool.lose("queue full", 3)
        assert spool.counters().lost == {"disk full": 1, "queue full": 3}
    with Spool(folder, reserve_bytes=0) as spool:
        spool.lose("disk full", 2)
        for number in range(1000):
            spool.lose(f"reason {number}")
        lost = spool.counters().lost
        assert lost["disk full"] == 3 and decode(Counters, encode(spool.counters())).lost == lost
    with Spool(folder, reserve_bytes=0) as spool:
        lost = spool.counters().lost
        assert sum(lost.values()) == 1006 and len(lost) <= 32 and lost["other"] > 900


def test_the_ballast_comes_back_when_the_disk_has_room(folder: Path) -> None:
    ballast = folder / "ballast"
    with Spool(folder, reserve_bytes=0):
        assert ballast.stat().st_size == BALLAST_BYTES
    ballast.unlink()
    with Spool(folder, reserve_bytes=1 << 60):
        assert not ballast.exists(), "it never takes what is reserved for others"
    with Spool(folder, reserve_bytes=0):
        assert ballast.stat().st_size == BALLAST_BYTES


def test_reasons_without_end_do_not_make_the_account_longer_without_end(folder: Path) -> None:
    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, number, size=20) for number in range(700)]
        spool.settle_many([Declined(id=sample, reason=f"reason {n}") for n, sample in enumerate(ids)])
        lines = {line.reason: line.samples for line in spool.account()}
        assert len(lines) <= 501 and lines["other"] == 200 and sum(lines.values()) == 700


def test_a_resume_that_the_disk_does_not_let_through_is_an_error_of_the_spool(folder: Path) -> None:
    with Spool(folder) as spool:
        samples = [put(spool, n) for n in range(10)]
        reject(spool, *samples)
        (folder / RESUME).mkdir()
        with pytest.raises(SpoolError, match=r"resume: .*remove it"):
            spool.resume_if_asked()
        (folder / RESUME).rmdir()
        assert len(spool.next_offers(20)) == 10
        reject(spool, *samples)
        in_the_way = folder / "samples" / put_rejected(spool, 99)
        in_the_way.mkdir()
        with pytest.raises(SpoolError, match="cannot be taken back"):
            spool.resume()
        in_the_way.rmdir()
        assert balanced(spool.counters())


def put_rejected(spool: Spool, number: int) -> str:
    sample = put(spool, number)
    reject(spool, sample)
    return sample


def test_a_resume_that_cannot_be_booked_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    with Spool(folder, reserve_bytes=0) as spool:
        ids = [put(spool, number) for number in range(10)]
        reject(spool, *ids)
        with monkeypatch.context() as patch, pytest.raises(SpoolError, match="I/O"):
            patch.setattr(spool._ledger, "offer_again", fail)
            spool.resume()
        assert spool.hold is not None and len(rejected(folder)) == 10 and balanced(spool.counters())
        assert not list((folder / "samples").iterdir())
        assert spool.resume() == 10
