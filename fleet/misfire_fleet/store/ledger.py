"""Writes the ledger next to the blobs, one file per entry.

It has holds, their ends, deletions, tombstones, new classes of labels, snapshots, runs and bundles.

If the database is lost, `misfire fleet rebuild` reads it, so that deleted samples do not come back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_runtime.clock import wall_time


class Ledger:
    """Writes and reads entries: `at`, `action` (hold, delete, tombstones, classes, ...) and details."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def note(self, **entry: object) -> None:
        """Writes an entry durably. Raises StoreUnavailableError."""
        now = wall_time()
        # Microseconds with leading zeros sort by time; the random part keeps two processes' entries apart.
        name = f"{int(now * 1_000_000):018d}-{secrets.token_hex(4)}.json"
        data = json.dumps({"at": now} | entry, sort_keys=True).encode()
        self._blobs.keep(Document("ledger", name, data))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yields all readable entries, oldest first. Raises StoreUnavailableError."""
        for name in sorted(self._blobs.documents("ledger")):
            try:
                entry = json.loads(self._blobs.document("ledger", name))
            # One damaged file must not make all others unreadable.
            except (SampleGoneError, ValueError):
                continue
            if isinstance(entry, dict) and {"at", "action"} <= set(entry):
                yield entry

    def noted(self) -> tuple[set[str], set[str], set[str]]:
        """Returns the ids of all tombstones, the names of all holds, and all classes in the ledger."""
        graves: set[str] = set()
        held: set[str] = set()
        named: set[str] = set()
        for entry in self.entries():
            graves |= {grave["id"] for grave in entry.get("tombstones", ())}
            if entry["action"] == "hold":
                held.add(entry["detail"]["name"])
            elif entry["action"] == "classes":
                named |= set(entry["detail"]["names"])
        return graves, held, named
