"""Makes samples by number: pictures that are all different, and some that no fleet must take."""

from __future__ import annotations

import hashlib
import random
import zlib
from functools import cache

import cv2

from proving_ground.pictures import view


@cache
def _picture(width: int) -> bytes:
    small = cv2.resize(view(), (width, width * 9 // 16), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def make_payload(name: str, number: int, *, size: int = 6000, width: int = 128) -> bytes:
    """Returns a JPEG of a photograph, filled up to `size` bytes with comments that make it unique."""
    picture = _picture(width)
    filler = random.Random(f"{name} {number}").randbytes(max(16, size - len(picture)))
    # A JPEG segment has at most 65,533 bytes of content: its length of two bytes counts itself.
    comments = b"".join(
        b"\xff\xfe" + (len(part) + 2).to_bytes(2, "big") + part
        for part in (filler[at : at + 60000] for at in range(0, len(filler), 60000))
    )
    return picture[:2] + comments + picture[2:]


def make_trick(kind: str | None, payload: bytes) -> tuple[bytes, dict[str, object]]:
    """Returns a sample that no fleet must take, and what its offer claims of it; None: as it is.

    bomb: a PNG of some hundred KiB that unpacks to a gigapixel. large: more bytes than are taken.
    lie: another kind than its bytes. impostor: offered in another vehicle's name. noise: no picture.
    """
    if kind == "bomb":
        return _bomb(hashlib.sha256(payload).hexdigest().encode()), {"media_type": "image/png"}
    if kind == "large":
        return payload[:2] + (b"\xff\xfe\xff\xff" + b"x" * 65533) * 4 + payload[2:], {}
    if kind == "lie":
        return payload, {"media_type": "image/png"}
    if kind == "impostor":
        return payload, {"vehicle": "somebody-else"}
    if kind == "noise":
        return b"no picture " + payload[11:], {}
    return payload, {}


def _bomb(name: bytes, side: int = 32_000) -> bytes:
    """Returns a PNG of one bit per pixel, all alike: 128 MB of rows, 3 GB as RGB."""
    header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    parts = ((b"IHDR", header), (b"tEXt", b"name\0" + name), (b"IDAT", _rows(side)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in parts
    )


@cache
def _rows(side: int) -> bytes:
    return zlib.compress(bytes((side // 8 + 1) * side), 9)
