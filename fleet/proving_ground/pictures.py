"""Makes pictures for tests that need no particular one: views of the two photographs in scikit-learn.

view(3) is always the same pixels; `write_stills` and `write_clip` make folders and films of such views, so
that tests run where no real data is. A test that is about real data asks `proving_ground.services.data_root`.
"""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import encode_jpeg

if TYPE_CHECKING:
    from misfire_train.data import Dataset

Picture = NDArray[np.uint8]


@cache
def _photographs() -> tuple[Picture, ...]:
    """Returns two RGB photographs, 640x427, without importing scikit-learn, which takes seconds."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "images"
    images = [cv2.imread(str(folder / name)) for name in ("china.jpg", "flower.jpg")]
    # OpenCV reads BGR.
    return tuple(cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in images)


def view(number: int = 0, *, width: int = 1280, height: int = 720) -> Picture:
    """Returns a part of a photograph in its own light, [height, width, 3] RGB, decided by the number."""
    rng = np.random.default_rng(number)
    photograph = _photographs()[number % 2]
    zoom = rng.uniform(0.5, 0.9)
    rows = int(photograph.shape[0] * zoom)
    columns = int(photograph.shape[1] * zoom)
    top, left = rng.integers(0, photograph.shape[0] - rows), rng.integers(0, photograph.shape[1] - columns)
    part = photograph[top : top + rows, left : left + columns]
    lit = np.clip(part.astype(np.float32) * rng.uniform(0.6, 1.2), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(lit, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def jpeg(number: int = 0, *, width: int = 1280, height: int = 720) -> bytes:
    """Returns the view as a JPEG file."""
    return encode_jpeg(view(number, width=width, height=height))


def write_stills(folder: Path, *, count: int = 14) -> list[Path]:
    """Writes `count` views as JPEG files and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"still-{number:02}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    return paths


def write_clip(path: Path, *, frames: int = 221, width: int = 960, height: int = 540, rate: int = 25) -> Path:
    """Writes an H.264 film: the camera sways over a photograph while the light flickers.

    Every frame differs from the one before, none stands out, and every twelfth one is a key frame.
    """
    sway = width // 4
    wide = cv2.resize(_photographs()[0], (width + 2 * sway, height), interpolation=cv2.INTER_LINEAR)
    light = np.random.default_rng(0).uniform(0.7, 1.1, frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 12
        stream.time_base = Fraction(1, rate)
        for number in range(frames):
            left = sway + int(sway * np.sin(number / 3))
            picture = cv2.convertScaleAbs(wide[:, left : left + width], alpha=light[number])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        # Without a frame: the encoder gives out what it still holds.
        container.mux(stream.encode(None))
    return path


def drawn_figures(**options: Any) -> Dataset:
    """Returns the `figures` data sets with views as their backgrounds; options as of `load_figures`."""
    from misfire_train.data.drawn.figures import Photo, load_figures

    photos = [Photo(f"view-{number}", view(number, width=640, height=360)) for number in range(30)]
    return load_figures(photos=photos, **options)
