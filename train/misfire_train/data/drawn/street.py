"""Draws road scenes with boxes: cars, trucks and persons before a camera that looks down a road.

A drive has a look (light, colours, camera), a scene has objects on a ground plane; the nearer hides the
farther. Drives are the groups, and train and test share none. A scene is drawn on first access. Seed, half,
drive and number determine it, so the set needs no download.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract
from misfire_train.data.boxes import Boxes, stack_boxes
from misfire_train.data.catalogue import find_entry
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.images import DecodedImages

CLASSES = ("car", "truck", "person")
WIDTH, HEIGHT = 160, 96
NOTE = "road scenes are drawn; they are not photographs"
_SIZES = ((1.8, 1.5), (2.5, 3.0), (0.8, 1.75))
"""Width and height in metres, by class."""
_NEAR, _FAR = 4.5, 60.0
_ROAD_M = 4.0
"""Half the width of the road, in metres."""
# Drawn at twice the size and averaged, so that edges look like a camera's.
_SUPERSAMPLING = 2
# What little is left of a hidden or cut object can be neither found nor missed.
_LEAST_VISIBLE = 0.35

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """Holds what all scenes of a drive share.

    gain: brightness of the light.  haze: share of the sky's colour at the far end.  focal, horizon: of the
    camera, in pixels.  camera: its height in metres.
    """

    sky: Colour
    land: Colour
    road: Colour
    gain: float
    haze: float
    grain: float
    focal: float
    horizon: float
    camera: float


@dataclass(frozen=True)
class Thing:
    """Describes an object: class, place in metres (x to the right, z ahead), colours, and its side."""

    label: int
    x: float
    z: float
    paint: Colour
    trim: Colour
    rear: bool

    def box(self, look: Look) -> NDArray[np.float64]:
        """Returns its box x0 y0 x1 y1 in pixels, not cut at the picture's border."""
        scale = look.focal / self.z
        width, height = (scale * side for side in _SIZES[self.label])
        centre, bottom = WIDTH / 2 + scale * self.x, look.horizon + scale * look.camera
        return np.array([centre - width / 2, bottom - height, centre + width / 2, bottom])


@dataclass(frozen=True)
class Scene:
    """Holds all that determines a picture; things are sorted from far to near."""

    look: Look
    things: tuple[Thing, ...]
    seed: tuple[int, ...]


def load_street(*, train_drives: int = 40, test_drives: int = 14, scenes: int = 30, seed: int = 0) -> Dataset:
    """Returns drawn road scenes with boxes of cars, trucks and persons.

    Args:
        train_drives, test_drives: number of drives in each half.
        scenes: number of pictures of each drive.
        seed: the same seed gives the same bytes.
    """
    entry = find_entry("street")
    train = _make("train", drives=train_drives, scenes=scenes, seed=seed)
    test = _make("test", drives=test_drives, scenes=scenes, seed=seed)
    digest = hashlib.sha256(f"street {seed} {scenes}".encode())
    for half in (train, test):
        for boxes in half.targets:
            digest.update(boxes.tobytes())
    return Dataset(
        name="street",
        task="detection",
        classes=CLASSES,
        contract=InputContract(height=HEIGHT, width=WIDTH, mean=(0.42, 0.43, 0.44), std=(0.18, 0.18, 0.18)),
        train=train,
        test=test,
        sha256=digest.hexdigest(),
        licence=entry.licence,
        notes=(NOTE, f"seed {seed}, {WIDTH}x{HEIGHT}"),
    )


def _make(part: str, *, drives: int, scenes: int, seed: int) -> Examples:
    half = int(part == "test")
    looks = [sample_look(np.random.default_rng((seed, half, drive))) for drive in range(drives)]
    made = [
        sample_scene(looks[drive], (seed, half, drive, number))
        for drive in range(drives)
        for number in range(scenes)
    ]
    return Examples(
        images=DecodedImages(lambda i: render(made[i]), count=len(made), shape=(HEIGHT, WIDTH, 3)),
        targets=stack_boxes([boxes_of(scene) for scene in made]),
        ids=tuple(f"street-{seed}-{part}-{d:03d}-{n:04d}" for d in range(drives) for n in range(scenes)),
        groups=tuple(f"{part}-drive-{d:03d}" for d in range(drives) for _ in range(scenes)),
    )


