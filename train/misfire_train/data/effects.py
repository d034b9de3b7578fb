"""Implements the corruptions.

float32 [H,W,C] in 0..1 with C 1 or 3, a level and a generator -> the same shape.

Each effect draws the same random numbers at every level, so levels of one seed differ only in strength.
Results may leave 0..1; the caller clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
# Side in pixels above which blurs grow more slowly than the image.
_LARGE = 64


def reach(pixels: Pixels) -> float:
    """Returns the length in pixels with which blurs and drops scale.

    It is the shorter side, damped above 64, at least 28.
    """
    side = float(min(pixels.shape[:2]))
    # The floor keeps the mildest blur (0.02 of the reach) from being narrower than a pixel at 8x8, which
    # would change nothing. The power keeps photographs of a thousand pixels from blurs that leave no content.
    return max(28.0, side) if side <= _LARGE else _LARGE * (side / _LARGE) ** 0.7


def noise(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Adds Gaussian noise. level: standard deviation."""
    return pixels + np.float32(level) * rng.standard_normal(pixels.shape, np.float32)


def shot(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Adds photon noise, the normal approximation of a Poisson law. level: photons at full white."""
    worse: Pixels = pixels + np.sqrt(pixels / np.float32(level)) * rng.standard_normal(
        pixels.shape, np.float32
    )
    return worse


def defocus(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Blurs by a disc. level: its radius as a share of the reach."""
    return _convolve(pixels, level * reach(pixels), _disc)


def motion(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Blurs along a line at a random angle. level: its length as a share of the reach."""
    angle = rng.uniform(0, math.pi)
    return _convolve(pixels, level * reach(pixels), lambda length: _line(length, angle))


def night(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Darkens.

    level: share of the light that is left. Shadows sink first, and sensor noise becomes visible.
    """
    # An exponent above 1 darkens shadows more than highlights, the more so the less light is left.
    dark = np.float32(level) * pixels ** np.float32(1.2 + 0.6 * (1 - level))
    if pixels.shape[2] == 3:
        # Less red, more blue.
        dark = dark * np.array([0.85, 0.95, 1.1], np.float32)
    grain = rng.standard_normal(pixels.shape, np.float32)
    # Read noise is constant, photon noise grows with the root of the light.
    worse: Pixels = dark + grain * (np.float32(0.012) + np.float32(0.06) * np.sqrt(dark))
    return worse


def fog(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Mixes in grey. level: mean share of light that comes from the fog."""
    height, width = pixels.shape[:2]
    uneven = _field((height, width), rng, cells=3) - 0.5
    rising = np.linspace(0.5, -0.5, height, dtype=np.float32)[:, None]
    veil = np.clip(level * (1 + 0.3 * uneven + 0.3 * rising), 0, 1)[:, :, None].astype(np.float32)
    # 0.82 is the fog's own grey.
    return pixels * (1 - veil) + np.float32(0.82) * veil


def contrast(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Moves all pixels towards their mean. level: share of the contrast that is left."""
    mean = pixels.mean(dtype=np.float32)
    worse: Pixels = (pixels - mean) * np.float32(level) + mean
    return worse


def glare(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Adds a low sun. level: brightness of the halo's centre."""
    height, width = pixels.shape[:2]
    centre_x, centre_y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.05, 0.6) * height
    size = rng.uniform(0.25, 0.45) * max(height, width)
    xs = ((np.arange(width) - centre_x) / size).astype(np.float32)[None]
    ys = ((np.arange(height) - centre_y) / size).astype(np.float32)[:, None]
    halo = np.exp(-(xs**2 + ys**2) * 2)
    streak = np.exp(-np.abs(ys) * 14) * np.exp(-np.abs(xs) * 1.2)
    light = (np.float32(level) * (halo + 0.4 * streak + 0.15))[:, :, None].astype(np.float32)
    if pixels.shape[2] == 3:
        # A low sun is warm.
        light = light * np.array([1.0, 0.96, 0.86], np.float32)
    # Bright pixels gain less: a sensor saturates.
    worse: Pixels = pixels + light * (1 - 0.3 * pixels)
    return worse


def exposure(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Overexposes. level: gain."""
    return pixels * np.float32(level)


def rain(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Adds streaks and a thin veil. level: 0 (dry) to 1 (cloudburst)."""
    height, width = pixels.shape[:2]
    length = 0.22 * reach(pixels)
    coarse = max(1.0, length / 12)  # a streak of a large image is wider than a pixel
    shape = (max(2, round(height / coarse)), max(2, round(width / coarse)))
    # Within 0.35 rad (20 degrees) of the vertical.
    angle = math.pi / 2 + rng.uniform(-0.35, 0.35)
    # Streaks per cell times cells per streak: about 0.36 * level of the picture is covered.
    starts = (rng.random(shape, np.float32) < 0.36 * level * coarse / length).astype(np.float32)
    # The kernel sums to 1 over the streak, so the factor gives each of its pixels an opacity of 0.9.
    lines = cv2.filter2D(starts, -1, _line(length / coarse, angle)) * np.float32(0.9 * length / coarse)
    streaks = _as_3d(cv2.resize(np.minimum(lines, 1), (width, height), interpolation=cv2.INTER_LINEAR))
    streaks *= np.float32(0.45 + 0.35 * level)
    veil = np.float32(0.35 * level)
    worse: Pixels = (pixels * (1 - veil) + np.float32(0.6) * veil) * (1 - streaks) + np.float32(
        0.88
    ) * streaks
    return worse


def snow(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Adds flakes of three sizes. level: 0 (none) to 1 (blizzard)."""
    height, width = pixels.shape[:2]
    cover: Pixels = np.zeros((height, width), np.float32)
    # Flake sizes as shares of the reach: far, middle and near.
    for share in (0.015, 0.03, 0.06):
        cell = max(1.0, share * reach(pixels))
        rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
        flakes = (rng.random((rows, columns), np.float32) < 0.16 * level).astype(np.float32)
        cover = np.maximum(cover, cv2.resize(flakes, (width, height), interpolation=cv2.INTER_LINEAR))
    cover = _as_3d(cover * np.float32(0.6 + 0.4 * level))
    veil = np.float32(0.25 * level)
    return (pixels * (1 - veil) + np.float32(0.85) * veil) * (1 - cover) + np.float32(0.97) * cover


def dirt(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Covers parts of the lens with mud. level: share of the lens that is covered."""
    alpha = _blobs((pixels.shape[0], pixels.shape[1]), level, rng, cells=5, softness=12)[:, :, None]
    mud = np.array([0.27, 0.22, 0.16], np.float32) if pixels.shape[2] == 3 else np.float32(0.22)
    return pixels * (1 - alpha) + mud * alpha


def drops(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Covers parts of the lens with water. level: share of the lens that is covered."""
    alpha = _blobs((pixels.shape[0], pixels.shape[1]), level, rng, cells=7, softness=20)[:, :, None]
    behind = _convolve(pixels, 0.16 * reach(pixels), _disc)
    # Water takes a little contrast from what is behind it, and adds a little light of its own.
    return pixels * (1 - alpha) + (behind * np.float32(0.85) + np.float32(0.1)) * alpha


def jpeg(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Compresses as JPEG. level: quality."""
    raw = (np.clip(pixels, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    colour = raw.shape[2] == 3
    # OpenCV encodes BGR.
    stored = cv2.cvtColor(raw, cv2.COLOR_RGB2BGR) if colour else raw
    _, data = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, round(level)])
    back = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE)
    return _as_3d(np.asarray(back, np.float32) * np.float32(1 / 255))


def pixelate(pixels: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Reduces the resolution. level: share that is left."""
    height, width = pixels.shape[:2]
    small = (max(2, round(width * level)), max(2, round(height * level)))
    return _as_3d(
        cv2.resize(
            cv2.resize(pixels, small, interpolation=cv2.INTER_AREA),
            (width, height),
            interpolation=cv2.INTER_LINEAR,
        )
    )


def _as_3d(pixels: NDArray[Any]) -> Pixels:
    """Returns float32 [H,W,C]; OpenCV drops a single channel."""
    return np.asarray(pixels[:, :, None] if pixels.ndim == 2 else pixels, np.float32)


def _field(shape: tuple[int, int], rng: np.random.Generator, *, cells: int) -> NDArray[np.float32]:
    """Returns smooth random numbers of about 0..1, [H,W]."""
    coarse = rng.random((cells + 1, cells + 1), np.float32)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _blobs(
    shape: tuple[int, int], share: float, rng: np.random.Generator, *, cells: int, softness: float
) -> NDArray[np.float32]:
    """Returns soft-edged patches that cover about `share` of the area.

    A larger share grows the same patches.
    """
    field = _field(shape, rng, cells=cells)
    return np.clip((field - np.quantile(field, 1 - share)) * np.float32(softness) + np.float32(0.5), 0, 1)


def _disc(radius: float) -> NDArray[np.float32]:
    """Returns a disc of this radius in pixels with an edge one pixel soft; it sums to 1."""
    half = math.ceil(radius)
    grid = np.arange(-half, half + 1, dtype=np.float32)
    kernel = np.clip(np.float32(radius + 0.5) - np.hypot(grid[None], grid[:, None]), 0, 1)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _line(length: float, angle: float) -> NDArray[np.float32]:
    """Returns a line of this length in pixels through the centre; it sums to 1."""
    half = math.ceil(length / 2)
    kernel = np.zeros((2 * half + 3, 2 * half + 3), np.float32)
    # About two points per pixel leave no gaps; each is shared among its four neighbours, so any angle is
    # smooth.
    for along in np.linspace(-length / 2, length / 2, max(3, 4 * half + 1)):
        x, y = along * math.cos(angle) + half + 1, along * math.sin(angle) + half + 1
        column, row = math.floor(x), math.floor(y)
        fx, fy = x - column, y - row
        kernel[row : row + 2, column : column + 2] += np.outer((1 - fy, fy), (1 - fx, fx)).astype(np.float32)
    worse: Pixels = kernel / kernel.sum()
    return worse


def _convolve(pixels: Pixels, size: float, kernel_of: Callable[[float], NDArray[np.float32]]) -> Pixels:
    """Filters with kernel_of(size); large kernels work on a reduced image."""
    height, width = pixels.shape[:2]
    factor = 1
    # A filter's cost grows with the square of its size, and a wide blur removes the detail that reduction
    # loses.
    while size / factor > 12 and min(height, width) / factor > 2 * _LARGE:
        factor *= 2
    if factor == 1:
        return _as_3d(cv2.filter2D(pixels, -1, kernel_of(size), borderType=cv2.BORDER_REFLECT))
    small = cv2.resize(pixels, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    worse = cv2.filter2D(small, -1, kernel_of(size / factor), borderType=cv2.BORDER_REFLECT)
    return _as_3d(cv2.resize(worse, (width, height), interpolation=cv2.INTER_LINEAR))
