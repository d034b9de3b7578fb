"""The uplink's decisions, without a network, a thread or a clock: events in, actions out.

supply -> NEW --offer--> OFFERED --send--> READY --room--> SENDING --last byte--> SENT --stored--> SETTLING
            ^______________|__ timers: no answer, no progress __|______________|      busy -> RESTING

Every message may be lost, repeated or reordered. Only final verdicts count, and they are idempotent;
what else goes wrong ends at a timer that offers again, and the collector's answer says where to continue.
`now` is monotonic seconds, given by the caller.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from misfire_runtime.messages import (
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    Busy,
    Declined,
    Rejected,
    Send,
    Stored,
)
from misfire_runtime.mqtt.backoff import floor_jitter
from misfire_runtime.spool import Pending, Terminal
from misfire_runtime.uplink.bandwidth import TokenBucket
from misfire_runtime.uplink.settings import UplinkSettings

_TOPIC_BYTES = 340
"""Room for a data topic and an MQTT header: two names of 64, an id of 64, and what is fixed."""
_REPEAT_S = 0.8
"""The same `send` within this time is a repetition; a collector asks for a gap at most once per second."""
_GROW_AFTER = 32
_EARLY_REOFFERS = 2
_EARLY_WAITING = 8
"""With more offers unanswered no collector is there: all vehicles would repeat all of their windows."""


class Phase(enum.Enum):
    """Where a sample's flight stands."""

    NEW = "new"
    OFFERED = "offered"
    READY = "ready"
    SENDING = "sending"
    SENT = "sent"
    RESTING = "resting"
    SETTLING = "settling"


@dataclass(slots=True)
class Flight:
    """A sample within the window."""

    id: str
    size: int
    offer_bytes: int
    phase: Phase = Phase.NEW
    collector: str = ""
    offset: int = 0
    chunk: int = 0
    asked_at: float = -math.inf
    asked_offset: int = -1
    touched_at: float = 0.0
    deadline: float = math.inf
    attempts: int = 0
    unacked: int = 0


@dataclass(frozen=True, slots=True)
class PublishOffer:
    """Hand the sample's offer to the broker under this token."""

    token: int
    id: str


