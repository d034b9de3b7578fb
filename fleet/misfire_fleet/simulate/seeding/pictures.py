"""Draws street scenes: a few hundred distinct pictures, with the objects that are in them.

Scene --draw_scenes--> JPEG + objects + embedding;  --images--> the files of a folder instead, without objects
Rain, fog, snow and night change the pixels, so that a gallery looks like one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_fleet.simulate.samples import Picture, read_pictures
from misfire_fleet.simulate.seeding.plan import WEATHERS
from misfire_runtime.preprocess import decode_image

CLASSES = ("car", "truck", "person", "cyclist", "sign")
LIGHTS = ("green", "yellow", "red", "off")
WIDTH, HEIGHT = 320, 192
DIMENSIONS = 32
_PER_CONDITION = 40
_HORIZON = 84
_FPS = 8
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Thing:
    """Names an object of a scene. `box`: x0, y0, x1, y1 in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """Holds a picture or clip, what is in it, and the centre of its frames' embeddings, [D]."""

    picture: Picture
    size: tuple[int, int]
    things: tuple[Thing, ...]
    light: str
    embedding: NDArray[np.float32]


class Scenes:
    """Holds scenes by weather and light, some of them as clips; each is drawn when it is first needed.

    Args:
        seed: random seed.
        images: a folder of pictures to use instead of drawn ones.

    Raises:
        ConfigError: the folder has no picture.
    """

    def __init__(self, seed: int, images: Path | None = None) -> None:
        self._seed = seed
        self._taken = [] if images is None else read_pictures(images)
        self._made: dict[tuple[int, bool, int], Scene] = {}

    def choose(self, chance: np.random.Generator, weather: int, *, night: bool, clip: bool = False) -> Scene:
        """Returns a scene of a weather, a number of `WEATHERS`; as a clip if `clip` and nothing is taken."""
        key = weather, night, -1 if clip and not self._taken else int(chance.integers(_PER_CONDITION))
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, weather: int, night: bool, number: int) -> Scene:
        centre = np.random.default_rng((self._seed, 11, weather, night)).normal(size=DIMENSIONS)
        chance = np.random.default_rng((self._seed, 12, weather, night, number + 1))
        if self._taken:
            return _taken(self._taken[int(chance.integers(len(self._taken)))], chance, centre)
        scene = _scene(chance, weather, night, centre)
        return _clip(scene) if number < 0 else scene


def numbered(picture: Picture, number: int) -> bytes:
    """Returns the picture or clip as bytes that differ for every number."""
    if picture.media_type != "video/mp4":
        return picture.numbered(number)
    # A "free" box at the end: players skip it.
    note = f"misfire simulation {number}".encode()
    return picture.data + (len(note) + 8).to_bytes(4, "big") + b"free" + note


def _taken(picture: Picture, chance: np.random.Generator, centre: NDArray[np.float64]) -> Scene:
    return Scene(picture, picture.size, (), str(chance.choice(LIGHTS)), _unit(centre, chance))


def _unit(centre: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float32]:
    vector = centre + 0.6 * chance.normal(size=DIMENSIONS)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _scene(chance: np.random.Generator, weather: int, night: bool, centre: NDArray[np.float64]) -> Scene:
    pixels = _street(chance)
    things = [_put(pixels, chance, depth) for depth in sorted(chance.uniform(0.15, 1, chance.integers(1, 7)))]
    light = str(chance.choice(LIGHTS, p=[0.45, 0.1, 0.35, 0.1]))
    _traffic_light(pixels, chance, light)
    pixels = _under_sky(pixels, chance, WEATHERS[weather], night)
    return Scene(
        Picture(_jpeg(pixels), "image/jpeg"), (WIDTH, HEIGHT), tuple(things), light, _unit(centre, chance)
    )


def _jpeg(pixels: Pixels) -> bytes:
    done, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 72])
    assert done
    return bytes(data)


