"""Verdicts are booked in the background; what goes wrong there is told, and does not end the booking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from misfire_runtime.errors import DiskFullError
from misfire_runtime.messages import Declined, Stored
from misfire_runtime.spool import Spool
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink.verdict_writer import Recorded, VerdictWriter
from proving_ground.faults.samples import make_payload


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool", reserve_bytes=0) as opened:
        yield opened


def put(spool: Spool, number: int) -> str:
    payload = make_payload("writer", number)
    offer = make_offer(payload, number=number)
    assert spool.add(payload, offer)
    return offer.id


def test_verdicts_are_booked_and_told_once(spool: Spool) -> None:
    ids = [put(spool, number) for number in range(40)]
    awake = threading.Event()
    writer = VerdictWriter(spool, awake.set)
    for sample in ids[:39]:
        writer.put([Stored(id=sample)], bytes_sent=10)
    writer.put([Declined(id=ids[39], reason="enough"), Stored(id="f" * 64)])
    writer.close()
    results = writer.results()
    told = [verdict.id for booked in results for verdict in booked.verdicts]
    news = [verdict.id for booked in results for verdict in booked.news or ()]
    assert told == [*ids, "f" * 64] and sorted(news) == sorted(ids) and awake.is_set()
    books = spool.counters()
    assert (books.stored, books.declined, books.pending, books.bytes_sent) == (39, 1, 0, 390)
    assert writer.results() == []
    writer.close()


@pytest.mark.parametrize("error", [DiskFullError("no room"), RuntimeError("unforeseen")])
def test_a_failure_is_told_and_the_next_verdicts_are_booked(
    spool: Spool, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(spool, 1), put(spool, 2)
    awake = threading.Event()

    def fail(*_: object) -> None:
        raise error

    writer = VerdictWriter(spool, awake.set)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "settle_many", fail)
        writer.put([Stored(id=first)])
        assert awake.wait(10)
        assert writer.results() == [Recorded((Stored(id=first),), None)]
    writer.put([Stored(id=second)])
    writer.close()
    assert [booked.news for booked in writer.results()] == [(Stored(id=second),)]
    assert spool.counters().pending == 1