@dataclass(frozen=True, slots=True)
class PublishChunk:
    """Hand `size` bytes from `offset` on, of `total`, to the broker, addressed to `collector`."""

    token: int
    id: str
    collector: str
    offset: int
    size: int
    total: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Book these verdicts, then call `settled` or `unsettled`."""

    verdicts: tuple[Terminal, ...]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """The connection looks alive and is not: make a new one, then call `disconnected`."""

    reason: str


Action = PublishOffer | PublishChunk | Settle | Reconnect


@dataclass(frozen=True, slots=True)
class _InFlight:
    id: str
    size: int
    chunk: bool
    at: float


class Machine:
    """One vehicle's uplink. Not thread-safe: one loop owns it."""

    def __init__(self, settings: UplinkSettings, bucket: TokenBucket, rng: random.Random) -> None:
        self._settings = settings
        self._bucket = bucket
        self._rng = rng
        self._flights: dict[str, Flight] = {}
        self._in_flight: dict[int, _InFlight] = {}
        self._verdicts: dict[str, Terminal] = {}
        self._token = 0
        self._connected = False
        self._packet_limit: int | None = None
        self._chunk_limit = MAX_CHUNK_BYTES
        self._acked_chunks = 0
        self._token_wait = math.inf
        self.ignored = 0
        """Verdicts that called for nothing: of samples that are not in the window, or repeated."""
        self.small_chunks = 0
        """`send`s that were ignored because they asked for less than MIN_CHUNK_BYTES at a time."""
        self.reoffers = 0
        """Offers that were sent before."""
        self.offering = True
        """False stops offers; transfers that are under way go on, and verdicts count."""

    # ---- what the shell asks

    @property
    def ids(self) -> Collection[str]:
        """Samples that are in the window already."""
        return self._flights.keys()

    def wanted(self) -> int:
        """How many more samples the window takes; 0 while offline, held, or while the link is closed."""
        if not self._connected or not self.offering or self._bucket.rate <= 0:
            return 0
        flying = [f for f in self._flights.values() if f.phase is not Phase.SETTLING]
        if sum(f.size for f in flying) >= 2 * self._byte_window():
            return 0
        return max(0, self._settings.max_samples - len(flying))

    def wake_at(self, now: float) -> float:
        """When `actions` should be called next if nothing happens before; inf for never."""
        if not self._connected:
            return math.inf
        times = [f.deadline for f in self._flights.values()]
        if self._in_flight:
            times.append(min(h.at for h in self._in_flight.values()) + self._settings.ack_timeout_s)
        return min([*times, self._token_wait], default=math.inf)

    # ---- what happens

    def connected(self, now: float, *, packet_limit: int | None = None) -> None:
        """The broker accepted us; it takes packets of `packet_limit` bytes (None: it named no limit)."""
        self._connected = True
        self._packet_limit = packet_limit
        self._acked_chunks = 0

    def disconnected(self, now: float) -> None:
        """Whatever was under way may be lost: every flight starts again with its offer, in the same order."""
        if any(h.chunk for h in self._in_flight.values()) and self._acked_chunks == 0:
            # A broker of MQTT 3.1.1 does not name its packet limit; it hangs up. So does a bad link.
            self._chunk_limit = max(MIN_CHUNK_BYTES, self._chunk_limit // 2)
        self._connected = False
        self._in_flight.clear()
        for flight in self._flights.values():
            flight.unacked = 0
            if flight.phase not in (Phase.SETTLING, Phase.RESTING):
                self._reset(flight)

    def supply(self, samples: Iterable[Pending], now: float) -> None:
        """Takes samples into the window, in the order in which they are to go."""
        for sample in samples:
            if sample.id not in self._flights:
                self._flights[sample.id] = Flight(sample.id, sample.size, len(sample.offer), touched_at=now)

    def replied(self, verdicts: Sequence[Send | Stored | Declined | Rejected | Busy], now: float) -> None:
        """A collector spoke. Verdicts about samples that are not in the window count when they are final."""
        for verdict in verdicts:
            if isinstance(verdict, Stored | Declined | Rejected):
                self._finish(verdict)
            elif verdict.id not in self._flights:
                self.ignored += 1
            elif isinstance(verdict, Send):
                self._send(self._flights[verdict.id], verdict, now)
            else:
                self._back_off(self._flights[verdict.id], verdict.retry_after_s, now)

    def acked(self, token: int, now: float) -> None:
        """The broker has the message. That frees a slot, and means nothing else."""
        sent = self._in_flight.pop(token, None)
        if sent is None:
            return
        if sent.chunk:
            self._acked_chunks += 1
            if self._acked_chunks % _GROW_AFTER == 0:
                self._chunk_limit = min(MAX_CHUNK_BYTES, self._chunk_limit * 2)
        flight = self._flights.get(sent.id)
        if flight is None:
            return
        if sent.chunk:
            flight.unacked = max(0, flight.unacked - 1)
            if flight.phase is Phase.SENT and flight.unacked == 0:
                flight.deadline = now + self._reply_timeout(flight)
        elif flight.phase is Phase.OFFERED and flight.attempts <= _EARLY_REOFFERS and self._few_wait():
            # Counted from here, because a slow link may need long to carry what was handed over before.
            early_s = self._settings.first_reoffer_s * 2 ** (flight.attempts - 1)
            flight.deadline = min(flight.deadline, now + early_s * self._rng.uniform(1.0, 2.0))

    def nacked(self, token: int, now: float) -> None:
        """The broker answered with a failure: the message is lost, and the sample waits."""
        sent = self._in_flight.pop(token, None)
        flight = self._flights.get(sent.id) if sent else None
        if sent is None or flight is None or flight.phase is Phase.SETTLING:
            return
        if sent.chunk:
            self._chunk_limit = max(MIN_CHUNK_BYTES, self._chunk_limit // 2)
        self._back_off(flight, self._settings.reoffer_s, now)

    def discard(self, sample: str) -> None:
        """The spool has it no more: evicted, or quarantined."""
        self._flights.pop(sample, None)
        self._verdicts.pop(sample, None)

    def settled(self, samples: Iterable[str]) -> None:
        """The spool booked these."""
        for sample in samples:
            self._flights.pop(sample, None)

    def unsettled(self, samples: Iterable[str], now: float) -> None:
        """The spool could not book these (its disk is full): offered again later, and answered again."""
        for sample in samples:
            flight = self._flights.get(sample)
            if flight is not None:
                self._back_off(flight, self._settings.reoffer_s, now)

    # ---- what to do

    def actions(self, now: float) -> list[Action]:
        """Everything to do now, in order."""
        self._expire(now)
        todo: list[Action] = []
        if self._verdicts:
            todo.append(Settle(tuple(self._verdicts.values())))
            self._verdicts.clear()
        if not self._connected:
            return todo
        oldest = min((h.at for h in self._in_flight.values()), default=now)
        if now - oldest > self._settings.ack_timeout_s:
            return [*todo, Reconnect(f"no acknowledgement for {now - oldest:.0f} s")]
        self._admit(now)
        todo.extend(self._offers(now))
        todo.extend(self._chunks(now))
        return todo

    def _offers(self, now: float) -> Iterable[Action]:
        if not self.offering:
            return
        for flight in list(self._flights.values()):
            if flight.phase is not Phase.NEW:
                continue
            if not self._slot(flight.offer_bytes + _TOPIC_BYTES // 4, now):
                return
            flight.phase, flight.touched_at = Phase.OFFERED, now
            flight.deadline = now + self._reply_timeout(flight)
            if flight.attempts:
                self.reoffers += 1
            flight.attempts += 1
            yield PublishOffer(self._hand(flight, flight.offer_bytes, now, chunk=False), flight.id)

    def _chunks(self, now: float) -> Iterable[Action]:
        for flight in list(self._flights.values()):
            while flight.phase is Phase.SENDING:
                size = min(flight.chunk, self._chunk_room(), flight.size - flight.offset)
                if not self._slot(size + _TOPIC_BYTES // 2, now):
                    return
                offset = flight.offset
                flight.offset, flight.touched_at = offset + size, now
                flight.unacked += 1
                if flight.offset >= flight.size:
                    flight.phase = Phase.SENT
                    flight.deadline = now + self._settings.ack_timeout_s + self._reply_timeout(flight)
                token = self._hand(flight, size, now, chunk=True)
                yield PublishChunk(token, flight.id, flight.collector, offset, size, flight.size)

    def _slot(self, size: int, now: float) -> bool:
        """Whether a message of `size` may go now: a place in paho's hands, and tokens for its bytes."""
        self._token_wait = math.inf
        if len(self._in_flight) >= self._settings.max_handed:
            return False
        if self._bucket.take(size, now):
            return True
        self._token_wait = self._bucket.ready_at(size, now)
        return False

    def _hand(self, flight: Flight, size: int, now: float, *, chunk: bool) -> int:
        self._token += 1
        self._in_flight[self._token] = _InFlight(flight.id, size, chunk, now)
        return self._token

    def _admit(self, now: float) -> None:
        """READY flights start sending while the byte window has room; one always may."""
        active = sum(f.size for f in self._flights.values() if f.phase in (Phase.SENDING, Phase.SENT))
        for flight in self._flights.values():
            if flight.phase is Phase.READY and (active == 0 or active + flight.size <= self._byte_window()):
                active += flight.size
                flight.phase = Phase.SENDING

    def _expire(self, now: float) -> None:
        for flight in self._flights.values():
            if flight.phase is Phase.SENDING and now - flight.touched_at > self._settings.stale_s:
                # The collector may have given up by now: its answer to a new offer says where to go on.
                self._reset(flight)
            elif now >= flight.deadline:
                self._reset(flight)

    def _reset(self, flight: Flight) -> None:
        flight.phase, flight.deadline = Phase.NEW, math.inf
        flight.collector, flight.asked_offset = "", -1

    def _finish(self, verdict: Terminal) -> None:
        flight = self._flights.get(verdict.id)
        if flight is not None:
            flight.phase, flight.deadline = Phase.SETTLING, math.inf
        self._verdicts.setdefault(verdict.id, verdict)

    def _send(self, flight: Flight, verdict: Send, now: float) -> None:
        if flight.phase is Phase.SETTLING or verdict.offset > flight.size or not self._connected:
            self.ignored += 1
            return
        if verdict.chunk_bytes < min(MIN_CHUNK_BYTES, flight.size):
            # Each chunk costs a topic and an acknowledgement: the link would carry little else.
            self.ignored += 1
            self.small_chunks += 1
            return
        if flight.phase in (Phase.READY, Phase.SENDING, Phase.SENT) and not self._is_news(
            flight, verdict, now
        ):
            self.ignored += 1
            return
        flight.collector, flight.offset = verdict.collector, verdict.offset
        flight.chunk = verdict.chunk_bytes
        flight.asked_at, flight.asked_offset, flight.touched_at = now, verdict.offset, now
        flight.deadline = math.inf
        flight.phase = Phase.READY
        if flight.offset >= flight.size:
            flight.phase, flight.deadline = Phase.SENT, now + self._reply_timeout(flight)

    def _is_news(self, flight: Flight, verdict: Send, now: float) -> bool:
        """Whether a second `send` is news: a gap, or another collector that took over; not a repetition."""
        if verdict.collector != flight.collector:
            return now - flight.touched_at > self._settings.reoffer_s
        return verdict.offset != flight.asked_offset or now - flight.asked_at > _REPEAT_S

    def _back_off(self, flight: Flight, seconds: float, now: float) -> None:
        if flight.phase is Phase.SETTLING and flight.id in self._verdicts:
            return
        flight.phase = Phase.RESTING
        flight.deadline = now + seconds * self._rng.uniform(1.0, 1.5)

    def _few_wait(self) -> bool:
        return sum(f.phase is Phase.OFFERED for f in self._flights.values()) <= _EARLY_WAITING

    def _reply_timeout(self, flight: Flight) -> float:
        s = self._settings
        return floor_jitter(flight.attempts, base_s=s.reoffer_s, cap_s=s.reoffer_max_s, rng=self._rng)

    def _byte_window(self) -> float:
        """No more than the link carries within some seconds, so that what was asked for is sent soon."""
        return min(float(self._settings.max_bytes), max(1.0, self._bucket.rate * self._settings.window_s))

    def _chunk_room(self) -> int:
        if self._packet_limit is None:
            return self._chunk_limit
        return max(1, min(self._chunk_limit, self._packet_limit - _TOPIC_BYTES))
