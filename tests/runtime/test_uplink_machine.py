"""The uplink's decisions under any order of events: hypothesis, a real spool, a model of the fleet."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from misfire_runtime.messages import (
    Busy,
    Clock,
    Declined,
    Offer,
    Rejected,
    Send,
    Stored,
    Trigger,
    Verdict,
)
from misfire_runtime.spool import Pending, Spool
from misfire_runtime.uplink.bandwidth import TokenBucket
from misfire_runtime.uplink.machine import Action, Machine, PublishChunk, PublishOffer, Reconnect, Settle
from misfire_runtime.uplink.settings import UplinkSettings

FAST = UplinkSettings(
    max_samples=4,
    max_bytes=4000,
    reoffer_s=1.0,
    reoffer_max_s=4.0,
    ack_timeout_s=5.0,
    stale_s=3.0,
)


def payload_of(number: int) -> bytes:
    return random.Random(number).randbytes(100 + 1400 * (number % 4))


def offer_of(payload: bytes, priority: int = 5, wall: float = 1.0) -> Offer:
    return Offer(
        id=hashlib.sha256(payload).hexdigest(),
        vehicle="car",
        size=len(payload),
        captured_at=Clock(wall=wall, monotonic=1.0, boot_id="boot"),
        bundle="b@1",
        scores={},
        trigger=Trigger(name="t"),
        priority=priority,
    )


class Fleet:
    """Two collectors over one store, as docs/protocol.md wants them: the least that keeps the rules."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.times_stored = 0
        self.refused: set[str] = set()
        self._partial: dict[tuple[str, str], bytearray] = {}
        self._sizes: dict[str, int] = {}
        self.mood = "willing"

    def hear_offer(self, sample: str, size: int, collector: str) -> list[Verdict]:
        if sample in self.stored:
            return [Stored(id=sample)]
        if self.mood == "busy":
            return [Busy(id=sample, retry_after_s=2.0)]
        if self.mood in ("declining", "rejecting"):
            self.refused.add(sample)
            return [(Declined if self.mood == "declining" else Rejected)(id=sample, reason=self.mood)]
        self._sizes[sample] = size
        part = self._partial.setdefault((collector, sample), bytearray())
        return [Send(id=sample, collector=collector, offset=len(part), chunk_bytes=1024)]

    def hear_chunk(self, sample: str, collector: str, offset: int, data: bytes) -> list[Verdict]:
        part = self._partial.get((collector, sample))
        if part is None or sample in self.stored:
            return []
        if offset > len(part):
            return [Send(id=sample, collector=collector, offset=len(part), chunk_bytes=1024)]
        part[offset:] = data if offset + len(data) > len(part) else part[offset:]
        if len(part) < self._sizes[sample]:
            return []
        del self._partial[(collector, sample)]
        if hashlib.sha256(part).hexdigest() != sample:
            return [Send(id=sample, collector=collector, offset=0, chunk_bytes=1024)]
        self.stored[sample] = bytes(part)
        self.times_stored += 1
        return [Stored(id=sample)]

    def crash(self, collector: str) -> None:
        for key in [key for key in self._partial if key[0] == collector]:
            del self._partial[key]


