"""Decides what the uplink does, without a network, a thread or a clock: events in, actions out.

supply -> NEW --offer--> OFFERED --send--> READY --room--> SENDING --last byte--> SENT --stored--> SETTLING
            ^______________|__ timers: no answer, no progress __|______________|      busy -> RESTING

Every message may be lost, repeated or reordered. Only final verdicts are decisive, and they are idempotent.
After any other failure a timer expires and the sample is offered again; the collector's answer contains the
offset to continue from. `now` is monotonic seconds, passed by the caller.
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
"""Room for a data topic and an MQTT header: three names of 64, an id of 64, and the fixed parts."""
_REPEAT_S = 0.8
"""The same `send` within this time is a repetition; a collector requests a gap at most once per second."""
_GROW_AFTER = 32
"""Acknowledged chunks until the chunk size is doubled again, after it was halved."""
# A broker with a full queue drops offers that it has acknowledged: see `first_reoffer_s`.
_EARLY_REOFFERS = 2
_EARLY_WAITING = 8
"""With more unanswered offers, no collector is running: all vehicles would repeat all their offers early."""


class Phase(enum.Enum):
    """Names the phases of a sample's upload."""

    NEW = "new"
    OFFERED = "offered"
    READY = "ready"
    SENDING = "sending"
    SENT = "sent"
    RESTING = "resting"
    SETTLING = "settling"


@dataclass(slots=True)
class Flight:
    """Tracks the upload of a sample in the window."""

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
    """Requests to publish the sample's offer under this token."""

    token: int
    id: str


@dataclass(frozen=True, slots=True)
class PublishChunk:
    """Requests to publish `size` bytes from `offset` on, of `total`, to `collector`."""

    token: int
    id: str
    collector: str
    offset: int
    size: int
    total: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Requests to record these verdicts, and then to call `settled` or `unsettled`."""

    verdicts: tuple[Terminal, ...]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Requests a new connection, because this one only looks alive, and then to call `disconnected`."""

    reason: str


Action = PublishOffer | PublishChunk | Settle | Reconnect


@dataclass(frozen=True, slots=True)
class _InFlight:
    id: str
    size: int
    chunk: bool
    at: float


