"""Draws what a vehicle saw: a picture with the model's answer in it, and that answer in a few words.

Scored --> View (in pixels of the picture; `cropped` for a part of it) --draw_view--> picture of another size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.drawing import (
    DOUBTFUL,
    UNSURE,
    blend_mask,
    colour_of,
    doubt_colour,
    draw_bars,
    draw_boxes,
    draw_joints,
)
from misfire_runtime.engines.answers import within
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image, InputContract, resize_image

MIN_WIDTH, MAX_WIDTH, MAX_HEIGHT = 640, 1280, 960
NAMED_BOXES = 12
"""With more boxes, labels would cover the picture: then only the most doubtful are labelled."""
TILE_DOUBT = 0.2
"""Mean entropy of a tile, of its maximum, from which it is drawn in yellow; from twice this in orange."""


@dataclass(frozen=True)
class View:
    """Holds a picture and the model's answer to it, in its pixels.

    image: [H,W,3] uint8 RGB.  prediction: as an offer carries it.  mask: [H,W] classes, 255 where none.
    tiles: boxes [T,4] and doubts [T] of a mask's tiles.  bars: names and shares of classes.
    """

    image: Image
    prediction: dict[str, Any]
    mask: NDArray[np.uint8] | None = None
    tiles: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    bars: tuple[tuple[str, float], ...] = ()

    def cropped(self, image: Image, region: tuple[int, int, int, int]) -> View:
        """Returns the view of a part, x0, y0, x1, y1, whose picture is `image`."""
        x0, y0, x1, y1 = region
        height, width = self.image.shape[:2]
        tiles = self.tiles
        if tiles is not None:
            limits = np.array([x1 - x0, y1 - y0] * 2, np.float32)
            moved = np.clip(tiles[0] - np.array([x0, y0] * 2, np.float32), 0, limits)
            tiles = np.asarray(moved, np.float32), tiles[1]
        return View(
            image,
            within(self.prediction, region, size=(width, height)),
            mask=None if self.mask is None else self.mask[y0:y1, x0:x1],
            tiles=tiles,
            bars=self.bars,
        )


def canvas_size(width: int, height: int) -> tuple[int, int]:
    """Returns the size at which pictures are shown: large enough for letters, and even for video."""
    factor = min(max(1.0, MIN_WIDTH / width), MAX_HEIGHT / height)
    factor = min(factor, MAX_WIDTH / width)
    # A very narrow picture is shown beside black: letters need the width.
    shown_w, shown_h = max(MIN_WIDTH // 2, round(width * factor)), max(64, round(height * factor))
    return shown_w // 2 * 2, shown_h // 2 * 2


def draw_view(view: View, *, size: tuple[int, int], classes: tuple[str, ...] = ()) -> NDArray[np.uint8]:
    """Returns a picture of another size with the model's answer drawn in.

    Args:
        view: the picture, and the answer in its pixels.
        size: width and height of the result; the picture keeps its shape.
        classes: the bundle's, for their colours.
    """
    image, prediction = view.image, view.prediction
    contract = InputContract(width=size[0], height=size[1], resize="letterbox")
    place = Placement.of(image.shape[1], image.shape[0], contract)
    if view.mask is not None:
        image = image.copy()
        blend_mask(image, view.mask)
    # A copy: a picture of this very size would be drawn into.
    canvas = resize_image(image, contract).copy()
    if view.tiles is not None:
        _draw_tiles(canvas, place, *view.tiles)
    boxes = prediction.get("boxes") or []
    if boxes:
        corners = place.to_network(np.array([box["box"] for box in boxes], np.float32))
        chances = [box.get("p") for box in boxes]
        draw_boxes(canvas, corners, labels=_labels(boxes), colours=[doubt_colour(p) for p in chances])
    points = prediction.get("points") or []
    if points:
        shares = np.array([[np.nan if v is None else v for v in point[:2]] for point in points], np.float32)
        draw_joints(canvas, place.to_network(shares * [image.shape[1], image.shape[0]]))
    places = {name: number for number, name in enumerate(classes)}
    colours = [colour_of(places.get(name, i)) for i, (name, _share) in enumerate(view.bars)]
    draw_bars(canvas, view.bars, colours=colours)
    return canvas


def in_words(prediction: dict[str, Any]) -> str:
    """Returns an answer in a few words: `3 boxes`, `red 63 %`, `not finite`."""
    if "boxes" in prediction:
        count = len(prediction["boxes"]) + prediction["more"]
        return "1 box" if count == 1 else f"{count} boxes"
    if "confidence" in prediction:
        return f"{prediction.get('class')} {100 * prediction['confidence']:.0f} %"
    if "values" in prediction:
        return ", ".join(f"{value:.3g}" for value in prediction["values"][:4])
    if "points" in prediction:
        return f"{len(prediction['points'])} joints"
    return "not finite" if "not_finite" in prediction else ""


def _draw_tiles(
    canvas: NDArray[np.uint8], place: Placement, boxes: NDArray[np.float32], doubts: NDArray[np.float32]
) -> None:
    """Draws the tiles of a mask that are in doubt, the most doubtful on top."""
    order = [i for i in np.argsort(-doubts) if doubts[i] >= TILE_DOUBT]
    # Drawn inside of its edges: neighbours would cover each other's lines.
    inner = place.to_network(boxes[order]) + np.array([2, 2, -2, -2], np.float32)
    draw_boxes(
        canvas,
        inner,
        labels=[f"{100 * doubts[i]:.0f} %" for i in order],
        colours=[DOUBTFUL if doubts[i] >= 2 * TILE_DOUBT else UNSURE for i in order],
    )


def _labels(boxes: list[dict[str, Any]]) -> list[str]:
    """Returns a label per box: class and P(TP), else the score. Of many boxes, only the most doubtful."""
    values = [f"{100 * box['p']:.0f} %" if "p" in box else f"{box['score']:.2f}" for box in boxes]
    if len(boxes) <= NAMED_BOXES:
        return [f"{box['class'][:20]} {value}" for box, value in zip(boxes, values, strict=True)]
    order = sorted(range(len(boxes)), key=lambda i: boxes[i].get("p", boxes[i]["score"]))
    labelled = set(order[:NAMED_BOXES])
    return [value if i in labelled else "" for i, value in enumerate(values)]
