"""Reassembly and the outbox as properties: any order, any repetition, any loss; memory within its budget."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfire_fleet.collector.broker.outbox import MAX_IN_FLIGHT, Outbox
from misfire_fleet.collector.transfers import Ask, Transfer, Transfers
from misfire_runtime.messages import Offer, Reply, Send, Stored, decode
from misfire_runtime.testing import make_offer

CHUNK = 7


def opened(transfers: Transfers, data: bytes, *, vehicle: str = "car-1", now: float = 0.0) -> Transfer:
    transfer = transfers.open(make_offer(data, vehicle=vehicle), now)
    assert isinstance(transfer, Transfer)
    return transfer


@given(
    data=st.binary(min_size=1, max_size=100),
    order=st.lists(st.integers(min_value=0, max_value=110), max_size=60),
    sizes=st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=60),
)
def test_whatever_order_chunks_come_in_only_the_whole_sample_comes_out(
    data: bytes, order: list[int], sizes: list[int]
) -> None:
    transfers = Transfers(max_transfers=4, max_bytes=10_000)
    transfer = opened(transfers, data)
    completed = 0
    for step, at in enumerate([*order, *range(0, len(data), CHUNK)]):
        size = sizes[step % len(sizes)] if step < len(order) else CHUNK
        event = transfers.chunk(
            "car-1", transfer.offer.id, min(at, len(data)), data[at : at + size], float(10 * step)
        )
        completed += event is transfer
        if isinstance(event, Ask):
            assert event.offset == transfer.received < at
        assert event != "flood"
    assert completed == 1
    assert transfer.take() == data


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "chunk", "close", "sweep"]),
            st.integers(0, 3),
            st.integers(0, 5),
            st.integers(0, 40),
        ),
        max_size=80,
    )
)
def test_what_is_reserved_is_always_what_is_open_and_within_the_budget(
    steps: list[tuple[str, int, int, int]],
) -> None:
    transfers = Transfers(max_transfers=5, max_bytes=100)
    payloads = [bytes([n]) * (10 + 8 * n) for n in range(6)]
    for clock, (what, car, number, amount) in enumerate(steps):
        data, vehicle = payloads[number], f"car-{car}"
        key = (vehicle, hashlib.sha256(data).hexdigest())
        if what == "open":
            transfers.open(make_offer(data, vehicle=vehicle), float(clock))
        elif what == "chunk":
            transfers.chunk(*key, amount, data[amount : amount + 9], float(clock))
        elif what == "close":
            transfers.close(key)
        else:
            transfers.stalled(float(clock), stall_s=2.0, abandon_s=float(amount), min_bytes_per_s=1.0)
        assert len(transfers) <= 5
        assert 0 <= transfers.reserved_bytes <= 100
        assert (len(transfers) == 0) == (transfers.reserved_bytes == 0)
        per_car = [
            sum(transfers.find(f"car-{c}", hashlib.sha256(p).hexdigest()) is not None for p in payloads)
            for c in range(4)
        ]
        assert sum(per_car) == len(transfers)
        assert max(per_car) <= 2, "one vehicle holds at most half"


def test_a_gap_is_asked_for_once_however_many_chunks_lie_behind_it() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=1000)
    data = bytes(range(100))
    sample = opened(transfers, data).offer.id
    transfers.chunk("car-1", sample, 0, data[:10], 0.1)
    events = [transfers.chunk("car-1", sample, at, data[at : at + 10], 0.2) for at in range(20, 100, 10)]
    assert [event for event in events if event is not None] == [Ask("car-1", sample, 10)]
    assert transfers.chunk("car-1", sample, 50, data[50:60], 5.0) == Ask("car-1", sample, 10)


def test_a_stall_is_asked_for_less_and_less_often_until_it_is_given_up() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=1000)
    sample = opened(transfers, b"x" * 50).offer.id
    asked = []
    for second in range(1, 200):
        asks, abandoned = transfers.stalled(
            float(second), stall_s=10.0, abandon_s=120.0, min_bytes_per_s=256.0
        )
        asked += [second for _ in asks]
        if abandoned:
            assert abandoned == [("car-1", sample)]
            assert second == 121
            break
    assert asked == [11, 32, 73]
    assert len(transfers) == 0


def test_a_transfer_that_is_being_committed_is_never_swept() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=1000)
    transfer = opened(transfers, b"x" * 10)
    assert transfers.chunk("car-1", transfer.offer.id, 0, b"x" * 10, 0.0) is transfer
    assert transfers.chunk("car-1", transfer.offer.id, 0, b"x" * 10, 0.0) is None
    assert transfers.stalled(1e9, stall_s=1.0, abandon_s=1.0, min_bytes_per_s=1.0) == ([], [])


LIMITS = {"stall_s": 15.0, "abandon_s": 120.0, "min_bytes_per_s": 256.0}


def sized(number: int, size: int, *, vehicle: str = "car-1") -> Offer:
    return make_offer(b"%d" % number, vehicle=vehicle, size=size)


def test_vehicles_that_hold_all_they_can_leave_room_for_another() -> None:
    mib = 1024 * 1024
    transfers = Transfers(max_transfers=256, max_bytes=256 * mib)
    for hog in range(4):
        taken = [transfers.open(sized(n, 32 * mib, vehicle=f"hog-{hog}"), 0.0) for n in range(8)]
        assert taken[-1] == ("share" if hog < 3 else "full")
    assert transfers.reserved_bytes == 224 * mib
    assert isinstance(transfers.open(sized(99, mib, vehicle="honest"), 0.0), Transfer)
    assert transfers.full_s(5.0) == 0.0
    assert transfers.open(sized(100, 32 * mib, vehicle="large"), 6.0) == "full"
    assert transfers.full_s(8.0) == 2.0


def test_offering_again_prolongs_nothing() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=10_000_000)
    offer = sized(1, 1_000_000)
    given_up_at = None
    for second in range(0, 300, 10):
        if given_up_at is None:
            transfers.open(offer, float(second))
            _, given_up = transfers.stalled(float(second), **LIMITS)
            given_up_at = second if given_up else None
    assert given_up_at == 130


@pytest.mark.parametrize(("bytes_per_s", "survives"), [(100, False), (1000, True)])
def test_a_trickle_of_bytes_holds_no_memory_and_a_slow_link_gets_through(
    bytes_per_s: int, *, survives: bool
) -> None:
    transfers = Transfers(max_transfers=4, max_bytes=10_000_000)
    data = bytes(1_000_000)
    transfer = opened(transfers, data)
    for second in range(0, 1000, 10):
        at = second * bytes_per_s
        payload = data[at : at + 10 * bytes_per_s]
        event = transfers.chunk("car-1", transfer.offer.id, at, payload, float(second))
        transfers.stalled(float(second), **LIMITS)
    assert (event is transfer) == survives
    assert (len(transfers) == 1) == survives


def test_an_offer_that_corrects_its_size_begins_again() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=1000)
    data = bytes(range(50))
    wrong = transfers.open(make_offer(data, size=20), 0.0)
    assert transfers.open(make_offer(data, size=20), 1.0) is wrong
    right = opened(transfers, data, now=2.0)
    assert right is not wrong
    assert (len(transfers), transfers.reserved_bytes) == (1, 50)
    assert transfers.chunk("car-1", right.offer.id, 0, data, 3.0) is right


def test_bytes_behind_the_declared_size_are_cut_off() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=1000)
    data = bytes(range(50))
    transfer = opened(transfers, data)
    assert transfers.chunk("car-1", transfer.offer.id, 0, data + b"more", 0.0) is transfer
    assert transfer.excess
    assert transfer.take() == data


def test_small_chunks_cost_no_more_memory_than_their_bytes() -> None:
    data = bytes(400_000)
    transfers = Transfers(max_transfers=4, max_bytes=10_000_000)
    transfer = opened(transfers, data)
    tracemalloc.start()
    at = 0
    while (
        at < len(data) and transfers.chunk("car-1", transfer.offer.id, at, data[at : at + 300], 0.0) is None
    ):
        at += 300
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert at > 390_000
    assert peak < 1.5 * len(data)


def test_a_flood_of_chunks_ends_the_transfer_and_costs_little_from_then_on() -> None:
    transfers = Transfers(max_transfers=4, max_bytes=10_000_000)
    transfer = opened(transfers, bytes(100_000))
    events = [transfers.chunk("car-1", transfer.offer.id, 2 * at, b"\0\0", 0.0) for at in range(50_000)]
    assert events.index("flood") == transfer.max_chunks < 700


class Wire:
    """Takes what the outbox publishes; the ticket is its number."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[str]]] = []
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def publish(self, vehicle: str, reply: bytes) -> int:
        self.sent.append((vehicle, [verdict.id for verdict in decode(Reply, reply).verdicts]))
        return len(self.sent) - 1

    def ids(self) -> list[str]:
        return [key for _, ids in self.sent for key in ids]