class Machine:
    """Decides for one vehicle's uplink. Not thread-safe: one loop owns it.

    Args:
        settings: windows and timers.
        bucket: limits the rate.
        rng: source of jitter.
    """

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
        # Starts large and is halved only after trouble: each chunk costs a topic and an acknowledgement.
        self._chunk_limit = MAX_CHUNK_BYTES
        self._acked_chunks = 0
        self._token_wait = math.inf
        self.ignored = 0
        """Number of verdicts without effect: repeated, or about samples outside of the window."""
        self.small_chunks = 0
        """Number of `send`s that were ignored because their chunk size is below MIN_CHUNK_BYTES."""
        self.reoffers = 0
        """Number of repeated offers."""
        self.offering = True
        """False stops offers; running transfers continue, and verdicts count."""

    # ---- what the shell asks

    @property
    def ids(self) -> Collection[str]:
        """Returns the ids of the samples in the window."""
        return self._flights.keys()

    def wanted(self) -> int:
        """Returns how many more samples fit into the window; 0 while offline, held, or on a closed link."""
        if not self._connected or not self.offering or self._bucket.rate <= 0:
            return 0
        flying = [f for f in self._flights.values() if f.phase is not Phase.SETTLING]
        # Twice: while one window is being sent, the samples of the next are offered.
        if sum(f.size for f in flying) >= 2 * self._byte_window():
            return 0
        return max(0, self._settings.max_samples - len(flying))

    def wake_at(self, now: float) -> float:
        """Returns when to call `actions` next if nothing happens before; inf for never."""
        if not self._connected:
            return math.inf
        times = [f.deadline for f in self._flights.values()]
        if self._in_flight:
            # The oldest decides: one missing acknowledgement is enough to doubt the connection.
            times.append(min(h.at for h in self._in_flight.values()) + self._settings.ack_timeout_s)
        return min([*times, self._token_wait], default=math.inf)

    # ---- what happens

    def connected(self, now: float, *, packet_limit: int | None = None) -> None:
        """Notes a new connection; `packet_limit` is the broker's limit in bytes, None if it named none."""
        self._connected = True
        self._packet_limit = packet_limit
        self._acked_chunks = 0

    def disconnected(self, now: float) -> None:
        """Starts every upload again with its offer, in the same order: all messages in flight may be lost."""
        if any(h.chunk for h in self._in_flight.values()) and self._acked_chunks == 0:
            # A broker with MQTT 3.1.1 cannot announce its packet limit: it disconnects if a chunk is too
            # large. A bad link looks the same, and smaller chunks help there, too.
            self._chunk_limit = max(MIN_CHUNK_BYTES, self._chunk_limit // 2)
        self._connected = False
        # Acknowledgements of the old connection cannot arrive on a new one.
        self._in_flight.clear()
        for flight in self._flights.values():
            flight.unacked = 0
            if flight.phase not in (Phase.SETTLING, Phase.RESTING):
                self._reset(flight)

    def supply(self, samples: Iterable[Pending], now: float) -> None:
        """Adds samples to the window, in the order of upload."""
        for sample in samples:
            if sample.id not in self._flights:
                self._flights[sample.id] = Flight(sample.id, sample.size, len(sample.offer), touched_at=now)

    def replied(self, verdicts: Sequence[Send | Stored | Declined | Rejected | Busy], now: float) -> None:
        """Handles a reply. Final verdicts also count for samples outside of the window."""
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
        """Handles the broker's acknowledgement: it frees a slot, and proves nothing about the collector."""
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
            # Counted from the acknowledgement: a slow link may need long for the messages queued before it.
            early_s = self._settings.first_reoffer_s * 2 ** (flight.attempts - 1)
            flight.deadline = min(flight.deadline, now + early_s * self._rng.uniform(1.0, 2.0))

    def nacked(self, token: int, now: float) -> None:
        """Handles a message that the broker refused: the message is lost, and the sample waits."""
        sent = self._in_flight.pop(token, None)
        flight = self._flights.get(sent.id) if sent else None
        if sent is None or flight is None or flight.phase is Phase.SETTLING:
            return
        if sent.chunk:
            self._chunk_limit = max(MIN_CHUNK_BYTES, self._chunk_limit // 2)
        self._back_off(flight, self._settings.reoffer_s, now)

    def discard(self, sample: str) -> None:
        """Removes a sample that is no longer in the spool (evicted or quarantined)."""
        self._flights.pop(sample, None)
        self._verdicts.pop(sample, None)

    def settled(self, samples: Iterable[str]) -> None:
        """Removes samples whose verdicts the spool has recorded."""
        for sample in samples:
            self._flights.pop(sample, None)

    def unsettled(self, samples: Iterable[str], now: float) -> None:
        """Schedules a new offer of samples whose verdicts the spool could not record (its disk is full)."""
        for sample in samples:
            flight = self._flights.get(sample)
            if flight is not None:
                self._back_off(flight, self._settings.reoffer_s, now)

    # ---- what to do

    def actions(self, now: float) -> list[Action]:
        """Returns everything to do now, in order."""
        self._expire(now)
        todo: list[Action] = []
        if self._verdicts:
            # Verdicts first, and offline too: they free the spool and need no network.
            todo.append(Settle(tuple(self._verdicts.values())))
            self._verdicts.clear()
        if not self._connected:
            return todo
        oldest = min((h.at for h in self._in_flight.values()), default=now)
        if now - oldest > self._settings.ack_timeout_s:
            return [*todo, Reconnect(f"no acknowledgement for {now - oldest:.0f} s")]
        self._admit(now)
        # Offers before chunks: they are small, and their answers arrive while chunks are sent.
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
        """Returns True if a message of `size` bytes may be sent now: paho has room, and the bucket tokens."""
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
        """Starts READY uploads while the byte window has room; at least one."""
        active = sum(f.size for f in self._flights.values() if f.phase in (Phase.SENDING, Phase.SENT))
        for flight in self._flights.values():
            # Without "active == 0", a sample larger than the window would wait for ever.
            if flight.phase is Phase.READY and (active == 0 or active + flight.size <= self._byte_window()):
                active += flight.size
                flight.phase = Phase.SENDING

    def _expire(self, now: float) -> None:
        for flight in self._flights.values():
            if flight.phase is Phase.SENDING and now - flight.touched_at > self._settings.stale_s:
                # The collector may have given up; its answer to a new offer has the offset to continue from.
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
        # The first verdict counts: a repeated one must not replace it.
        self._verdicts.setdefault(verdict.id, verdict)

    def _send(self, flight: Flight, verdict: Send, now: float) -> None:
        # A late `send` must not undo a final verdict, nor read beyond the end.
        if flight.phase is Phase.SETTLING or verdict.offset > flight.size or not self._connected:
            self.ignored += 1
            return
        if verdict.chunk_bytes < min(MIN_CHUNK_BYTES, flight.size):
            # Each chunk costs a topic and an acknowledgement; tiny chunks would waste most of the link.
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
        """Returns True if another `send` is no repetition: it reports a gap, or a new collector took over."""
        if verdict.collector != flight.collector:
            # Two collectors may answer one offer: the first keeps the upload as long as it progresses.
            return now - flight.touched_at > self._settings.reoffer_s
        return verdict.offset != flight.asked_offset or now - flight.asked_at > _REPEAT_S

    def _back_off(self, flight: Flight, seconds: float, now: float) -> None:
        if flight.phase is Phase.SETTLING and flight.id in self._verdicts:
            return
        flight.phase = Phase.RESTING
        # Never earlier than asked; the jitter keeps a fleet from coming back at once.
        flight.deadline = now + seconds * self._rng.uniform(1.0, 1.5)

    def _few_wait(self) -> bool:
        return sum(f.phase is Phase.OFFERED for f in self._flights.values()) <= _EARLY_WAITING

    def _reply_timeout(self, flight: Flight) -> float:
        s = self._settings
        return floor_jitter(flight.attempts, base_s=s.reoffer_s, cap_s=s.reoffer_max_s, rng=self._rng)

    def _byte_window(self) -> float:
        """Returns the bytes that the link carries within `window_s`: requested samples must be sent soon."""
        return min(float(self._settings.max_bytes), max(1.0, self._bucket.rate * self._settings.window_s))

    def _chunk_room(self) -> int:
        if self._packet_limit is None:
            return self._chunk_limit
        # The broker's limit is for the whole packet, topic and header included.
        return max(1, min(self._chunk_limit, self._packet_limit - _TOPIC_BYTES))