def _street(chance: np.random.Generator) -> Pixels:
    """Returns sky, houses and a road, [H,W,3] RGB."""
    pixels: Pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, low = np.array([92, 140, 205]), np.array([200, 216, 232])
    rows = np.linspace(0, 1, _HORIZON)[:, None]
    pixels[:_HORIZON] = (top + (low - top) * rows)[:, None].astype(np.uint8)
    pixels[_HORIZON:] = (96, 112, 84)
    x = -20
    while x < WIDTH:
        width, height = int(chance.integers(26, 66)), int(chance.integers(18, 76))
        tone = np.array([150, 132, 118]) + chance.integers(-42, 42, 3)
        _fill(pixels, (x, _HORIZON - height, x + width, _HORIZON + 4), tone)
        for wx in range(x + 5, x + width - 6, 11):
            for wy in range(_HORIZON - height + 6, _HORIZON - 8, 13):
                _fill(
                    pixels,
                    (wx, wy, wx + 5, wy + 7),
                    (70, 82, 96) if chance.random() < 0.7 else (238, 214, 150),
                )
        x += width + int(chance.integers(0, 12))
    bend = int(chance.integers(-40, 40))
    middle = WIDTH // 2 + bend
    road = np.array([[middle - 14, _HORIZON], [middle + 14, _HORIZON], [WIDTH + 60, HEIGHT], [-60, HEIGHT]])
    cv2.fillPoly(pixels, [road], (84, 86, 92))
    for step in np.linspace(0.05, 1, 7):
        y0, y1 = (
            _HORIZON + (HEIGHT - _HORIZON) * step**1.6,
            _HORIZON + (HEIGHT - _HORIZON) * (step + 0.06) ** 1.6,
        )
        centre = middle + (WIDTH / 2 - middle) * step**1.6
        _fill(pixels, (centre - 3 * step, y0, centre + 3 * step, y1), (225, 222, 208))
    return pixels


def _put(pixels: Pixels, chance: np.random.Generator, depth: float) -> Thing:
    """Draws an object; `depth` is 0 at the horizon and 1 at the camera."""
    name = str(chance.choice(CLASSES, p=[0.48, 0.14, 0.2, 0.1, 0.08]))
    wide, high = {
        "car": (62, 40),
        "truck": (80, 72),
        "person": (15, 46),
        "cyclist": (26, 48),
        "sign": (18, 58),
    }[name]
    width, height = wide * depth + 4, high * depth + 5
    bottom = _HORIZON + 6 + (HEIGHT - _HORIZON - 16) * depth**1.3
    aside = chance.uniform(-1, 1) * (36 + 130 * depth)
    x0 = float(np.clip(WIDTH / 2 + aside - width / 2, 1, WIDTH - width - 2))
    box = (x0, max(1.0, bottom - height), x0 + width, min(bottom, HEIGHT - 1.0))
    tone = np.array([[180, 40, 40], [40, 74, 150], [214, 214, 220], [52, 54, 60], [210, 160, 50]])[
        chance.integers(5)
    ]
    _PAINTERS[name](pixels, box, tone)
    return Thing(name, tuple(round(side, 1) for side in box))  # type: ignore[arg-type]


def _vehicle(pixels: Pixels, box: Sequence[float], tone: Any) -> None:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    _fill(pixels, (x0 + 0.05 * width, y1 - 0.12 * height, x1 - 0.05 * width, y1), (34, 34, 38))
    _fill(pixels, (x0, y0 + 0.38 * height, x1, y1 - 0.12 * height), tone)
    _fill(pixels, (x0 + 0.16 * width, y0, x1 - 0.16 * width, y0 + 0.42 * height), tone)
    _fill(
        pixels, (x0 + 0.22 * width, y0 + 0.07 * height, x1 - 0.22 * width, y0 + 0.37 * height), (46, 60, 74)
    )
    for side in (x0 + 0.06 * width, x1 - 0.2 * width):
        _fill(pixels, (side, y0 + 0.52 * height, side + 0.14 * width, y0 + 0.64 * height), (236, 74, 60))


def _truck(pixels: Pixels, box: Sequence[float], tone: Any) -> None:
    x0, y0, x1, y1 = box
    height = y1 - y0
    _fill(pixels, (x0 + 3, y1 - 0.12 * height, x1 - 3, y1), (30, 30, 34))
    _fill(pixels, (x0, y0, x1, y1 - 0.12 * height), tone)
    _fill(
        pixels, (x0 + 2, y0 + 0.05 * height, x1 - 2, y0 + 0.68 * height), np.minimum(np.array(tone) + 26, 255)
    )


def _walker(pixels: Pixels, box: Sequence[float], tone: Any) -> None:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    middle = (x0 + x1) / 2
    _fill(pixels, (middle - 0.3 * width, y0 + 0.2 * height, middle + 0.3 * width, y0 + 0.62 * height), tone)
    _fill(pixels, (middle - 0.28 * width, y0 + 0.6 * height, middle - 0.04 * width, y1), (48, 50, 66))
    _fill(pixels, (middle + 0.04 * width, y0 + 0.6 * height, middle + 0.28 * width, y1), (48, 50, 66))
    cv2.circle(pixels, (int(middle), int(y0 + 0.1 * height)), max(1, int(0.1 * height)), (212, 172, 144), -1)


