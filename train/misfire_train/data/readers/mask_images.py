"""Reads mask images, for data sets and for labels that come back, as the numbers that the file stores.

A PNG of 1, 2 or 4 bits, or with a palette, stores small numbers. A decoder made for viewing turns them into
shades or colours. Here they stay numbers: a pixel of class 2 is 2 at every depth.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from misfire_runtime.preprocess import MAX_PIXELS
from misfire_train.data.readers.options import printable
from misfire_train.errors import DatasetError

IGNORE = 255
"""The value of a pixel without a label."""
# Lossless formats only: compression would change class numbers.
_EXACT_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
_STEP = {"L;2": 85, "L;4": 17}
"""Pillow stretches grey of 2 and 4 bits to 0..255; these undo it."""
# Bounds the memory that a broken or hostile file can take before its size in pixels is known.
_MAX_BYTES = 256 * 1024 * 1024


def read_mask(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    ignore: frozenset[int] = frozenset(),
) -> NDArray[np.uint8]:
    """Returns the class numbers of a mask image, uint8 [H,W]; 255 means "not labelled".

    Args:
        path: the mask.
        size: width and height of the mask's image.
        classes: number of classes, None if unknown.
        ignore: stored labels that become 255.

    Raises:
        DatasetError: names the file if it is unreadable, lossy, in colours, of another size, or has a label
            of no class.
    """
    name = printable(path)
    stored = _stored(path, name)
    if size is not None and stored.shape != (size[1], size[0]):
        raise DatasetError(
            f"{name}: the mask is {stored.shape[1]}x{stored.shape[0]}, its image {size[0]}x{size[1]}"
        )
    labels = np.where(np.isin(stored, sorted(ignore)), IGNORE, stored) if ignore else stored
    known = IGNORE if classes is None else classes
    wrong = labels[(labels < 0) | ((labels >= known) & (labels != IGNORE))]
    if wrong.size:
        raise DatasetError(
            f"{name}: the mask has the label {int(wrong.max())}; expected class numbers "
            f"from 0 to {known - 1}, and {IGNORE} for pixels without a label"
        )
    return labels.astype(np.uint8)


def resize_mask(mask: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resizes by the nearest label, to uint8 [height,width]."""
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _stored(path: Path, name: str) -> NDArray[Any]:
    """Reads the numbers in the file, integer [H,W]."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{name}: a mask has at most {_MAX_BYTES} bytes")
        data = path.read_bytes()
        if data[:2] == b"\xff\xd8":
            raise DatasetError(f"{name}: JPEG changes class numbers; save masks as PNG")
        with warnings.catch_warnings():
            # Its own limit on pixels is a warning; ours below is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_EXACT_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DatasetError(
                        f"{name}: {image.width}x{image.height} is above the limit of {MAX_PIXELS} pixels"
                    )
                step = _grey_step(image)
                pixels = np.asarray(image) if image.mode != "PA" else np.asarray(image)[..., 0]
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name}: the mask cannot be read ({error})") from error
    if pixels.ndim == 3:
        pixels = _one_channel(pixels, name)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise DatasetError(f"{name}: the mask holds {pixels.dtype} numbers; expected whole class numbers")
    return pixels // step if step > 1 else pixels


def _grey_step(image: ImageFile.ImageFile) -> int:
    """Returns what to divide by; it is known only before the pixels are loaded."""
    arguments = image.tile[0].args if image.tile else ()
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return _STEP.get(raw, 1) if isinstance(raw, str) else 1


def _one_channel(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns the grey of [H,W,2..4]; an alpha channel has no classes."""
    colours = pixels[..., :1] if pixels.shape[2] == 2 else pixels[..., :3]
    if not (colours == colours[..., :1]).all():
        raise DatasetError(
            f"{name}: the mask is in colours; expected class numbers (one channel, or a palette), "
            f"{IGNORE} for no label"
        )
    return np.asarray(colours[..., 0])
