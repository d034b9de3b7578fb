"""Computes where a picture lies in a network's input, and maps points and boxes between the two.

picture W x H --resize rule--> scaled to inner_width x inner_height, moved by left and top --> network pixels

Coordinates are continuous, with pixel edges at whole numbers: a picture of W x H is the box (0, 0, W, H), and
the centre of its first pixel is (0.5, 0.5). `preprocess.resize_image` takes its sizes from here, so a box
cannot be mapped by other numbers than the picture was resized by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class NetworkInput(Protocol):
    """Is what a placement needs of an input contract: the network's size, and the resize rule."""

    @property
    def width(self) -> int:
        """Returns the width of the network's input."""
        ...

    @property
    def height(self) -> int:
        """Returns the height of the network's input."""
        ...

    @property
    def resize(self) -> str:
        """Returns the rule: stretch, letterbox (centred), letterbox-topleft or center-crop."""
        ...


@dataclass(frozen=True)
class Placement:
    """Places one size of pictures in the input of a network; `left` and `top` are negative for a crop."""

    width: int
    height: int
    inner_width: int
    inner_height: int
    left: int
    top: int
    network_width: int
    network_height: int

    @classmethod
    def of(cls, width: int, height: int, contract: NetworkInput) -> Placement:
        """Returns the placement of pictures of `width` x `height` under an input contract.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            contract: size of the network's input and resize rule, such as an `InputContract`.

        Raises:
            ValueError: the picture has no pixels, or the resize rule is unknown.
        """
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width}x{height} has no pixels")
        network = network_w, network_h = contract.width, contract.height
        rule = contract.resize
        if (width, height) == network or rule == "stretch":
            return cls(width, height, *network, 0, 0, *network)
        if rule in ("letterbox", "letterbox-center", "letterbox-topleft"):
            factor = min(network_h / height, network_w / width)
            # At least one pixel: a very wide picture would otherwise have no height.
            inner = max(1, round(width * factor)), max(1, round(height * factor))
            if rule == "letterbox-topleft":
                return cls(width, height, *inner, 0, 0, *network)
        elif rule == "center-crop":
            factor = max(network_h / height, network_w / width)
            inner = max(network_w, round(width * factor)), max(network_h, round(height * factor))
        else:
            raise ValueError(f"unknown resize rule {rule!r}")
        # Towards zero: the odd pixel of a crop is cut off at the right and at the bottom, as ever.
        left, top = int((network_w - inner[0]) / 2), int((network_h - inner[1]) / 2)
        return cls(width, height, *inner, left, top, *network)

    def to_network(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Converts points [..,2] or boxes [..,4] from pixels of the picture to network pixels.

        Args:
            points: x y, or x0 y0 x1 y1, in the last dimension.

        Raises:
            ValueError: the last dimension is neither 2 nor 4.
        """
        pairs = _pairs(points)
        return (pairs * self._scale + self._origin).reshape(points.shape).astype(np.float32)

    def to_image(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Converts points [..,2] or boxes [..,4] from network pixels to pixels of the picture.

        What lies in the padding, or in what was cropped away, is mapped like the rest and not clipped.

        Args:
            points: x y, or x0 y0 x1 y1, in the last dimension.

        Raises:
            ValueError: the last dimension is neither 2 nor 4.
        """
        pairs = _pairs(points)
        return ((pairs - self._origin) / self._scale).reshape(points.shape).astype(np.float32)

    def shares_to_image(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Converts points [..,2], 0..1 of the network's input, to 0..1 of the picture, and clips them."""
        pixels = np.asarray(points, np.float64) * [self.network_width, self.network_height]
        limits = np.array([self.width, self.height], np.float32)
        return np.asarray(self.clip(self.to_image(pixels)) / limits, np.float32)

    def clip(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Moves points [..,2] or boxes [..,4] of the picture that lie outside of it to its border."""
        limit = np.array([self.width, self.height], np.float32)
        return np.clip(_pairs(points), 0, limit).reshape(points.shape).astype(np.float32)

    @property
    def _scale(self) -> NDArray[np.float64]:
        return np.array([self.inner_width / self.width, self.inner_height / self.height])

    @property
    def _origin(self) -> NDArray[np.float64]:
        return np.array([self.left, self.top], np.float64)


def _pairs(points: NDArray[Any]) -> NDArray[np.float64]:
    if points.ndim == 0 or points.shape[-1] not in (2, 4):
        raise ValueError(f"expected points [..,2] or boxes [..,4], got {list(points.shape)}")
    return np.asarray(points, np.float64).reshape(*points.shape[:-1], points.shape[-1] // 2, 2)
