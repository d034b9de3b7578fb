"""Samples on their way: chunks come in, whole samples come out, and memory stays within its budget.

open(offer) -> where to continue, or no room;  chunk(...) -> nothing, ask again, whole, or too much
A declared size counts against the budget from `open` to `close`, so what was asked for always fits.
Chunks are taken in order only: a repeated one is ignored, a gap asks for the missing byte once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from misfire_runtime.messages import Offer

Key = tuple[str, str]
"""(vehicle, sample id)."""


@dataclass
class Transfer:
    """One sample of one vehicle. `finishing`: all bytes are here, it is being verified or committed."""

    offer: Offer
    opened_at: float
    touched_at: float
    parts: list[bytes] = field(default_factory=list)
    received: int = 0
    asked_at: float = 0.0
    asked_offset: int = -1
    asked_times: int = 0
    spoiled: list[str] = field(default_factory=list)
    """SHA-256 of each attempt that was not what the offer said."""
    finishing: bool = False

    @property
    def key(self) -> Key:
        """Who sends what."""
        return self.offer.vehicle, self.offer.id

    def take(self) -> bytes:
        """The whole sample; the parts are let go."""
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        return data


@dataclass(frozen=True)
class Ask:
    """Send (again) from `offset` on."""

    vehicle: str
    sample: str
    offset: int


@dataclass(frozen=True)
class Excess:
    """The vehicle sent more bytes than its offer said."""

    vehicle: str
    sample: str


Event = Transfer | Ask | Excess | Literal["unknown"] | None


class Transfers:
    """All open transfers; thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self, *, max_transfers: int, max_bytes: int) -> None:
        self._max_transfers = max_transfers
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open: dict[Key, Transfer] = {}
        self._of: dict[str, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def reserved_bytes(self) -> int:
        """Declared sizes of all open transfers."""
        return self._bytes

    def open(self, offer: Offer, now: float) -> Transfer | Literal["full", "share"]:
        """Finds or opens the transfer of an offer.

        "full": no room for another; "share": this vehicle has half of all room already.
        """
        key = (offer.vehicle, offer.id)
        with self._lock:
            known = self._open.get(key)
            if known is not None:
                known.asked_at, known.asked_offset, known.touched_at = now, known.received, now
                return known
            if len(self._open) >= self._max_transfers or self._bytes + offer.size > self._max_bytes:
                return "full"
            if self._of.get(offer.vehicle, 0) >= max(1, self._max_transfers // 2):
                return "share"
            transfer = Transfer(offer, now, now, asked_at=now, asked_offset=0)
            self._open[key] = transfer
            self._of[offer.vehicle] = self._of.get(offer.vehicle, 0) + 1
            self._bytes += offer.size
            return transfer

    def find(self, vehicle: str, sample: str) -> Transfer | None:
        """The open transfer, or None."""
        return self._open.get((vehicle, sample))

    def chunk(self, vehicle: str, sample: str, offset: int, payload: bytes, now: float) -> Event:
        """Takes a chunk; returns the Transfer when it is whole, once."""
        with self._lock:
            transfer = self._open.get((vehicle, sample))
            if transfer is None:
                return "unknown"
            if transfer.finishing or offset + len(payload) <= transfer.received:
                return None
            if offset > transfer.received:
                return self._gap(transfer, now)
            if offset < transfer.received:
                payload = payload[transfer.received - offset :]
            if transfer.received + len(payload) > transfer.offer.size:
                return Excess(vehicle, sample)
            transfer.parts.append(payload)
            transfer.received += len(payload)
            transfer.touched_at = now
            transfer.asked_times = 0
            if transfer.received < transfer.offer.size:
                return None
            transfer.finishing = True
            return transfer

    def restart(self, transfer: Transfer, digest: str, now: float) -> Ask:
        """What arrived (its SHA-256) is not what was offered: from the first byte again."""
        with self._lock:
            transfer.parts, transfer.received, transfer.finishing = [], 0, False
            transfer.spoiled.append(digest)
            transfer.touched_at = transfer.asked_at = now
            transfer.asked_offset = 0
            return Ask(*transfer.key, 0)

    def close(self, key: Key) -> None:
        """Forgets a transfer and frees its room."""
        with self._lock:
            self._forget(key)

    def stalled(self, now: float, *, stall_s: float, abandon_s: float) -> tuple[list[Ask], list[Key]]:
        """Transfers to ask for again, each later than the time before, and those given up now."""
        asks, abandoned = [], []
        with self._lock:
            for key, transfer in list(self._open.items()):
                if transfer.finishing:
                    continue
                if now - transfer.touched_at > abandon_s:
                    self._forget(key)
                    abandoned.append(key)
                elif now - max(transfer.touched_at, transfer.asked_at) > stall_s * 2**transfer.asked_times:
                    transfer.asked_at, transfer.asked_offset = now, transfer.received
                    transfer.asked_times += 1
                    asks.append(Ask(*key, transfer.received))
        return asks, abandoned

    def _gap(self, transfer: Transfer, now: float) -> Ask | None:
        """The window behind a gap arrives chunk by chunk; one request for it is enough for a while."""
        if transfer.asked_offset == transfer.received and now - transfer.asked_at < 1.0:
            return None
        transfer.asked_offset, transfer.asked_at = transfer.received, now
        return Ask(*transfer.key, transfer.received)

    def _forget(self, key: Key) -> None:
        transfer = self._open.pop(key, None)
        if transfer is None:
            return
        self._bytes -= transfer.offer.size
        left = self._of[key[0]] - 1
        if left:
            self._of[key[0]] = left
        else:
            del self._of[key[0]]
