"""Makes samples for simulated vehicles: real pictures, each unique, with scores distributed as in a bundle.

A comment inside the file makes a picture unique: the bytes and the hash change, the pixels do not, and no
time is spent on encoding. Scores are drawn from the quantile tables of the bundle's calibration.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from misfire_runtime.bundle import Manifest
from misfire_runtime.clock import boot_id, wall_time
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock, Offer, Trigger, pack_embedding
from misfire_runtime.preprocess import decode_image

_KINDS = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
_PNG_HEADER = 33
"""Bytes of the signature (8) and the IHDR chunk (25); other chunks may follow only after these."""
RANDOM_SHARE = 1 / 3
"""Share of random uploads of a vehicle that selects 2 % of its frames and adds a random stream of 1 %."""


@dataclass(frozen=True)
class Picture:
    """Holds an encoded image and its media type."""

    data: bytes
    media_type: str

    @cached_property
    def size(self) -> tuple[int, int]:
        """Returns width and height in pixels."""
        height, width = decode_image(self.data).shape[:2]
        return width, height

    def numbered(self, number: int) -> bytes:
        """Returns the picture as a file whose bytes differ for every number."""
        note = f"misfire simulation {number}".encode()
        if self.media_type == "image/jpeg":
            # A COM segment (FF FE) directly after the SOI marker; its length field counts itself.
            return self.data[:2] + b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note + self.data[2:]
        body = b"tEXt" + b"Comment\0" + note
        # A PNG chunk's length leaves out its name; its checksum includes it.
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return self.data[:_PNG_HEADER] + chunk + self.data[_PNG_HEADER:]


def read_pictures(folder: Path, *, limit: int = 256) -> list[Picture]:
    """Returns the first `limit` JPEG and PNG files below a folder. Raises ConfigError if there are none."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _KINDS)[:limit]
    if not files:
        raise ConfigError(f"--images {folder}: there is no JPEG or PNG file in this folder")
    return [Picture(file.read_bytes(), _KINDS[file.suffix.lower()]) for file in files]


class SampleFactory:
    """Makes samples. The same seed makes the same samples, except for their capture times."""

    def __init__(self, pictures: Sequence[Picture], *, manifest: Manifest | None, seed: int) -> None:
        self._pictures = pictures
        self._manifest = manifest
        self._random = random.Random(seed)
        self._seed = seed
        # Drawing one embedding per sample would cost more than everything else; 512 are enough variety.
        scenes = np.random.default_rng(seed).normal(size=(512, 64)).astype(np.float32)
        scenes /= np.linalg.norm(scenes, axis=1, keepdims=True)
        self._scenes = [pack_embedding(scene) for scene in scenes]
        self._boot = boot_id()

    def bytes_of(self, number: int) -> bytes:
        """Returns the bytes of sample `number`."""
        picture = self._pictures[number % len(self._pictures)]
        # A large prime as stride keeps the samples of two seeds apart: runs against one store share no ids.
        return picture.numbered(self._seed * 1_000_000_007 + number)

    def offer(self, number: int, *, vehicle: str, monotonic: float) -> Offer:
        """Returns the offer of sample `number`; `monotonic` is its capture time in seconds."""
        data = self.bytes_of(number)
        chance = self._random.random() < RANDOM_SHARE
        # A random frame has any percentile; a selected one is among the top 2 %.
        level = self._random.random() if chance else 0.98 + 0.02 * self._random.random()
        scores, percentiles = self._scores(level)
        return Offer(
            id=hashlib.sha256(data).hexdigest(),
            vehicle=vehicle,
            size=len(data),
            media_type=self._pictures[number % len(self._pictures)].media_type,
            captured_at=Clock(wall=wall_time(), monotonic=monotonic, boot_id=self._boot),
            bundle="simulation@0.0.0" if self._manifest is None else self._manifest.label,
            scores=scores,
            percentiles=percentiles,
            trigger=Trigger(name="random" if chance else "target-rate", random=chance),
            prediction=self._prediction(self._pictures[number % len(self._pictures)]),
            embedding=self._random.choice(self._scenes),
            source="simulation",
            frame=number,
        )

    def _scores(self, level: float) -> tuple[dict[str, float], dict[str, float]]:
        """Returns scores and percentiles of a frame. All its scores have a similar percentile."""
        if self._manifest is None:
            return {"simulated": level}, {"simulated": level}
        scores, percentiles = {}, {}
        for spec in self._manifest.scores:
            own = min(1.0, max(0.0, level + self._random.gauss(0, 0.05)))
            table = spec.calibration.quantiles
            scores[spec.name] = float(np.interp(own, table.levels, table.values))
            percentiles[spec.name] = own
        return scores, percentiles

    def _prediction(self, picture: Picture) -> dict[str, Any]:
        if self._manifest is None or not self._manifest.classes:
            return {}
        if self._manifest.detection is not None:
            return self._boxes(picture)
        return {"class": self._random.choice(self._manifest.classes), "confidence": self._random.random()}

    def _boxes(self, picture: Picture) -> dict[str, Any]:
        """Returns up to eight boxes, as of a detector's offer."""
        assert self._manifest is not None and self._manifest.detection is not None
        lowest = self._manifest.detection.score_threshold
        width, height = picture.size
        boxes = []
        for _ in range(self._random.randint(0, 8)):
            x, y = self._random.uniform(0, 0.8) * width, self._random.uniform(0, 0.8) * height
            corners = (x, y, x + self._random.uniform(0.05, 0.2) * width, y + 0.2 * height)
            box: dict[str, Any] = {
                "class": self._random.choice(self._manifest.classes),
                "score": round(self._random.uniform(lowest, 1), 4),
                "p": round(self._random.random(), 4),
                "box": [round(side, 1) for side in corners],
            }
            boxes.append(box)
        boxes.sort(key=lambda box: box["score"], reverse=True)
        return {"boxes": boxes, "more": 0, "size": [width, height]}
