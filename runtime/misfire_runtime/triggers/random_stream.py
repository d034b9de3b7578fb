"""Draws the unbiased stream: every frame with the same small probability, whatever its scores.

seed (durable) + identity of the frame --keyed hash--> in the stream, or not

Every later statistic weighs a sample by the inverse of its probability, so nothing else touches the choice
(no cool-down, no novelty, no budget), and a frame is drawn once: whoever sees it again, after a kill or in a
repeated recording, decides alike. A recorded frame is identified by its picture, because names, positions
and folders change between runs. A live frame never returns: its run and its index identify it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from misfire_runtime.sources.frame import Frame
from misfire_runtime.state.small_files import read_state, write_state
from misfire_runtime.tables import Rate, Table

_LOG = logging.getLogger(__name__)
# The digest has 8 bytes; this maps it to 0..1.
_SCALE = 1.0 / 2**64
_ROWS = 4
"""Of a decoded picture that are hashed, beside its time: the whole could cost more than scoring it."""
_VERSION = 1


class RandomTable(Table):
    """The unbiased stream."""

    rate: Rate = 0.01
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


class RandomStream:
    """Samples frames independently of each other with probability `rate`."""

    name = "random"

    def __init__(self, *, rate: float, seed: int) -> None:
        """Takes the rate, 0..1, and a signed seed of 64 bits."""
        self.rate = rate
        self.seed = seed
        self._key = seed.to_bytes(16, "little", signed=True)

    def takes(self, identity: str) -> bool:
        """Returns whether the frame of that identity is in the stream."""
        if self.rate <= 0:
            return False
        # A keyed hash: vehicles with different seeds draw different frames.
        digest = hashlib.blake2b(identity.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little") * _SCALE < self.rate


def live_identity(frame: Frame, *, run: str) -> str:
    """Returns the identity of a live frame.

    Args:
        frame: from a live source.
        run: differs for every run, whose indices all begin at 0.
    """
    return f"{run}/{frame.source}/{frame.index}"


def recorded_identity(frame: Frame) -> str:
    """Returns the identity of a recorded frame: its bytes, or rows of its pixels and its time."""
    if frame.original is not None:
        return hashlib.blake2b(frame.original, digest_size=16).hexdigest()
    height, width, _channels = frame.image.shape
    rows = frame.image[:: max(1, height // _ROWS)].tobytes()
    return f"{hashlib.blake2b(rows, digest_size=16).hexdigest()}/{width}x{height}/{frame.pts_s}"


def kept_seed(path: Path) -> int:
    """Returns the seed in `path`; draws one if there is none, so that no two vehicles choose alike.

    A seed that cannot be written is used all the same, with a log line: frames drawn now may be drawn again
    after a restart.
    """
    seed = read_state(
        path,
        _seed,
        missing=None,
        damaged=None,
        assume="a new seed is drawn: recordings that are read again are sampled a second time",
    )
    if seed is not None:
        return seed
    # 63 bits: a seed in a configuration is a signed number of 64.
    seed = secrets.randbits(63)
    try:
        write_state(path, json.dumps({"version": _VERSION, "seed": seed}).encode())
    except OSError as error:
        _LOG.error("seed_unwritable", extra={"fields": {"file": str(path), "problem": str(error)}})
    return seed


def _seed(state: Any) -> int | None:
    seed = state["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"{seed!r} is not a seed")
    return seed