class FaultyUplink(RuleBasedStateMachine):
    """capture, send, drop, duplicate, reorder, kill, disk full, clock jump, and what belongs to them."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="misfire-machine-"))
        self.fleet = Fleet()
        self.now = 1000.0
        self.numbers = itertools.count()
        self.up: list[tuple[Action, int]] = []
        self.down: list[Verdict] = []
        self.acks: list[int] = []
        self.disk_full = False
        self.wall = 1.0
        self.chosen: dict[str, bytes] = {}
        self._start()

    def _start(self) -> None:
        self.spool = Spool(self.folder, max_bytes=20_000, reserve_bytes=0)
        self.machine = Machine(FAST, TokenBucket(now=self.now), random.Random(1))
        self.offers: dict[str, Pending] = {}
        self.up, self.acks = [], []
        self.machine.connected(self.now)

    @rule()
    def capture(self) -> None:
        number = next(self.numbers)
        payload = payload_of(number)
        offer = offer_of(payload, number % 10, self.wall)
        if not self.disk_full:
            assert self.spool.add(payload, offer)
            self.chosen[offer.id] = payload

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.5, 6.0]))
    def work(self, seconds: float) -> None:
        """Time passes, and the shell does what the machine says."""
        self.now += seconds
        wanted = self.machine.wanted()
        if wanted:
            found = self.spool.next_offers(wanted, skip=self.machine.ids)
            self.offers.update({p.id: p for p in found})
            self.machine.supply(found, self.now)
        for action in self.machine.actions(self.now):
            if isinstance(action, Settle):
                self._settle(action)
            elif isinstance(action, Reconnect):
                self.cut()
                break
            else:
                if isinstance(action, PublishChunk) and self.spool.read(action.id, 0, 1) is None:
                    self.machine.nacked(action.token, self.now)
                    self.machine.discard(action.id)
                    continue
                self.up.append((action, 0))

    def _settle(self, action: Settle) -> None:
        ids = [v.id for v in action.verdicts]
        if self.disk_full:
            self.machine.unsettled(ids, self.now)
        else:
            self.spool.settle_many(action.verdicts)
            self.machine.settled(ids)

    @rule(count=st.integers(1, 8), collector=st.sampled_from(["a", "b"]))
    def send(self, count: int, collector: str) -> None:
        """Messages reach the fleet, the broker acknowledges, the fleet answers."""
        for _ in range(min(count, len(self.up))):
            action, _ = self.up.pop(0)
            self._deliver(action, collector)
            self.acks.append(action.token)  # type: ignore[union-attr]

    def _deliver(self, action: Action, collector: str) -> None:
        if isinstance(action, PublishOffer):
            self.down += self.fleet.hear_offer(action.id, self.offers[action.id].size, collector)
        elif isinstance(action, PublishChunk):
            data = self.spool.read(action.id, action.offset, action.size)
            if data is not None:
                self.down += self.fleet.hear_chunk(action.id, action.collector, action.offset, data)

    @rule(count=st.integers(1, 8))
    def hear(self, count: int) -> None:
        verdicts, self.down = self.down[:count], self.down[count:]
        self.machine.replied(verdicts, self.now)
        for token in self.acks:
            self.machine.acked(token, self.now)
        self.acks.clear()

    @rule(upward=st.booleans(), acked=st.booleans())
    def drop(self, upward: bool, acked: bool) -> None:
        """A message is lost, whether or not the broker had acknowledged it."""
        if upward and self.up:
            action, _ = self.up.pop(0)
            if acked:
                self.machine.acked(action.token, self.now)  # type: ignore[union-attr]
        elif self.down:
            self.down.pop(0)

    @rule(upward=st.booleans())
    def duplicate(self, upward: bool) -> None:
        if upward and self.up:
            self._deliver(self.up[0][0], "a")
        elif self.down:
            self.down.append(self.down[0])

    @rule(seed=st.integers(0, 1000))
    def reorder(self, seed: int) -> None:
        random.Random(seed).shuffle(self.up)
        random.Random(seed).shuffle(self.down)

    @rule()
    def kill(self) -> None:
        """The process dies: what it had in memory is gone, the spool's folder is not."""
        self.spool._ledger._sql.rollback()
        self.spool._ledger.close()
        self.spool._closed = True
        os.close(self.spool._owner)
        self._start()

    @rule()
    def cut(self) -> None:
        """The connection is lost with everything on it, and made anew."""
        self.up.clear()
        self.acks.clear()
        self.machine.disconnected(self.now)
        self.machine.connected(self.now)

    @rule(collector=st.sampled_from(["a", "b"]))
    def collector_dies(self, collector: str) -> None:
        self.fleet.crash(collector)

    @rule(mood=st.sampled_from(["willing", "willing", "busy", "declining", "rejecting"]))
    def fleet_mood(self, mood: str) -> None:
        self.fleet.mood = mood

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.disk_full = full

    @rule(jump=st.sampled_from([-3e8, 3e8]))
    def clock_jump(self, jump: float) -> None:
        """The wall clock jumps: what is captured now says so, and nothing else may notice."""
        self.wall = jump

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "spool"):
            return
        b = self.spool.counters()
        assert b.captured == b.stored + b.pending + b.declined + b.rejected + b.evicted
        assert b.captured == len(self.chosen)

    @invariant()
    def stored_once_and_byte_for_byte(self) -> None:
        if not hasattr(self, "spool"):
            return
        assert self.fleet.times_stored == len(self.fleet.stored)
        assert all(self.chosen[sample] == data for sample, data in self.fleet.stored.items())
        assert self.spool.counters().stored <= len(self.fleet.stored)

    @invariant()
    def never_more_than_allowed_in_hand(self) -> None:
        if hasattr(self, "machine"):
            assert len(self.machine._in_flight) <= FAST.max_handed

    def teardown(self) -> None:
        """The trouble ends, and everything comes to rest."""
        if not hasattr(self, "spool"):
            return
        self.fleet.mood, self.disk_full = "willing", False
        for _ in range(400):
            if not self.spool.counters().pending:
                break
            self.work(1.0)
            self.send(100, "a")
            self.hear(100)
        books = self.spool.counters()
        assert books.pending == 0, (books, self.machine._flights)
        explained = books.declined + books.rejected + books.evicted
        assert len(set(self.chosen) - set(self.fleet.stored)) <= explained
        self.spool.close()
        shutil.rmtree(self.folder)