def sample_look(rng: np.random.Generator) -> Look:
    """Returns light, colours and camera of a drive: day, grey day or dusk."""
    hour = rng.random()
    if hour < 0.5:
        sky, gain = (150, 185, 225), rng.uniform(0.85, 1.1)
    elif hour < 0.8:
        sky, gain = (185, 188, 192), rng.uniform(0.7, 0.95)
    else:
        sky, gain = (205, 140, 110), rng.uniform(0.45, 0.7)
    grey = int(rng.uniform(70, 135))
    return Look(
        sky=sky,
        land=_near((96, 118, 78), rng, 22),
        road=_near((grey, grey, grey + 4), rng, 5),
        gain=float(gain),
        haze=float(rng.uniform(0.0, 0.5)),
        grain=float(rng.uniform(1, 6)),
        focal=float(rng.uniform(115, 150)),
        horizon=float(rng.uniform(34, 44)),
        camera=float(rng.uniform(1.3, 1.7)),
    )


def sample_scene(look: Look, seed: tuple[int, ...]) -> Scene:
    """Returns the objects of one picture; about one in eight has none."""
    rng = np.random.default_rng(seed)
    count = 0 if rng.random() < 0.1 else int(rng.integers(1, 6))
    things = [_sample_thing(rng, look) for _ in range(count)]
    return Scene(look, tuple(sorted(things, key=lambda thing: -thing.z)), (*seed, 1))


def _sample_thing(rng: np.random.Generator, look: Look) -> Thing:
    label = int(rng.choice(3, p=(0.5, 0.2, 0.3)))
    side = float(rng.choice((-1.0, 1.0)))
    # By the logarithm: else nearly all objects would be far and small.
    z = float(np.exp(rng.uniform(math.log(_NEAR), math.log(_FAR if label < 2 else 0.5 * _FAR))))
    if label == 2:
        x = side * float(rng.uniform(2.5, 6.5)) if rng.random() < 0.8 else float(rng.uniform(-2.5, 2.5))
    else:
        x = side * float(rng.choice((1.9, 4.9), p=(0.7, 0.3))) + float(rng.normal(0, 0.3))
    paint = tuple(int(value) for value in rng.integers(20, 236, 3))
    if rng.random() < 0.3:
        # In the colours of its surroundings, which a network overlooks.
        paint = _near(look.road if label < 2 else look.land, rng, 14)
    trim = tuple(int(value) for value in rng.integers(25, 200, 3))
    return Thing(label, x, z, paint, trim, bool(rng.random() < 0.5))  # type: ignore[arg-type]


def boxes_of(scene: Scene) -> Boxes:
    """Returns the boxes [G,6] in pixels of the picture, far ones first.

    Objects of which little is visible are ignored; those outside of the picture are left out.
    """
    owner = np.full((HEIGHT, WIDTH), -1, np.int32)
    whole = [thing.box(scene.look) for thing in scene.things]
    cut = [np.clip(box, 0, (WIDTH, HEIGHT, WIDTH, HEIGHT)) for box in whole]
    for number, box in enumerate(cut):
        owner[_window(box)] = number
    rows = []
    for number, (thing, box, visible) in enumerate(zip(scene.things, whole, cut, strict=True)):
        width, height = visible[2:] - visible[:2]
        if width < 1 or height < 1:
            continue
        inside = width * height / float(np.prod(box[2:] - box[:2]))
        seen = inside * float((owner[_window(visible)] == number).mean())
        # Sixteenths of a pixel: the last bits of an exponential differ between machines.
        rows.append([*np.round(visible * 16) / 16, thing.label, float(seen < _LEAST_VISIBLE)])
    return np.array(rows, np.float32).reshape(-1, 6)


