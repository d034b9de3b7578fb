"""Remembers how far the labels of each project were fetched: a small document next to the blobs.

It is written after the labels are recorded. If it is lost or too old, labels are read again and found
unchanged.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import datetime

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document


class Cursors:
    """Reads and writes cursors, one per place: a server and a project."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def load(self, place: str) -> datetime | None:
        """Returns the time up to which labels were fetched; None if none were, or it cannot be read.

        Raises:
            StoreUnavailableError: the blob store does not work now.
        """
        with suppress(SampleGoneError, ValueError, TypeError, KeyError):
            document = json.loads(self._blobs.document("cursors", _name(place)))
            until = datetime.fromisoformat(document["until"])
            if document["place"] == place and until.tzinfo is not None:
                return until
        return None

    def save(self, place: str, until: datetime) -> None:
        """Writes a time durably. Raises StoreUnavailableError."""
        data = json.dumps({"place": place, "until": until.isoformat()}).encode()
        self._blobs.keep(Document("cursors", _name(place), data))


def _name(place: str) -> str:
    return f"{hashlib.sha256(place.encode()).hexdigest()[:40]}.json"