FaultyUplink.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(280)
class TestFaultyUplink(FaultyUplink.TestCase):  # type: ignore[name-defined,misc]
    """Runs the state machine."""


def machine(*, rate: float = float("inf"), **changes: object) -> Machine:
    chosen = FAST.model_copy(update=changes)
    return Machine(chosen, TokenBucket(rate=rate, burst=1024, now=0.0), random.Random(0))


def pending(number: int, size: int) -> Pending:
    return Pending(f"{number:064x}", size, 5, b"{}")


def chunks(actions: list[Action]) -> list[PublishChunk]:
    return [a for a in actions if isinstance(a, PublishChunk)]


def test_resumes_at_the_offset_the_collector_names() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 4000)], 0.0)
    (offer,) = m.actions(0.0)
    assert isinstance(offer, PublishOffer)
    m.replied([Send(id=offer.id, collector="c", offset=2400, chunk_bytes=1100)], 0.1)
    assert [(c.offset, c.size) for c in chunks(m.actions(0.1))] == [(2400, 1100), (3500, 500)]


def test_a_repeated_send_is_not_obeyed_twice_but_a_gap_is() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 3000)], 0.0)
    m.actions(0.0)
    send = Send(id=f"{1:064x}", collector="c", offset=0, chunk_bytes=1024)
    m.replied([send, send], 0.1)
    assert len(chunks(m.actions(0.1))) == 3
    m.replied([send], 0.2)
    assert not chunks(m.actions(0.2))
    m.replied([Send(id=send.id, collector="c", offset=1024, chunk_bytes=1024)], 0.3)
    assert [c.offset for c in chunks(m.actions(0.3))] == [1024, 2048]


def test_a_send_for_tiny_chunks_is_ignored_unless_the_sample_is_tiny() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 3000), pending(2, 500)], 0.0)
    large, small = (a.id for a in m.actions(0.0))  # type: ignore[union-attr]
    m.replied([Send(id=large, collector="thief", offset=0, chunk_bytes=1)], 0.1)
    m.replied([Send(id=large, collector="thief", offset=1900, chunk_bytes=1023)], 0.1)
    assert chunks(m.actions(0.1)) == [] and (m.ignored, m.small_chunks) == (2, 2)
    m.replied([Send(id=small, collector="c", offset=0, chunk_bytes=500)], 0.2)
    assert [c.size for c in chunks(m.actions(0.2))] == [500]
    m.replied([Send(id=large, collector="c", offset=0, chunk_bytes=1024)], 0.3)
    assert chunks(m.actions(0.3))[0].size == 1024


def test_while_held_nothing_is_offered_but_transfers_go_on() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 2000), pending(2, 2000)], 0.0)
    first, second = (a.id for a in m.actions(0.0))  # type: ignore[union-attr]
    m.replied([Send(id=first, collector="c", offset=0, chunk_bytes=2000)], 0.1)
    m.offering = False
    assert m.wanted() == 0
    assert [c.id for c in chunks(m.actions(0.1))] == [first]
    m.disconnected(0.2)
    m.connected(0.2)
    assert m.actions(0.2) == []
    m.offering = True
    assert [a.id for a in m.actions(0.3)] == [first, second]  # type: ignore[union-attr]


def test_offers_again_by_timer_and_ever_more_patiently() -> None:
    m = machine(ack_timeout_s=1000.0)
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    times = []
    now = 0.0
    while now < 60.0:
        for action in m.actions(now):
            times.append(now)
            m.acked(action.token, now)  # type: ignore[union-attr]
        now += 0.1
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 0.9 < gaps[0] < 5.0 and len(times) > 10 and max(gaps) <= 4.2


def unanswered(m: Machine, *, until: float, ack_after_s: float = 0.0) -> list[tuple[float, str]]:
    """When each offer goes out while the broker acknowledges every message and no collector answers."""
    offered = []
    unacked: list[tuple[float, int]] = []
    for tick in range(int(until * 10)):
        now = tick / 10
        while unacked and unacked[0][0] <= now:
            m.acked(unacked.pop(0)[1], now)
        for action in m.actions(now):
            assert isinstance(action, PublishOffer)
            offered.append((now, action.id))
            unacked.append((now + ack_after_s, action.token))
    return offered


PATIENT = {"reoffer_s": 10.0, "reoffer_max_s": 300.0, "ack_timeout_s": 1000.0, "max_samples": 64}


@pytest.mark.parametrize("ack_after_s", [0.0, 5.0])
def test_an_offer_that_the_broker_lost_is_repeated_soon_and_twice(ack_after_s: float) -> None:
    m = machine(**PATIENT)
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    times = [at for at, _ in unanswered(m, until=120.0, ack_after_s=ack_after_s)]
    first, second, *later = [b - a - ack_after_s for a, b in itertools.pairwise(times)]
    assert 2.0 <= first < 4.2 and 4.0 <= second < 8.2
    assert later and min(later) + ack_after_s >= 10.0