def _window(box: NDArray[np.float64]) -> tuple[slice, slice]:
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    return slice(y0, y1), slice(x0, x1)


def render(scene: Scene) -> Image:
    """Returns the picture of a scene, uint8 [96,160,3]."""
    rng = np.random.default_rng(scene.seed)
    look = scene.look
    canvas = _backdrop(look, rng)
    for thing in scene.things:
        pen = _Pen(canvas, thing.box(look) * _SUPERSAMPLING, look, share=thing.z / _FAR)
        (_draw_car, _draw_truck, _draw_person)[thing.label](pen, thing)
    small = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
    grain = rng.standard_normal(small.shape, np.float32) * np.float32(look.grain)
    return np.asarray(np.clip(small * np.float32(look.gain) + grain, 0, 255), np.uint8)


def _backdrop(look: Look, rng: np.random.Generator) -> Image:
    """Returns sky, land, road, its markings, and what stands beside it, at twice the size."""
    wide, tall = WIDTH * _SUPERSAMPLING, HEIGHT * _SUPERSAMPLING
    canvas = np.full((tall, wide, 3), look.sky, np.uint8)
    horizon = round(look.horizon * _SUPERSAMPLING)
    canvas[horizon:] = look.land
    for z in np.sort(rng.uniform(15, _FAR, int(rng.integers(2, 9))))[::-1]:
        _draw_roadside(canvas, look, rng, float(z))
    left, right = ((_on_ground(look, side * _ROAD_M, _NEAR / 3)) for side in (-1, 1))
    vanishing = (wide // 2, horizon)
    cv2.fillPoly(canvas, [np.array([vanishing, right, left], np.int32)], look.road)
    white = _mixed((215, 215, 205), look.road, 0.2)
    for side in (-1, 1):
        edge = _on_ground(look, side * (_ROAD_M - 0.3), _NEAR / 3)
        cv2.line(canvas, vanishing, edge, white, 1, cv2.LINE_AA)
    phase = float(rng.uniform(0, 6))
    for start in (2 + phase + 6.0 * number for number in range(8)):
        near, far = _on_ground(look, 0, start), _on_ground(look, 0, start + 2.5)
        cv2.line(canvas, near, far, white, max(1, round(0.15 * 2 * look.focal / start)), cv2.LINE_AA)
    return canvas


def _draw_roadside(canvas: Image, look: Look, rng: np.random.Generator, z: float) -> None:
    """Draws a house, a tree or a post: things that look a little like objects, and are none."""
    scale = look.focal * _SUPERSAMPLING / z
    x = float(rng.choice((-1.0, 1.0)) * rng.uniform(6.5, 16))
    foot_x, foot_y = _on_ground(look, x, z)
    kind = int(rng.integers(3))
    share = z / _FAR
    if kind == 0:
        wall = _hazy(_near((150, 125, 110), rng, 40), look, share)
        size = scale * float(rng.uniform(2, 4))
        corner = (round(foot_x - size), round(foot_y - 1.2 * size))
        cv2.rectangle(canvas, corner, (round(foot_x + size), foot_y), wall, -1)
        return
    post = _hazy(_near((80, 70, 60), rng, 15), look, share)
    top = round(foot_y - scale * 3)
    cv2.line(canvas, (foot_x, foot_y), (foot_x, top), post, max(1, round(0.25 * scale)))
    if kind == 1:
        leaves = _hazy(_near((60, 95, 50), rng, 18), look, share)
        cv2.circle(canvas, (foot_x, top), max(1, round(1.3 * scale)), leaves, -1, cv2.LINE_AA)


def _on_ground(look: Look, x: float, z: float) -> tuple[int, int]:
    """Returns the pixel of a point on the ground, at twice the size."""
    scale = look.focal / z
    return (
        round(_SUPERSAMPLING * (WIDTH / 2 + scale * x)),
        round(_SUPERSAMPLING * (look.horizon + scale * look.camera)),
    )


class _Pen:
    """Draws in shares of an object's box: (0, 0) is its upper left corner, (1, 1) its lower right one."""

    def __init__(self, canvas: Image, box: NDArray[np.float64], look: Look, *, share: float) -> None:
        self._canvas, self._box, self._look, self._share = canvas, box, look, share

    def _point(self, x: float, y: float) -> tuple[int, int]:
        corner, sides = self._box[:2], self._box[2:] - self._box[:2]
        return round(float(corner[0] + x * sides[0])), round(float(corner[1] + y * sides[1]))

    def block(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fills a rectangle."""
        (left, top), (right, bottom) = self._point(x0, y0), self._point(x1, y1)
        # OpenCV fills the last row and column too.
        corner = (max(left, right - 1), max(top, bottom - 1))
        cv2.rectangle(self._canvas, (left, top), corner, _hazy(colour, self._look, self._share), -1)

    def polygon(self, corners: tuple[tuple[float, float], ...], colour: Colour) -> None:
        """Fills a polygon."""
        points = np.array([self._point(x, y) for x, y in corners], np.int32)
        cv2.fillPoly(self._canvas, [points], _hazy(colour, self._look, self._share))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fills a circle whose radius is a share of the box's width."""
        size = max(1, round(radius * float(self._box[2] - self._box[0])))
        colour = _hazy(colour, self._look, self._share)
        cv2.circle(self._canvas, self._point(x, y), size, colour, -1, cv2.LINE_AA)


_DARK, _GLASS, _RED, _LAMP, _SKIN = (
    (28, 28, 30),
    (55, 65, 75),
    (190, 35, 30),
    (240, 235, 200),
    (205, 160, 130),
)


def _draw_car(pen: _Pen, thing: Thing) -> None:
    for x in (0.06, 0.74):
        pen.block(x, 0.7, x + 0.2, 1.0, _DARK)
    pen.polygon(((0.08, 0.45), (0.2, 0.0), (0.8, 0.0), (0.92, 0.45)), thing.paint)
    pen.polygon(((0.17, 0.42), (0.26, 0.1), (0.74, 0.1), (0.83, 0.42)), _GLASS)
    pen.block(0.0, 0.42, 1.0, 0.86, thing.paint)
    lamp = _RED if thing.rear else _LAMP
    for x in (0.03, 0.81):
        pen.block(x, 0.5, x + 0.16, 0.62, lamp)


def _draw_truck(pen: _Pen, thing: Thing) -> None:
    for x in (0.05, 0.75):
        pen.block(x, 0.82, x + 0.2, 1.0, _DARK)
    pen.block(0.0, 0.0, 1.0, 0.88, thing.paint)
    if thing.rear:
        pen.block(0.48, 0.05, 0.52, 0.8, _DARK)
    else:
        pen.block(0.1, 0.28, 0.9, 0.52, _GLASS)
    lamp = _RED if thing.rear else _LAMP
    for x in (0.04, 0.82):
        pen.block(x, 0.76, x + 0.14, 0.83, lamp)


def _draw_person(pen: _Pen, thing: Thing) -> None:
    for x in (0.2, 0.55):
        pen.block(x, 0.5, x + 0.25, 1.0, thing.trim)
    pen.block(0.0, 0.2, 1.0, 0.48, thing.paint)
    pen.block(0.15, 0.2, 0.85, 0.58, thing.paint)
    pen.disc(0.5, 0.1, 0.2, _SKIN)


def _hazy(colour: Colour, look: Look, share: float) -> Colour:
    """Returns a colour as it looks from afar; `share` is the distance, 1 at the far end."""
    return _mixed(colour, look.sky, look.haze * share)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    mixed = np.asarray(one) * (1 - share) + np.asarray(other) * share
    return int(mixed[0]), int(mixed[1]), int(mixed[2])


def _near(colour: Colour, rng: np.random.Generator, spread: float) -> Colour:
    red, green, blue = np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 255)
    return int(red), int(green), int(blue)
