"""Corrupts images: weather, light, lens, sensor and link faults that a vehicle meets and a data set lacks.

Head training, the judge and the demo use the same families, so a family that one of them holds out is exactly
the family that another trains on. Every family has five severities. The same image, family, severity and seed
give the same bytes. A higher severity is the same draw (the same rain), only stronger. Nothing moves, so the
labels of every task stay valid. Blurs, drops and streaks scale with the image, from 8x8 to 1080p.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image
from misfire_train.data import effects
from misfire_train.data.effects import Pixels
from misfire_train.data.examples import Examples
from misfire_train.data.images import MAX_CACHE_BYTES, DecodedImages, ImageArray, ImageSubset

SEVERITIES = (1, 2, 3, 4, 5)
Kind = Literal["weather", "light", "lens", "sensor", "link"]


@dataclass(frozen=True)
class Family:
    """Describes one corruption.

    levels: the effect's strength at severity 1..5, in the unit that `effect` documents.

    weather and light come from outside. lens, sensor and link are photographic: they belong to the camera.
    """

    name: str
    kind: Kind
    about: str
    levels: tuple[float, float, float, float, float]
    effect: Callable[[Pixels, float, np.random.Generator], Pixels]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("noise", "sensor", "Gaussian read noise", (0.04, 0.07, 0.11, 0.16, 0.22), effects.noise),
        Family("shot", "sensor", "photon noise, stronger in bright places", (60, 30, 16, 9, 5), effects.shot),
        Family("blur", "lens", "defocus: a disc", (0.02, 0.032, 0.046, 0.064, 0.085), effects.defocus),
        Family(
            "motion",
            "lens",
            "motion blur: a line at a random angle",
            (0.06, 0.1, 0.15, 0.21, 0.28),
            effects.motion,
        ),
        Family("night", "light", "dark, bluish, noisy", (0.6, 0.42, 0.28, 0.18, 0.11), effects.night),
        Family(
            "fog", "weather", "an uneven veil, denser upwards", (0.25, 0.4, 0.55, 0.68, 0.78), effects.fog
        ),
        Family(
            "contrast", "light", "low contrast: flat light", (0.6, 0.45, 0.32, 0.22, 0.14), effects.contrast
        ),
        Family(
            "glare", "light", "a low sun: halo, streak and veil", (0.35, 0.55, 0.75, 0.95, 1.2), effects.glare
        ),
        Family(
            "exposure",
            "light",
            "overexposed, highlights clipped",
            (1.3, 1.6, 2.0, 2.5, 3.2),
            effects.exposure,
        ),
        Family("rain", "weather", "streaks and a thin veil", (0.15, 0.28, 0.42, 0.58, 0.75), effects.rain),
        Family("snow", "weather", "flakes of three sizes", (0.15, 0.28, 0.42, 0.58, 0.75), effects.snow),
        Family("dirt", "lens", "opaque mud on the lens", (0.06, 0.12, 0.2, 0.3, 0.4), effects.dirt),
        Family(
            "drops",
            "lens",
            "water drops that blur what is behind them",
            (0.1, 0.2, 0.32, 0.45, 0.6),
            effects.drops,
        ),
        Family("jpeg", "link", "JPEG at low quality", (40, 25, 15, 9, 5), effects.jpeg),
        Family("pixelate", "link", "sent at low resolution", (0.7, 0.52, 0.4, 0.3, 0.22), effects.pixelate),
    )
}


def corrupt(image: Image, family: str, *, severity: int, seed: int) -> Image:
    """Returns the corrupted image, uint8 [H,W,3] of the same size.

    An image of three equal channels stays grey. A fourth channel stays as it is.

    Args:
        image: uint8 RGB [H,W,3].
        family: a key of FAMILIES.
        severity: 1 (mild) to 5.
        seed: decides the random draws; the same seed gives the same bytes.

    Raises:
        ConfigError: the family is unknown or the severity is outside 1..5.

    >>> corrupt(np.full((8, 8, 3), 200, np.uint8), "contrast", severity=5, seed=0).shape
    (8, 8, 3)
    """
    chosen, level = _level(family, severity)
    if image.shape[2] == 4:
        worse = corrupt(np.ascontiguousarray(image[:, :, :3]), family, severity=severity, seed=seed)
        return np.concatenate((worse, image[:, :, 3:]), axis=2)
    # Colour noise or a tint would give a grey data set colours that no image of it has.
    grey = bool((image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 1] == image[:, :, 2]).all())
    worse = _apply(image[:, :, :1] if grey else image, chosen, level, seed)
    return np.repeat(worse, 3, axis=2) if grey else worse


def corrupt_all(examples: Examples, family: str, *, severity: int, seed: int) -> Examples:
    """Returns all examples corrupted, each by its own seed; targets, ids and groups stay.

    Images of one size are corrupted now, others when they are decoded.

    Args:
        examples: N labelled images.
        family: a key of FAMILIES.
        severity: 1 (mild) to 5.
        seed: combined with each id to the seed of an image, so the result does not depend on the order.

    Raises:
        ConfigError: the family is unknown or the severity is outside 1..5.
    """
    # Called for its checks: images that are corrupted lazily would raise only in the middle of a run.
    _level(family, severity)
    seeds = [image_seed(seed, identity) for identity in examples.ids]
    images = examples.images
    base = images.base if isinstance(images, ImageSubset) else images
    if isinstance(base, ImageArray) and base.data[:1].size * len(examples) <= MAX_CACHE_BYTES:
        made = np.empty((len(examples), *base.data.shape[1:]), np.uint8)
        for row, own in enumerate(seeds):
            worse = corrupt(images[row], family, severity=severity, seed=own)
            made[row] = worse if base.data.ndim == 4 else worse[:, :, 0]
        return Examples(ImageArray(made), examples.targets, examples.ids, examples.groups)

    def decode(index: int) -> Image:
        return corrupt(images[index], family, severity=severity, seed=seeds[index])

    lazy = DecodedImages(decode, count=len(examples))
    return Examples(lazy, examples.targets, examples.ids, examples.groups)


def image_seed(seed: int, identity: str) -> int:
    """Returns a seed of 63 bits for one image."""
    return (
        # A cryptographic hash is the same in every process, which Python's own hash of a text is not. The
        # shift drops one bit, so that the seed fits a signed 64-bit integer.
        int.from_bytes(hashlib.blake2b(f"{seed}\x00{identity}".encode(), digest_size=8).digest(), "big") >> 1
    )


def _level(family: str, severity: int) -> tuple[Family, float]:
    chosen = FAMILIES.get(family)
    if chosen is None:
        raise ConfigError(f"there is no corruption {family!r}; there are {', '.join(FAMILIES)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity {severity} of {family}: severities are 1 to 5")
    return chosen, chosen.levels[severity - 1]


def _apply(image: Image, family: Family, level: float, seed: int) -> NDArray[np.uint8]:
    # SeedSequence refuses negative numbers. The name makes two families of one image draw independently.
    rng = np.random.default_rng([seed & 0x7FFFFFFFFFFFFFFF, *family.name.encode()])
    pixels = np.multiply(image, np.float32(1 / 255), dtype=np.float32)
    worse = family.effect(pixels, level, rng)
    # astype truncates; adding a half makes it round.
    return (np.clip(worse, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
