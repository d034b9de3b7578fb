"""Samples by number: real pictures that are all different, and the offers that fit them."""

from __future__ import annotations

import hashlib
import random
from functools import cache

import cv2
import numpy as np
from tests.services import data_root

from misfire_runtime import clock
from misfire_runtime.messages import Clock, Offer, Trigger, pack_embedding


@cache
def _picture(width: int) -> bytes:
    still = sorted((data_root() / "dashcam" / "stills").glob("*.jpg"))[0]
    image = cv2.imread(str(still))
    small = cv2.resize(image, (width, width * image.shape[0] // image.shape[1]), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def make_payload(name: str, number: int, *, size: int = 6000, width: int = 128) -> bytes:
    """A JPEG of a real scene, filled up to `size` bytes with comments that make it unique."""
    picture = _picture(width)
    filler = random.Random(f"{name} {number}").randbytes(max(16, size - len(picture)))
    comments = b"".join(
        b"\xff\xfe" + (len(part) + 2).to_bytes(2, "big") + part
        for part in (filler[at : at + 60000] for at in range(0, len(filler), 60000))
    )
    return picture[:2] + comments + picture[2:]


def make_offer(payload: bytes, *, vehicle: str = "car", number: int = 0, **fields: object) -> Offer:
    """A complete offer of `payload`; `fields` replace its own."""
    rng = np.random.default_rng(number)
    embedding = rng.normal(size=32)
    values: dict[str, object] = {
        "id": hashlib.sha256(payload).hexdigest(),
        "vehicle": vehicle,
        "size": len(payload),
        "captured_at": Clock(wall=clock.wall_time(), monotonic=5.0, boot_id=clock.boot_id()),
        "bundle": "lights@1.0.0",
        "scores": {"entropy": 0.7},
        "percentiles": {"entropy": (number % 100) / 100},
        "trigger": Trigger(name="target-rate", reason="above its quantile"),
        "prediction": {"class": "red", "confidence": 0.6},
        "embedding": pack_embedding(embedding / np.linalg.norm(embedding)),
        "source": "front",
        "frame": number,
    }
    return Offer.model_validate(values | fields)
