"""Divides samples into train, holdout and test by what they belong to, never by frame.

A group (a vehicle, a drive or a day) is on the side that the hash of its name and of the seed says. So it
stays there when more samples come, and in every snapshot with the same seed and the same shares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Literal, get_args

from pydantic_core import from_json

from misfire_runtime.errors import ConfigError

GroupBy = Literal["vehicle", "drive", "day"]
Side = Literal["train", "holdout", "test"]
GROUPINGS: tuple[GroupBy, ...] = get_args(GroupBy)
SIDES: tuple[Side, ...] = get_args(Side)
_MAX_KEY = 200
_DAY_S = 86_400


@dataclass(frozen=True)
class Shares:
    """Holds the shares of holdout and test, each 0..1; the rest is for training."""

    holdout: float = 0.2
    test: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError if the shares are none."""
        if not (0 <= self.holdout < 1 and 0 <= self.test < 1 and self.holdout + self.test < 1):
            raise ConfigError(
                f"holdout {self.holdout:g}, test {self.test:g}: a share is 0 or more, and some must be left"
            )


def keys_of(
    vehicle: str, captured_at: float, offer: str, *, needed: Collection[GroupBy] = GROUPINGS
) -> dict[GroupBy, str]:
    """Returns the groups of a sample that are needed: its `vehicle`, its `drive`, its `day`.

    A drive is a recording, or the time from one start of the vehicle's computer to the next; a vehicle whose
    offers name neither has one drive a day. A day is one of the calendar in UTC, of all vehicles.

    Args:
        vehicle: its name.
        captured_at: seconds since 1970.
        offer: JSON text of the vehicle's offer; a damaged one counts as one that names no drive.
    """
    found: dict[GroupBy, str] = {}
    if "vehicle" in needed:
        found["vehicle"] = _short(f"vehicle:{vehicle}")
    if "drive" in needed:
        found["drive"] = _short(f"drive:{vehicle}/{_drive(offer) or _day(int(captured_at // _DAY_S))}")
    if "day" in needed:
        found["day"] = f"day:{_day(int(captured_at // _DAY_S))}"
    return found


def side_of(group: str, *, seed: int, shares: Shares) -> Side:
    """Returns the side of a group: the same for the same name, seed and shares."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    # 53 bits: as many as a float holds exactly.
    place = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    # The test first: it keeps its groups if the share of the holdout changes.
    if place < shares.test:
        return "test"
    return "holdout" if place < shares.test + shares.holdout else "train"


def _drive(offer: str) -> str:
    try:
        # Twice as fast as the json module, and this reads every offer of a snapshot.
        found: Any = from_json(offer)
        recorded = found.get("recorded_at") is not None or found.get("position_s") is not None
        if recorded and found.get("source"):
            return str(found["source"])
        return str(found["captured_at"].get("boot_id") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


@lru_cache(4096)
def _day(days: int) -> str:
    """Returns the date so many days after 1970-01-01."""
    return datetime.fromtimestamp(days * _DAY_S, timezone.utc).date().isoformat()


def _short(key: str) -> str:
    """Returns a name that fits its column; a long one ends with its hash."""
    if len(key) <= _MAX_KEY:
        return key
    return f"{key[: _MAX_KEY - 17]}#{hashlib.sha256(key.encode()).hexdigest()[:16]}"
