"""Assembles samples from chunks, within a memory budget.

open(offer) -> where to continue, or no room;  chunk(...) -> nothing, ask again, whole, or a flood
An offer's size counts against the budget from `open` to `close`, so every requested sample fits.
A vehicle may use as much as it leaves free, so there is always room for one more vehicle.
Only new bytes prolong a transfer; offers and repeated chunks do not. Chunks are accepted in order: a repeated
one is ignored, and a gap requests the missing byte once. Bytes beyond the offer's size are cut off; the hash
decides.
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
"""A sample may arrive this often in the smallest chunks, plus the spare ones; beyond that it is a flood."""


@dataclass
class Transfer:
    """Holds one sample of one vehicle. `finishing`: complete, and being verified or committed."""

    offer: Offer
    opened_at: float
    began_at: float
    """When the first byte was last requested."""
    progress_at: float
    """When the last new byte arrived."""
    data: bytearray = field(default_factory=bytearray)
    chunks: int = 0
    """Number of received chunks, whatever their content."""
    asked_at: float = 0.0
    asked_offset: int = -1
    asked_times: int = 0
    spoiled: list[str] = field(default_factory=list)
    """SHA-256 of each attempt with a wrong hash."""
    excess: bool = False
    """True if more bytes arrived than the offer announced."""
    finishing: bool = False

    @property
    def key(self) -> Key:
        """Returns (vehicle, sample id)."""
        return self.offer.vehicle, self.offer.id

    @property
    def received(self) -> int:
        """Returns the number of received bytes."""
        return len(self.data)

    @property
    def max_chunks(self) -> int:
        """Returns a number of chunks that no honest vehicle exceeds, even with the smallest ones repeated."""
        return _SPARE_CHUNKS + _REPETITIONS * self.offer.size // MIN_CHUNK_BYTES

    def take(self) -> bytes:
        """Returns the complete sample and frees the buffer."""
        data = bytes(self.data)
        self.data = bytearray()
        return data

    def is_overdue(self, now: float, *, abandon_s: float, min_bytes_per_s: float) -> bool:
        """Returns True if no new byte came for `abandon_s`, or the rate is too low after that time."""
        idle = now - self.progress_at > abandon_s
        return idle or now - self.began_at > abandon_s + self.received / min_bytes_per_s


@dataclass(frozen=True)
class Ask:
    """Requests a sample's bytes from `offset` on, once more."""

    vehicle: str
    sample: str
    offset: int


Event = Transfer | Ask | Literal["unknown", "flood"] | None


class Transfers:
    """Holds all open transfers. Thread-safe. Times are monotonic seconds, passed by the caller."""

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
        """Returns the sum of the announced sizes of all open transfers."""
        return self._bytes

    def full_s(self, now: float) -> float:
        """Returns for how long vehicles without any transfer have found no room; 0 if the last one did."""
        return 0.0 if self._full_at is None else now - self._full_at

    def oldest_whole_s(self, now: float) -> float:
        """Returns for how long the oldest complete sample has waited to be stored; 0 if there is none."""
        with self._lock:
            whole = [transfer.progress_at for transfer in self._open.values() if transfer.finishing]
        return max(0.0, now - min(whole)) if whole else 0.0

    def open(self, offer: Offer, now: float) -> Transfer | Literal["full", "share"]:
        """Finds or opens the transfer of an offer.

        Returns:
            The transfer; "share" if the vehicle would use more than it leaves free; "full" if there is no
            room although the vehicle has no other transfer.
        """
        key = (offer.vehicle, offer.id)
        with self._lock:
            known = self._open.get(key)
            if known is not None and (known.finishing or known.offer.size == offer.size):
                known.asked_at, known.asked_offset = now, known.received
                return known
            self._forget(key)  # the same id was offered with another size before
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
        """Returns the open transfer of a sample, or None."""
        return self._open.get((vehicle, sample))

    def holds(self, transfer: Transfer) -> bool:
        """Returns True if this transfer, and not a later one of the same sample, is open."""
        return self._open.get(transfer.key) is transfer

    def chunk(self, vehicle: str, sample: str, offset: int, payload: bytes, now: float) -> Event:
        """Adds a chunk.

        Returns:
            The transfer when it is complete, once; an Ask if bytes are missing before the chunk; "unknown" if
            there is no such transfer; "flood" if too many chunks arrived; otherwise None.
        """
        with self._lock:
            transfer = self._open.get((vehicle, sample))
            if transfer is None:
                return "unknown"
            if transfer.finishing:
                return None
            transfer.chunks += 1
            if transfer.chunks > transfer.max_chunks:
                return "flood"
            # Repeated: QoS 1 delivers a message at least once.
            if offset + len(payload) <= transfer.received:
                return None
            if offset > transfer.received:
                return self._gap(transfer, now)
            return self._append(transfer, memoryview(payload)[transfer.received - offset :], now)

    def restart(self, transfer: Transfer, digest: str, now: float) -> Ask:
        """Discards the bytes, whose hash `digest` is wrong, and returns the request for the first byte."""
        with self._lock:
            transfer.data, transfer.chunks, transfer.finishing = bytearray(), 0, False
            transfer.spoiled.append(digest)
            transfer.began_at = transfer.progress_at = transfer.asked_at = now
            transfer.asked_offset = 0
            return Ask(*transfer.key, 0)

    def close(self, key: Key) -> None:
        """Drops a transfer and frees its memory."""
        with self._lock:
            self._forget(key)

    def stalled(
        self, now: float, *, stall_s: float, abandon_s: float, min_bytes_per_s: float
    ) -> tuple[list[Ask], list[Key]]:
        """Returns requests for stalled transfers, with doubling intervals, and the keys of abandoned ones."""
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
        """Returns True if another transfer of this size may be opened.

        A vehicle's first transfer may take the last place. A large sample may take all memory if there is no
        other transfer.
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
        """Requests the missing byte, at most once per second.

        All chunks that were already under way arrive after the gap; one request is enough for them.
        """
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
