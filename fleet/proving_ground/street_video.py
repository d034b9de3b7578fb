"""Renders street videos whose boxes are known exactly.

sprites, ground plane, camera --StreetVideo--> picture and truth of every frame

Objects drive on a plane before a pinhole camera that drives too: they come out of the distance, grow, pass in
front of each other, enter and leave at the borders. The nearer one hides the farther, pixel by pixel. Sprites
are labelled crops and backgrounds real frames where there are some; else both are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 360
RATE = 25.0
"""Frames per second."""
CLASSES = ("car", "truck", "bicycle", "sign")
_SIZES = {"car": (1.8, 1.5), "truck": (2.5, 3.2), "bicycle": (0.8, 1.7), "sign": (0.8, 0.8)}
"""Width and height in metres."""
_FOCAL, _HORIZON, _CAMERA_HEIGHT = 500.0, 160.0, 1.4
_NEAR, _FAR = 4.0, 90.0
MIN_SIDE = 8


@dataclass(frozen=True)
class Sprite:
    """Holds the picture of an object and its class."""

    picture: Picture
    label: int


@dataclass(frozen=True)
class Thing:
    """Describes where an object is at time 0, and how it moves: metres, seconds; x to the right, z ahead."""

    number: int
    sprite: Sprite
    x: float
    z: float
    speed_x: float
    speed_z: float
    since_s: float

    def box_at(self, time_s: float, bob: float) -> tuple[NDArray[np.float64], float] | None:
        """Returns its box x0 y0 x1 y1, not clipped, and its distance; None if it is not before the camera."""
        passed = time_s - self.since_s
        z = self.z + self.speed_z * passed
        if passed < 0 or not _NEAR < z < _FAR:
            return None
        scale = _FOCAL / z
        name = CLASSES[self.sprite.label]
        width, height = (scale * side for side in _SIZES[name])
        # Signs hang: their lower edge is two metres above the road.
        below = _CAMERA_HEIGHT - (2.0 if name == "sign" else 0.0)
        centre = WIDTH / 2 + scale * (self.x + self.speed_x * passed)
        bottom = _HORIZON + scale * below + bob
        return np.array([centre - width / 2, bottom - height, centre + width / 2, bottom]), z


@dataclass(frozen=True)
class Truth:
    """Holds the objects of one frame that are at least `MIN_SIDE` large, farthest first.

    number: of the objects.  boxes: [G,4] clipped to the picture.  label: classes.  visible: share of the
    clipped box that nothing hides.  whole: False if the picture's border cuts the object.
    """

    number: NDArray[np.int64]
    boxes: NDArray[np.float64]
    label: NDArray[np.int64]
    visible: NDArray[np.float64]
    whole: NDArray[np.bool_]


class StreetVideo:
    """Renders a drive: the same frames and boxes every time they are asked for."""

    def __init__(
        self,
        *,
        seed: int,
        seconds: float,
        sprites: Sequence[Sprite] = (),
        backgrounds: Sequence[Picture] = (),
        per_second: float = 1.5,
    ) -> None:
        """Decides what drives where.

        Args:
            seed: of the drive.
            seconds: its length.
            sprites: pictures of objects; drawn ones if there are none.
            backgrounds: consecutive frames [360,640,3] of a clip, shown forwards and backwards; else a drawn
                road.
            per_second: new objects per second.
        """
        self.frames = round(seconds * RATE)
        self._rng = np.random.default_rng(seed)
        self._sprites = list(sprites) or drawn_sprites(self._rng)
        self._backgrounds = list(backgrounds) or [drawn_road()]
        # Objects from before the first frame, so that the street is not empty then.
        count = round((seconds + 8) * per_second)
        self._things = [self._make(number, -8 + number / per_second) for number in range(count)]
        self._bob = np.cumsum(self._rng.normal(0, 0.4, self.frames)) * 0.2 + np.sin(
            np.arange(self.frames) / 7
        )

    def _make(self, number: int, since_s: float) -> Thing:
        rng = self._rng
        sprite = self._sprites[int(rng.integers(len(self._sprites)))]
        way = "standing" if CLASSES[sprite.label] == "sign" else str(rng.choice(_WAYS))
        side = float(rng.choice([-1.0, 1.0]))
        if way == "crossing":
            speed = -side * float(rng.uniform(4, 11))
            return Thing(number, sprite, side * 20.0, float(rng.uniform(10, 35)), speed, -1.0, since_s)
        if way == "oncoming":
            return Thing(number, sprite, -3.5, _FAR - 1, 0.0, float(rng.uniform(-32, -20)), since_s)
        if way == "overtaking":
            return Thing(number, sprite, -7.0, _NEAR + 1, float(rng.uniform(1, 1.5)), 7.0, since_s)
        if way == "ahead":
            # It comes nearer and turns off before it is reached.
            speed = side * float(rng.uniform(1, 1.4))
            return Thing(number, sprite, float(rng.uniform(-0.5, 0.5)), 30.0, speed, -2.3, since_s)
        x = side * float(rng.uniform(4, 8))
        return Thing(number, sprite, x, 60.0, 0.0, float(rng.uniform(-14, -9)), since_s)

    def __iter__(self) -> Iterator[tuple[Picture, Truth]]:
        """Yields picture [360,640,3] RGB and truth of every frame."""
        for frame in range(self.frames):
            yield self.render(frame)

    def render(self, frame: int) -> tuple[Picture, Truth]:
        """Returns picture and truth of one frame."""
        placed = [(thing, thing.box_at(frame / RATE, float(self._bob[frame]))) for thing in self._things]
        seen = [(thing, *found) for thing, found in placed if found is not None]
        seen.sort(key=lambda item: -item[2])
        there = len(self._backgrounds)
        # Forwards and backwards, so that the clip's end is no cut.
        at = frame % max(1, 2 * there - 2)
        picture = self._backgrounds[at if at < there else 2 * there - 2 - at].copy()
        owner = np.full((HEIGHT, WIDTH), -1, np.int32)
        rows = [row for thing, box, _z in seen if (row := _paint(picture, owner, thing, box)) is not None]
        return picture, _truth(rows, owner)


_WAYS = ("oncoming", "overtaking", "ahead", "standing", "crossing")
_Row = tuple[int, NDArray[np.float64], int, bool]


def _paint(picture: Picture, owner: NDArray[np.int32], thing: Thing, box: NDArray[np.float64]) -> _Row | None:
    """Paints one object over those behind it; returns its number, clipped box, class, and if it is whole."""
    clipped = np.clip(box, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT))
    x0, y0, x1, y1 = np.round(clipped).astype(int)
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    # The part of the sprite that lies inside the picture, scaled once.
    tall, wide = thing.sprite.picture.shape[:2]
    sides = box[2:] - box[:2]
    low = ((clipped[:2] - box[:2]) / sides * (wide, tall)).astype(int)
    high = np.maximum(np.ceil((clipped[2:] - box[:2]) / sides * (wide, tall)).astype(int), low + 1)
    part = thing.sprite.picture[low[1] : high[1], low[0] : high[0]]
    picture[y0:y1, x0:x1] = cv2.resize(part, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    owner[y0:y1, x0:x1] = thing.number
    return thing.number, clipped, thing.sprite.label, bool(np.allclose(clipped, box))


def _truth(rows: Sequence[_Row], owner: NDArray[np.int32]) -> Truth:
    kept = [row for row in rows if min(row[1][2:] - row[1][:2]) >= MIN_SIDE]
    shares = []
    for number, box, _label, _whole in kept:
        x0, y0, x1, y1 = np.round(box).astype(int)
        shares.append(float((owner[y0:y1, x0:x1] == number).mean()))
    return Truth(
        number=np.array([row[0] for row in kept], np.int64),
        boxes=np.array([row[1] for row in kept], np.float64).reshape(-1, 4),
        label=np.array([row[2] for row in kept], np.int64),
        visible=np.array(shares),
        whole=np.array([row[3] for row in kept], np.bool_),
    )


def drawn_road() -> Picture:
    """Returns a grey road under a bright sky."""
    picture = np.full((HEIGHT, WIDTH, 3), (150, 180, 210), np.uint8)
    picture[int(_HORIZON) :] = (90, 110, 80)
    road = np.array([(300, 160), (340, 160), (640, 360), (0, 360)], np.int32)
    return np.asarray(cv2.fillPoly(picture, [road], (95, 95, 100)), np.uint8)


def drawn_sprites(rng: np.random.Generator) -> list[Sprite]:
    """Returns three drawn objects of every class."""
    found = []
    for label, name in enumerate(CLASSES):
        wide, tall = (int(32 * side) for side in _SIZES[name])
        for _ in range(3):
            picture = np.full((tall, wide, 3), rng.integers(30, 225, 3), np.uint8)
            # A window, so that it is not one colour.
            picture[tall // 6 : tall // 2, wide // 6 : -wide // 6] = rng.integers(0, 80, 3)
            found.append(Sprite(picture, label))
    return found
