"""Turns images into tensors: the one implementation that training, export parity and the vehicle share.

bytes --decode_image--> uint8 [H,W,3] RGB --resize by the contract's rule--> normalise --> float32 [1,C,H,W]

Two implementations of a resize differ by more than a failure score's threshold can bear, hence only one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from misfire_runtime.encoded import stated_size, without_trailer
from misfire_runtime.errors import ImageError
from misfire_runtime.placement import Placement

Image = NDArray[np.uint8]
"""[H,W,3] uint8, RGB; [H,W,4] with a fourth channel (alpha, infrared, depth in 8 bits)."""

MAX_PIXELS = 64_000_000
"""Above every camera of a vehicle; a small file that decodes to more is an attack or a mistake."""
MAX_SIDE = 8192
"""Of a network's input, in pixels."""
_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1, "rgba": 4}

Resize = Literal["stretch", "letterbox", "letterbox-center", "letterbox-topleft", "center-crop"]
"""`letterbox-center` is another name for `letterbox`."""
SizeInput = Literal["size-wh", "size-hw"]
"""A second input with the size of the original picture, int64 [N,2]: width and height, or the reverse."""


class InputContract(BaseModel):
    """Describes the image that a graph expects.

    `mean` and `std` are per channel, in units of the 0..1 range; a uint8 input is normalised in the graph.
    A network that wants pixels of 0..255 as floats has `std` 1/255.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "image"
    height: int = Field(gt=0, le=MAX_SIDE)
    width: int = Field(gt=0, le=MAX_SIDE)
    color: Literal["rgb", "bgr", "gray", "rgba"] = "rgb"
    """`rgba` is red, green, blue and a fourth channel of any meaning, which only image files can deliver."""
    dtype: Literal["float32", "uint8"] = "float32"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = "stretch"
    pad: int = Field(default=0, ge=0, le=255)
    """Grey value around a letterboxed picture."""
    inputs: dict[Annotated[str, Field(min_length=1, max_length=128)], SizeInput] = Field(
        default={}, max_length=8
    )
    """Further inputs of the graph, by name."""

    @property
    def channels(self) -> int:
        """Returns 1 for grey, 4 for rgba, else 3."""
        return _CHANNELS[self.color]

    @field_validator("resize")
    @classmethod
    def _one_name_per_rule(cls, resize: Resize) -> Resize:
        return "letterbox" if resize == "letterbox-center" else resize

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Released vehicles refuse fields that they do not know: a bundle has these only if it needs them.
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if (k, v) not in (("pad", 0), ("inputs", {}))}

    @model_validator(mode="after")
    def _inputs_have_own_names(self) -> InputContract:
        if self.name in self.inputs:
            raise ValueError(f"inputs: {self.name!r} is the picture itself")
        return self

    @model_validator(mode="after")
    def _normalisation_fits(self) -> InputContract:
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{field} has {len(values)} values; expected 1 or {self.channels}")
        if min(self.std) <= 0:
            raise ValueError("std must be above zero")
        return self


def decode_image(data: bytes, *, name: str = "image", channels: int = 3) -> Image:
    """Decodes JPEG, PNG and other pictures, and turns them upright as their Exif orientation says.

    Args:
        data: encoded bytes. What follows the end of the picture is ignored.
        name: what the error messages call the picture.
        channels: 3, or 4 to keep a fourth channel.

    Returns:
        [H,W,3] uint8 RGB, or [H,W,4].

    Raises:
        ImageError: the bytes are empty, truncated, no picture, above 64 megapixels, or have no fourth
            channel.
    """
    if not data:
        raise ImageError(f"{name}: empty file")
    data = without_trailer(data, name=name)
    # A file of some KB can decode to gigabytes, so its size is read from the header first.
    width, height = stated_size(data) or (0, 0)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is above the limit of {MAX_PIXELS} pixels")
    try:
        # COLOR: three channels of 8 bits, whatever the file has; OpenCV also applies the Exif orientation.
        flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_UNCHANGED
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({error.err or error})") from error
    if image is None:
        raise ImageError(f"{name}: not an image that OpenCV can decode")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError(
            f"{name}: {image.shape[1]}x{image.shape[0]} is above the limit of {MAX_PIXELS} pixels"
        )
    return np.asarray(image if channels == 3 else _of_four(image, name=name), np.uint8)


def _of_four(image: NDArray[Any], *, name: str) -> NDArray[Any]:
    """Returns red, green, blue and the fourth channel of what OpenCV read as it is in the file."""
    found = 1 if image.ndim == 2 else image.shape[2]
    if found != 4 or image.dtype != np.uint8:
        bits = "" if image.dtype == np.uint8 else f" of {8 * image.dtype.itemsize} bits"
        raise ImageError(
            f"{name}: {found} channel{'' if found == 1 else 's'}{bits}; the model takes four of 8 bits (red, "
            "green, blue and a fourth), as in an RGBA PNG"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))


def encode_jpeg(image: Image, *, quality: int = 90) -> bytes:
    """Encodes a picture as JPEG.

    Args:
        image: [H,W,3] uint8 RGB; a fourth channel is left out, because JPEG has none.
        quality: 1 to 100.

    Raises:
        ImageError: the picture has no pixels, or is too large for JPEG.
    """
    # OpenCV takes BGR.
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(plain(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not ok:
        raise ImageError(f"JPEG encoding failed for shape {image.shape}")
    return bytes(data)


def encode_png(image: Image) -> bytes:
    """Encodes a picture as PNG, without loss.

    Args:
        image: [H,W,3] uint8 RGB.

    Raises:
        ImageError: the picture has no pixels.
    """
    # OpenCV takes BGR.
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, code))
    if not ok:
        raise ImageError(f"PNG encoding failed for shape {image.shape}")
    return bytes(data)


def plain(image: Image) -> Image:
    """Returns the first three channels of a picture, [H,W,3]: what can be drawn, blurred or sent as JPEG."""
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[:, :, :3])


def resize_image(image: Image, contract: InputContract) -> Image:
    """Resizes a picture to the size of the network's input.

    Args:
        image: [H,W,3] uint8 RGB.
        contract: names the size, and the rule: stretch, letterbox (centred or top left) or centre crop.

    Returns:
        [contract.height, contract.width, 3] uint8 RGB, or with the picture's fourth channel.

    Raises:
        ImageError: the picture has no pixels, another shape or type, or is too narrow to be cropped.
    """
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise ImageError(f"expected uint8 [H,W,3] or [H,W,4], got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise ImageError(f"an image of shape {image.shape} has no pixels")
    target_h, target_w = contract.height, contract.width
    if (height, width) == (target_h, target_w):
        return image
    place = Placement.of(width, height, contract)
    # A strip one pixel wide would be scaled to gigabytes before it is cropped.
    if place.inner_width * place.inner_height > MAX_PIXELS:
        raise ImageError(f"an image of {width}x{height} cannot be cropped to {target_w}x{target_h}")
    scaled = _scale(image, place.inner_height, place.inner_width)
    if place.inner_height >= target_h and place.inner_width >= target_w:
        return scaled[-place.top : target_h - place.top, -place.left : target_w - place.left]
    canvas = np.full((target_h, target_w, image.shape[2]), contract.pad, np.uint8)
    canvas[place.top : place.top + place.inner_height, place.left : place.left + place.inner_width] = scaled
    return canvas


def to_tensor(image: Image, contract: InputContract) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Turns a picture into the input of the graph.

    Args:
        image: [H,W,3] uint8 RGB.
        contract: size, colour order, type, mean and standard deviation.

    Returns:
        [1,C,H,W], float32 normalised or plain uint8.

    Raises:
        ImageError: see `resize_image`.
    """
    if image.ndim == 3 and image.shape[2] != 4 and contract.color == "rgba":
        raise ImageError(
            f"a picture of {image.shape[2]} channels; the model takes four (red, green, blue and a fourth), "
            "which only image files with four channels deliver"
        )
    pixels = resize_image(image, contract)
    if contract.color != "rgba":
        pixels = plain(pixels)
    if contract.color == "gray":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    elif contract.color == "bgr":
        pixels = pixels[:, :, ::-1]
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
    if contract.dtype == "uint8":
        return planes
    return normalise(planes, contract)


