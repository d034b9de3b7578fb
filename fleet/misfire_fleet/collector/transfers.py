"""Samples on their way: chunks come in, whole samples come out, and memory stays within its budget.

open(offer) -> where to continue, or no room;  chunk(...) -> nothing, ask again, whole, or a flood
A declared size counts against the budget from `open` to `close`, so what was asked for always fits.
A vehicle may hold as much as it leaves free: so however many hold all they can, there is room for one more.
Only bytes prolong a transfer, not talk. Chunks are taken in order only: a repeated one is ignored, a gap asks
for the missing byte once, and what comes behind the declared size is cut off: the hash decides.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from misfire_runtime.messages import MIN_CHUNK_BYTES, Offer

Key = tuple[str, str]
"""(vehicle, sample id)."""

_SPARE_CHUNKS = 256
_REPETITIONS = 4


@dataclass
class Transfer:
    """One sample of one vehicle. `finishing`: all bytes are here, it is being verified or committed."""

    offer: Offer
    opened_at: float
    began_at: float
    """When its first byte was asked for, this time."""
    progress_at: float
    """When the last byte came that was not here yet."""
    data: bytearray = field(default_factory=bytearray)
    chunks: int = 0
    """Chunks that came, whatever was in them."""
    asked_at: float = 0.0
    asked_offset: int = -1
    asked_times: int = 0
    spoiled: list[str] = field(default_factory=list)
    """SHA-256 of each attempt that was not what the offer said."""
    excess: bool = False
    """More bytes came than the offer said."""
    finishing: bool = False

    @property
    def key(self) -> Key:
        """Who sends what."""
        return self.offer.vehicle, self.offer.id

    @property
    def received(self) -> int:
        """Bytes that are here."""
        return len(self.data)

    @property
    def max_chunks(self) -> int:
        """More than any honest vehicle needs with the smallest chunks, repeated several times."""
        return _SPARE_CHUNKS + _REPETITIONS * self.offer.size // MIN_CHUNK_BYTES

    def take(self) -> bytes:
        """The whole sample, once."""
        data = bytes(self.data)
        self.data = bytearray()
        return data

    def is_overdue(self, now: float, *, abandon_s: float, min_bytes_per_s: float) -> bool:
        """True without a new byte for `abandon_s`, or below the rate; the first `abandon_s` are free."""
        idle = now - self.progress_at > abandon_s
        return idle or now - self.began_at > abandon_s + self.received / min_bytes_per_s


@dataclass(frozen=True)
class Ask:
    """Send (again) from `offset` on."""

    vehicle: str
    sample: str
    offset: int


Event = Transfer | Ask | Literal["unknown", "flood"] | None


class Transfers:
    """All open transfers; thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self, *, max_transfers: int, max_bytes: int) -> None:
        self._max_transfers = max_transfers
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open: dict[Key, Transfer] = {}
        self._of: dict[str, tuple[int, int]] = {}
        self._bytes = 0
        self._full_at: float | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def reserved_bytes(self) -> int:
        """Declared sizes of all open transfers."""
        return self._bytes

    def full_s(self, now: float) -> float:
        """For how long vehicles that hold nothing have found no room; 0 if the last one did."""
        return 0.0 if self._full_at is None else now - self._full_at

    def oldest_whole_s(self, now: float) -> float:
        """For how long the oldest whole sample has been waiting to be stored; 0 if none is."""
        with self._lock:
            whole = [transfer.progress_at for transfer in self._open.values() if transfer.finishing]
        return max(0.0, now - min(whole)) if whole else 0.0

    def open(self, offer: Offer, now: float) -> Transfer | Literal["full", "share"]:
        """Finds or opens the transfer of an offer.

        "share": this vehicle would hold more than it leaves free; "full": it holds nothing, and still would.
        """
        key = (offer.vehicle, offer.id)
        with self._lock:
            known = self._open.get(key)
            if known is not None and (known.finishing or known.offer.size == offer.size):
                known.asked_at, known.asked_offset = now, known.received
                return known
            self._forget(key)  # what was offered before was another size
            first = offer.vehicle not in self._of
            if not self._has_room(offer.vehicle, offer.size):
                if first and self._full_at is None:
                    self._full_at = now
                return "full" if first else "share"
            if first:
                self._full_at = None
            transfer = Transfer(offer, now, now, now, asked_at=now, asked_offset=0)
            self._open[key] = transfer
            self._count(offer, 1)
            return transfer

    def find(self, vehicle: str, sample: str) -> Transfer | None:
        """The open transfer, or None."""
        return self._open.get((vehicle, sample))

    def holds(self, transfer: Transfer) -> bool:
        """True if this very transfer is open."""
        return self._open.get(transfer.key) is transfer

    def chunk(self, vehicle: str, sample: str, offset: int, payload: bytes, now: float) -> Event:
        """Takes a chunk; returns the Transfer when it is whole, once."""
        with self._lock:
            transfer = self._open.get((vehicle, sample))
            if transfer is None:
                return "unknown"
            if transfer.finishing:
                return None
            transfer.chunks += 1
            if transfer.chunks > transfer.max_chunks:
                return "flood"
            if offset + len(payload) <= transfer.received:
                return None
            if offset > transfer.received:
                return self._gap(transfer, now)
            return self._append(transfer, memoryview(payload)[transfer.received - offset :], now)

    def restart(self, transfer: Transfer, digest: str, now: float) -> Ask:
        """What arrived (its SHA-256) is not what was offered: from the first byte again."""
        with self._lock:
            transfer.data, transfer.chunks, transfer.finishing = bytearray(), 0, False
            transfer.spoiled.append(digest)
            transfer.began_at = transfer.progress_at = transfer.asked_at = now
            transfer.asked_offset = 0
            return Ask(*transfer.key, 0)

    def close(self, key: Key) -> None:
        """Forgets a transfer and frees its room."""
        with self._lock:
            self._forget(key)

    def stalled(
        self, now: float, *, stall_s: float, abandon_s: float, min_bytes_per_s: float
    ) -> tuple[list[Ask], list[Key]]:
        """Transfers to ask for again, each later than the time before, and those given up now."""
        asks, abandoned = [], []
        with self._lock:
            for key, transfer in list(self._open.items()):
                if transfer.finishing:
                    continue
                if transfer.is_overdue(now, abandon_s=abandon_s, min_bytes_per_s=min_bytes_per_s):
                    self._forget(key)
                    abandoned.append(key)
                elif now - max(transfer.progress_at, transfer.asked_at) > stall_s * 2**transfer.asked_times:
                    transfer.asked_at, transfer.asked_offset = now, transfer.received
                    transfer.asked_times += 1
                    asks.append(Ask(*key, transfer.received))
        return asks, abandoned

    def _has_room(self, vehicle: str, size: int) -> bool:
        """True if another transfer of this size may be opened.

        A vehicle's first transfer takes the last place if it must, and a large sample takes all memory if
        nobody else holds any.
        """
        free = self._max_transfers - len(self._open) - 1
        free_bytes = self._max_bytes - self._bytes - size
        count, held = self._of.get(vehicle, (0, 0))
        few = free >= 0 and (count == 0 or count + 1 <= free)
        small = free_bytes >= 0 and (not self._open or held + size <= free_bytes)
        return few and small

    def _append(self, transfer: Transfer, fresh: memoryview, now: float) -> Transfer | None:
        missing = transfer.offer.size - transfer.received
        transfer.excess = transfer.excess or len(fresh) > missing
        transfer.data += fresh[:missing]
        transfer.progress_at = now
        transfer.asked_times = 0
        if transfer.received < transfer.offer.size:
            return None
        transfer.finishing = True
        return transfer

    def _gap(self, transfer: Transfer, now: float) -> Ask | None:
        """The window behind a gap arrives chunk by chunk; one request for it is enough for a while."""
        if transfer.asked_offset == transfer.received and now - transfer.asked_at < 1.0:
            return None
        transfer.asked_offset, transfer.asked_at = transfer.received, now
        return Ask(*transfer.key, transfer.received)

    def _forget(self, key: Key) -> None:
        transfer = self._open.pop(key, None)
        if transfer is not None:
            self._count(transfer.offer, -1)

    def _count(self, offer: Offer, sign: int) -> None:
        self._bytes += sign * offer.size
        count, size = self._of.get(offer.vehicle, (0, 0))
        self._of[offer.vehicle] = (count + sign, size + sign * offer.size)
        if self._of[offer.vehicle][0] == 0:
            del self._of[offer.vehicle]
