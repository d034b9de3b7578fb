"""The ledger beside the blobs: holds, their ends, deletions with their tombstones, one file per entry.

It is what a fleet whose database is lost still knows of them, so that what was deleted does not come back.
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
    """Entries have `at`, `action` (hold, release, delete, retention, tombstones) and what belongs to it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def note(self, **entry: object) -> None:
        """Writes an entry durably. Raises StoreUnavailableError."""
        now = wall_time()
        name = f"{int(now * 1_000_000):018d}-{secrets.token_hex(4)}.json"
        data = json.dumps({"at": now} | entry, sort_keys=True).encode()
        self._blobs.keep(Document("ledger", name, data))

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, oldest first; one that cannot be read is left out. Raises StoreUnavailableError."""
        for name in sorted(self._blobs.documents("ledger")):
            try:
                entry = json.loads(self._blobs.document("ledger", name))
            except (SampleGoneError, ValueError):
                continue
            if isinstance(entry, dict) and {"at", "action"} <= set(entry):
                yield entry

    def noted(self) -> tuple[set[str], set[str]]:
        """The ids of all tombstones and the names of all holds that have an entry."""
        graves: set[str] = set()
        held: set[str] = set()
        for entry in self.entries():
            graves |= {grave["id"] for grave in entry.get("tombstones", ())}
            if entry["action"] == "hold":
                held.add(entry["detail"]["name"])
        return graves, held