def size_inputs(width: int, height: int, contract: InputContract) -> dict[str, NDArray[np.int64]]:
    """Returns the further inputs of the graph for one picture, by name; int64 [1,2] each.

    Args:
        width: of the original picture.
        height: of the original picture.
        contract: names the inputs.
    """
    orders = {"size-wh": (width, height), "size-hw": (height, width)}
    return {name: np.array([orders[kind]], np.int64) for name, kind in contract.inputs.items()}


def normalise(planes: NDArray[np.uint8], contract: InputContract) -> NDArray[np.float32]:
    """Normalises pixels: (x / 255 - mean) / std, computed as one multiply-add.

    Args:
        planes: [N,C,H,W] uint8.
        contract: mean and std per channel.

    Returns:
        [N,C,H,W] float32.
    """
    mean = np.broadcast_to(np.asarray(contract.mean, np.float32), contract.channels)
    std = np.broadcast_to(np.asarray(contract.std, np.float32), contract.channels)
    scale = (np.float32(1 / 255) / std).astype(np.float32).reshape(1, -1, 1, 1)
    shift = (-mean / std).astype(np.float32).reshape(1, -1, 1, 1)
    return planes * scale + shift


def _scale(image: Image, height: int, width: int) -> Image:
    """Resizes by area averaging when shrinking (no aliasing), bilinearly when growing."""
    shrinking = height < image.shape[0] or width < image.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)
