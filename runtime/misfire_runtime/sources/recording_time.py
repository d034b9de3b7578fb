"""Finds out when a frame was recorded, as far as its file says so.

MCAP log time, a video's creation time and the position in it, or the Exif block of a picture. The time of the
file itself is never used: copying, unpacking and editing change it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from misfire_runtime.messages import LAST_DATE

EARLIEST_S = 631152000.0
"""1990-01-01. Clocks that were never set start in 1904, 1970 or 1980, and simulated ones at 0."""
_MOMENT = re.compile(
    r"(\d{4})[-:](\d\d)[-:](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6})\d*)?"
    r"\s*(?:(Z)|([+-])(\d\d):?(\d\d))?\s*"
)
_EXIF_IFD, _DATE, _OFFSET, _FRACTION, _ORIENTATION = 0x8769, 0x9003, 0x9011, 0x9291, 0x0112


def believable(seconds: float) -> float | None:
    """Returns seconds since 1970, or None if they come from a clock that was never set."""
    return seconds if EARLIEST_S <= seconds <= LAST_DATE else None


def parse_moment(text: str) -> float | None:
    """Returns the seconds since 1970 of "2023-11-14T22:13:20.5Z", "2023:11:14 23:13:20+01:00" and the like.

    A time without a zone is taken as local time of this computer. None if it is no time, or not believable.
    """
    found = _MOMENT.fullmatch(text.strip().rstrip("\0"))
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    zone = timezone.utc if found[8] else None
    try:
        if found[9]:
            away = timedelta(hours=int(found[10]), minutes=int(found[11]))
            zone = timezone(away if found[9] == "+" else -away)
        moment = datetime(
            year, month, day, hour, minute, second, int((found[7] or "").ljust(6, "0")), tzinfo=zone
        )
        return believable(moment.timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def container_time(*metadata: Mapping[str, str]) -> float | None:
    """Returns when a video began by the metadata of its container and stream; None if they do not say."""
    # Apple's key first: it names the zone.
    for key in ("com.apple.quicktime.creationdate", "creation_time"):
        for tags in metadata:
            moment = parse_moment(tags.get(key, ""))
            if moment is not None:
                return moment
    return None


def exif_time(block: bytes) -> tuple[float, bool] | None:
    """Returns when a picture was taken, and whether the block names the zone; None if it does not say.

    block: see `exif_block`. DateTimeOriginal, with SubSecTimeOriginal and OffsetTimeOriginal.
    """
    tags = _tags(block)
    fraction = re.match(r"\d+", str(tags.get(_FRACTION, "")))
    offset = str(tags.get(_OFFSET, "")).strip()
    text = str(tags.get(_DATE, "")).strip() + (f".{fraction[0]}" if fraction else "")
    moment = parse_moment(text + offset) if offset else None
    if moment is not None:
        return moment, True
    moment = parse_moment(text)
    return None if moment is None else (moment, False)


def exif_orientation(block: bytes) -> int:
    """Returns how a picture is to be turned, 1 to 8; 1 is upright."""
    found = _tags(block).get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _tags(block: bytes) -> dict[int, str | int]:
    """Returns the texts and single numbers of the first directory and of the Exif directory behind it."""
    if block[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    # II is Intel's byte order, MM is Motorola's.
    order = "<" if block[:1] == b"I" else ">"
    tags: dict[int, str | int] = {}
    try:
        tags.update(_directory(block, order, struct.unpack_from(f"{order}I", block, 4)[0]))
        tags.update(_directory(block, order, int(tags.get(_EXIF_IFD, len(block)))))
    except (struct.error, ValueError):
        pass  # damaged from here on: what was read before is right
    return tags


def _directory(block: bytes, order: str, at: int) -> dict[int, str | int]:
    found: dict[int, str | int] = {}
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for number in range(count):
        entry = at + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", block, entry)
        # Kind 2 is text, 3 and 4 are whole numbers (TIFF 6.0); dates are far below 64 bytes.
        if kind == 2 and length <= 64:
            # TIFF stores values of up to four bytes in place of their offset.
            start = entry + 8 if length <= 4 else struct.unpack_from(f"{order}I", block, entry + 8)[0]
            found[tag] = block[start : start + length].split(b"\0")[0].decode("ascii", "replace")
        elif kind in (3, 4) and length == 1:
            (found[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", block, entry + 8)
    return found