def sample_id(number: int) -> str:
    return f"{number:064x}"


def test_a_vehicle_has_one_reply_under_way_and_the_rest_is_merged() -> None:
    wire = Wire()
    outbox = Outbox(wire.wake)
    outbox.put("car-1", Stored(id=sample_id(0)))
    outbox.send(wire.publish)
    for number in range(1, 250):
        outbox.put("car-1", Stored(id=sample_id(number)))
    outbox.send(wire.publish)
    assert len(wire.sent) == 1 and wire.wakes == 250
    for ticket in range(4):
        outbox.acknowledged(ticket)
        outbox.send(wire.publish)
    assert [len(ids) for _, ids in wire.sent] == [1, 100, 100, 49]
    assert outbox.pending == 0 and outbox.wait_empty(timeout_s=0)


def test_the_outbox_hands_over_few_messages_whatever_the_number_of_vehicles() -> None:
    wire = Wire()
    outbox = Outbox(wire.wake)
    for number in range(100):
        outbox.put(f"car-{number}", Stored(id=sample_id(number)))
    outbox.send(wire.publish)
    assert [vehicle for vehicle, _ in wire.sent] == [f"car-{number}" for number in range(MAX_IN_FLIGHT)]
    acknowledged = 0
    while outbox.pending:
        outbox.acknowledged(acknowledged)
        acknowledged += 1
        outbox.send(wire.publish)
    assert wire.ids() == [sample_id(number) for number in range(100)]