def test_an_offer_that_is_still_on_a_slow_link_is_not_repeated_early() -> None:
    m = machine(**PATIENT)
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    times = [at for at, _ in unanswered(m, until=60.0, ack_after_s=1000.0)]
    assert len(times) > 1 and times[1] >= 10.0


def test_without_a_collector_a_full_window_is_not_repeated_early() -> None:
    m = machine(**PATIENT, max_handed=8)
    m.connected(0.0)
    m.supply([pending(n, 100) for n in range(64)], 0.0)
    offered = unanswered(m, until=10.0, ack_after_s=0.1)
    assert len({sample for _, sample in offered}) == 64 and 64 <= len(offered) <= 64 + 8


def test_busy_waits_as_long_as_it_was_told() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    (offer,) = m.actions(0.0)
    m.replied([Busy(id=offer.id, retry_after_s=30.0)], 0.0)  # type: ignore[union-attr]
    assert m.actions(29.9) == [] or isinstance(m.actions(29.9)[0], Reconnect)


def test_the_byte_window_bounds_what_is_sent_but_one_sample_always_goes() -> None:
    m = machine(max_handed=64)
    m.connected(0.0)
    m.supply([pending(n, 3000) for n in range(3)], 0.0)
    ids = [a.id for a in m.actions(0.0)]  # type: ignore[union-attr]
    m.replied([Send(id=i, collector="c", offset=0, chunk_bytes=1024) for i in ids], 0.0)
    assert {c.id for c in chunks(m.actions(0.0))} == {ids[0]}
    m.replied([Stored(id=ids[0])], 0.1)
    assert {c.id for c in chunks(m.actions(0.1))} == {ids[1]}


def test_a_silent_connection_is_made_anew() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    m.actions(0.0)
    assert isinstance(m.actions(5.1)[-1], Reconnect)


def test_sends_no_faster_than_the_bucket_and_nothing_while_it_is_closed() -> None:
    m = machine(rate=1000.0)
    m.connected(0.0)
    m.supply([pending(1, 50_000)], 0.0)
    m.replied([Send(id=f"{1:064x}", collector="c", offset=0, chunk_bytes=1024)], 0.0)
    sent, now = 0, 0.0
    while now < 20.0:
        for action in m.actions(now):
            if isinstance(action, PublishChunk):
                sent += action.size
                m.acked(action.token, now)
            elif isinstance(action, PublishOffer):
                m.acked(action.token, now)
                m.replied([Send(id=action.id, collector="c", offset=sent, chunk_bytes=1024)], now)
        now = max(now + 0.05, min(m.wake_at(now), now + 0.5))
    assert 10_000 < sent < 22_000
    closed = machine(rate=0.0)
    closed.connected(0.0)
    assert closed.wanted() == 0


def test_a_broker_that_hangs_up_on_large_packets_gets_smaller_ones() -> None:
    m = machine(max_bytes=10**6)
    sizes = []
    for now in range(6):
        m.connected(float(now))
        m.supply([pending(1, 500_000)], float(now))
        m.actions(float(now))
        m.replied([Send(id=f"{1:064x}", collector="c", offset=0, chunk_bytes=120_000)], float(now))
        sizes.append(max(c.size for c in chunks(m.actions(float(now)))))
        m.disconnected(float(now))
    assert sizes[0] == 120_000 and sizes[-1] < 5_000 and sizes == sorted(sizes, reverse=True)


def test_chunks_fit_the_packet_that_the_broker_named() -> None:
    m = machine()
    m.connected(0.0, packet_limit=2048)
    m.supply([pending(1, 5000)], 0.0)
    m.actions(0.0)
    m.replied([Send(id=f"{1:064x}", collector="c" * 64, offset=0, chunk_bytes=120_000)], 0.0)
    assert all(c.size + 340 <= 2048 for c in chunks(m.actions(0.0)))


def test_verdicts_that_could_not_be_booked_are_asked_for_again() -> None:
    m = machine()
    m.connected(0.0)
    m.supply([pending(1, 100)], 0.0)
    (offer,) = m.actions(0.0)
    m.replied([Stored(id=offer.id)], 0.0)  # type: ignore[union-attr]
    (settle,) = m.actions(0.0)
    assert isinstance(settle, Settle)
    m.unsettled([offer.id], 0.0)  # type: ignore[union-attr]
    m.acked(offer.token, 0.0)  # type: ignore[union-attr]
    again = [a for a in m.actions(2.0) if isinstance(a, PublishOffer)]
    assert [a.id for a in again] == [offer.id]  # type: ignore[union-attr]