def _cyclist(pixels: Pixels, box: Sequence[float], tone: Any) -> None:
    x0, y0, x1, y1 = box
    radius = max(2, int((x1 - x0) * 0.24))
    for side in (x0 + radius, x1 - radius):
        cv2.circle(pixels, (int(side), int(y1 - radius)), radius, (30, 30, 34), 1, cv2.LINE_AA)
    _walker(pixels, (x0 + 4, y0, x1 - 4, y1 - radius), tone)


def _sign(pixels: Pixels, box: Sequence[float], _tone: Any) -> None:
    x0, y0, x1, y1 = box
    middle, radius = int((x0 + x1) / 2), max(2, int((x1 - x0) / 2))
    _fill(pixels, (middle - 1, y0 + radius, middle + 1, y1), (120, 122, 126))
    cv2.circle(pixels, (middle, int(y0 + radius)), radius, (200, 40, 40), -1, cv2.LINE_AA)
    cv2.circle(pixels, (middle, int(y0 + radius)), max(1, radius - 2), (240, 240, 240), -1, cv2.LINE_AA)


_PAINTERS = {"car": _vehicle, "truck": _truck, "person": _walker, "cyclist": _cyclist, "sign": _sign}


def _traffic_light(pixels: Pixels, chance: np.random.Generator, light: str) -> None:
    x, y = int(chance.integers(30, WIDTH - 40)), int(chance.integers(26, 50))
    _fill(pixels, (x - 2, y + 20, x + 2, y + 74), (70, 72, 76))
    _fill(pixels, (x - 7, y - 4, x + 7, y + 34), (26, 28, 30))
    for number, (name, tone) in enumerate(
        (("red", (255, 60, 50)), ("yellow", (255, 208, 60)), ("green", (70, 235, 120)))
    ):
        colour = tone if name == light else tuple(side // 5 for side in tone)
        cv2.circle(pixels, (x, y + 4 + 11 * number), 4, colour, -1, cv2.LINE_AA)


def _under_sky(pixels: Pixels, chance: np.random.Generator, weather: str, night: bool) -> Pixels:
    """Returns the picture in its weather and light, with the noise of a camera."""
    light = pixels.astype(np.float32) * chance.uniform(0.9, 1.08)
    if night:
        # Lamps and lit windows are bright and not blue, as the sky is.
        lit = (np.maximum(light[..., 0], light[..., 1]) > 225) & (light[..., 2] < 180)
        light = light * np.where(lit, 1.0, 0.26)[..., None] * np.array([0.9, 0.95, 1.15])
    if weather == "fog":
        far = np.clip(1.15 - np.abs(np.arange(HEIGHT) - _HORIZON) / 110, 0.3, 0.92)[:, None, None]
        light = light * (1 - far) + (74.0 if night else 206.0) * far
    light = np.ascontiguousarray(light, np.float32)
    if weather == "rain":
        light = cv2.GaussianBlur(light, (3, 3), 0) * 0.86
        for x, y in chance.integers(0, (WIDTH, HEIGHT), (110, 2)).tolist():
            cv2.line(light, (x, y), (x - 2, y + 9), (196.0, 202.0, 210.0), 1, cv2.LINE_AA)
    if weather == "snow":
        light[_HORIZON:] = light[_HORIZON:] * 0.62 + (60 if night else 92)
        for x, y in chance.integers(0, (WIDTH, HEIGHT), (150, 2)).tolist():
            cv2.circle(light, (x, y), int(chance.integers(1, 3)), (244.0, 246.0, 250.0), -1, cv2.LINE_AA)
    light += chance.normal(0, 5 if night else 2.5, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return np.clip(light, 0, 255).astype(np.uint8)


def _fill(pixels: Pixels, box: Sequence[float], tone: Any) -> None:
    x0, y0, x1, y1 = (round(side) for side in box)
    pixels[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = np.clip(tone, 0, 255)


def _clip(scene: Scene) -> Scene:
    """Returns a clip of a second in which the camera nods: Motion JPEG in MP4, as vehicles send it."""
    import av

    still = decode_image(scene.picture.data)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        stream.time_base = Fraction(1, _FPS)
        for number in range(_FPS):
            moved = np.roll(still, int(3 * np.sin(number)), axis=0)
            packet = av.Packet(_jpeg(np.ascontiguousarray(moved)))
            packet.stream, packet.time_base = stream, stream.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return Scene(
        Picture(buffer.getvalue(), "video/mp4"), scene.size, scene.things, scene.light, scene.embedding
    )