def test_verdicts_wait_while_the_broker_is_away_and_the_last_word_wins() -> None:
    wire = Wire()
    outbox = Outbox(wire.wake)
    outbox.put("car-1", Send(id=sample_id(1), collector="c"))
    outbox.put("car-1", Stored(id=sample_id(1)))
    outbox.put("car-2", Stored(id=sample_id(2)))
    assert outbox.pending == 3 and not outbox.wait_empty(timeout_s=0.05)
    outbox.send(wire.publish)
    assert wire.sent == [("car-1", [sample_id(1)]), ("car-2", [sample_id(2)])]


def test_what_was_in_flight_when_the_connection_was_lost_goes_out_again() -> None:
    wire = Wire()
    outbox = Outbox(wire.wake)
    outbox.put("car-1", Stored(id=sample_id(1)))
    outbox.send(wire.publish)
    outbox.lost()
    outbox.send(wire.publish)
    assert wire.ids() == [sample_id(1)] * 2
    outbox.acknowledged(1)
    assert outbox.pending == 0


def test_the_outbox_is_bounded_and_counts_what_it_drops() -> None:
    wire = Wire()
    outbox = Outbox(wire.wake, max_verdicts=10)
    for number in range(25):
        outbox.put(f"car-{number % 2}", Stored(id=sample_id(number)))
    outbox.put("car-9", Stored(id=sample_id(99)))
    outbox.send(wire.publish)
    assert outbox.dropped == 16 and len(wire.ids()) == 10
