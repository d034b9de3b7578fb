"""Films pictures as drives: each has a camera, an exposure and a weather of its own.

picture --film(drive, seed)--> weather, lens, light and sensor of the drive --> picture, the same size

Nothing moves, so the labels of every task stay valid. A drive's name and seed determine its look, a frame's
seed what varies within the drive, so the same frame has the same bytes in every process.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image
from misfire_train.data.corruptions import FAMILIES, corrupt

# Two drives in five are dry and clear, as most of a fleet's are.
_FAIR = 0.4
_LEAST_CONTRAST = 0.45
"""Of the scenery behind pasted objects: a quieter background leaves the object visible."""


@dataclass(frozen=True)
class Drive:
    """Holds what all frames of a drive share.

    gain, gamma: exposure and tone curve.  cast: factors of red, green and blue.  blur: deviation of the
    lens's blur, a share of the shorter side.  vignette: share of the light that the corners lose.  grain:
    deviation of the sensor's noise, in grey values.  weather: a corruption family, None in fair weather;
    `wet` is the share of frames that show it, up to `severity`.  scenery: number of the background.
    """

    name: str
    gain: float
    gamma: float
    cast: tuple[float, float, float]
    blur: float
    vignette: float
    grain: float
    weather: str | None
    severity: int
    wet: float
    scenery: int


def sample_drive(name: str, seed: tuple[int, ...], *, scenery: int = 0) -> Drive:
    """Returns the look of a drive; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    red, green, blue = (float(value) for value in np.exp(rng.normal(0, 0.08, 3)))
    weather = None if rng.random() < _FAIR else str(rng.choice(list(FAMILIES)))
    return Drive(
        name=name,
        gain=float(np.exp(rng.normal(0, 0.22))),
        gamma=float(np.exp(rng.normal(0, 0.18))),
        cast=(red, green, blue),
        # Half of the lenses are sharp.
        blur=float(max(0.0, rng.normal(0, 0.014))),
        vignette=float(rng.uniform(0, 0.5)),
        grain=float(rng.uniform(1, 12)),
        weather=weather,
        severity=int(rng.integers(1, 5)),
        wet=float(rng.uniform(0.4, 1.0)),
        scenery=scenery,
    )


def film(image: Image, drive: Drive, *, seed: tuple[int, ...]) -> Image:
    """Returns the picture as the drive's camera sees it, uint8 [H,W,3].

    Args:
        image: uint8 RGB [H,W,3].
        drive: the look.
        seed: of this frame: its noise, whether it shows the drive's weather and how strongly.
    """
    rng = np.random.default_rng(seed)
    if drive.weather is not None and rng.random() < drive.wet:
        severity = int(rng.integers(1, drive.severity + 1))
        image = corrupt(image, drive.weather, severity=severity, seed=int(rng.integers(2**62)))
    pixels = image.astype(np.float32) * np.float32(1 / 255)
    sigma = drive.blur * min(image.shape[:2])
    # A narrower kernel than this changes no pixel by a grey value.
    if sigma > 0.3:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.float32)
    # The exposure of a camera drifts within a drive.
    gain = np.float32(drive.gain * np.exp(rng.normal(0, 0.04)))
    light = _vignette(image.shape[0], image.shape[1], drive.vignette)[..., None] * gain
    pixels = np.clip(pixels * light * np.asarray(drive.cast, np.float32), 0, 1) ** np.float32(drive.gamma)
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(drive.grain / 255)
    return np.asarray(np.clip((pixels + grain) * 255 + 0.5, 0, 255), np.uint8)


def paste(patch: NDArray[np.uint8], scenery: Image, *, side: int, rng: np.random.Generator) -> Image:
    """Returns a bright object of a dark picture in front of a piece of scenery, uint8 [side,side,3].

    Args:
        patch: uint8 [H,W] with H, W <= side; what is black is transparent.
        scenery: a photograph, of which a random piece is seen.
        side: of the result.
        rng: draws place, piece and paint.
    """
    height, width = scenery.shape[:2]
    extent = max(side, int(min(height, width) * rng.uniform(0.2, 0.7)))
    top, left = (int(rng.integers(max(1, size - extent + 1))) for size in (height, width))
    piece = scenery[top : top + extent, left : left + extent]
    backdrop = cv2.resize(piece, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    backdrop = (backdrop - 128) * np.float32(rng.uniform(_LEAST_CONTRAST, 0.8)) + 110
    alpha = np.zeros((side, side), np.float32)
    rows, columns = (int(rng.integers(side - size + 1)) for size in patch.shape)
    alpha[rows : rows + patch.shape[0], columns : columns + patch.shape[1]] = patch.astype(np.float32) / 255
    paint = rng.uniform(150, 255, 3).astype(np.float32)
    cover = np.clip(2 * alpha, 0, 1)[..., None]
    mixed = backdrop * (1 - cover) + alpha[..., None] * paint * cover
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


def _vignette(height: int, width: int, loss: float) -> NDArray[np.float32]:
    """Returns the share of the light that reaches each pixel, [H,W]: 1 in the middle."""
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return np.asarray(1 - np.float32(loss) * (rows**2 + columns**2) / 2, np.float32)
