"""The unbiased stream: every frame with the same small probability, whatever its scores.

It is what every later statistic stands on, so nothing else touches its choice: no cool-down, no novelty, no
budget. Whether a frame belongs to it is a function of (seed, source, index) alone: a replay chooses the same
frames, and a restart cannot favour any.
"""

from __future__ import annotations

import hashlib
import secrets

_SCALE = 1.0 / 2**64


class RandomStream:
    """Bernoulli sampling at `rate`."""

    name = "random"

    def __init__(self, *, rate: float, seed: int | None = None) -> None:
        """rate: 0..1.  seed: None draws one, so that no two vehicles choose alike."""
        self.rate = rate
        self.seed = secrets.randbits(63) if seed is None else seed
        self._key = self.seed.to_bytes(16, "little", signed=True)

    def takes(self, source: str, index: int) -> bool:
        """Whether frame `index` of `source` is in the stream."""
        if self.rate <= 0:
            return False
        digest = hashlib.blake2b(f"{source}\0{index}".encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little") * _SCALE < self.rate
