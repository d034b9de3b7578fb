"""Draws one clothed figure with OpenCV: far limbs first, then the trunk, near limbs and the head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image
from misfire_train.data.drawn.poses import (
    HEAD,
    L_ANKLE,
    L_ELBOW,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_WRIST,
    NECK,
    R_ANKLE,
    R_ELBOW,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_WRIST,
    Pose,
)

# Bits after the point of OpenCV's fixed-point coordinates: a sixteenth of a pixel.
_SHIFT = 4
_ARMS = {"right": (R_SHOULDER, R_ELBOW, R_WRIST), "left": (L_SHOULDER, L_ELBOW, L_WRIST)}
_LEGS = {"right": (R_HIP, R_KNEE, R_ANKLE), "left": (L_HIP, L_KNEE, L_ANKLE)}
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Wardrobe:
    """Holds colours and cuts of one figure. camouflage: number of garments in the background's colours."""

    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour
    shoes: Colour
    stripes: Colour | None
    short_sleeves: bool
    shorts: bool
    girth: float
    camouflage: int


def sample_wardrobe(rng: np.random.Generator) -> Wardrobe:
    """Returns a random wardrobe; one figure in three is dressed partly like its surroundings."""
    tone = rng.uniform(0.25, 1.0)
    skin = (int(60 + 180 * tone), int(35 + 160 * tone), int(25 + 135 * tone))
    return Wardrobe(
        skin=skin,
        hair=_dull(rng, 0.45),
        top=_dull(rng, 1.0),
        trousers=_dull(rng, 0.8),
        shoes=_dull(rng, 0.6),
        stripes=_dull(rng, 1.0) if rng.random() < 0.25 else None,
        short_sleeves=bool(rng.random() < 0.45),
        shorts=bool(rng.random() < 0.3),
        girth=float(rng.uniform(0.75, 1.3)),
        camouflage=int(rng.integers(1, 3)) if rng.random() < 0.35 else 0,
    )


def draw_figure(
    canvas: Image,
    parts: NDArray[np.uint8],
    points: NDArray[np.float32],
    pose: Pose,
    *,
    wardrobe: Wardrobe,
    palette: NDArray[np.uint8],
) -> None:
    """Draws in place into canvas [S,S,3] and parts [S,S] (1 head, 2 torso, 3 arms, 4 legs).

    points: [14,2] in the canvas's pixels. palette: [K,3], colours of the surroundings for camouflage.
    """
    unit = _unit(points) * wardrobe.girth
    top = _rgb(palette[0]) if wardrobe.camouflage > 0 else wardrobe.top
    trousers = _rgb(palette[1]) if wardrobe.camouflage > 1 else wardrobe.trousers
    pen = _Pen(canvas, parts, unit)
    far = "left" if pose.near == "right" else "right"
    # From far to near, because later strokes cover earlier ones; farther limbs are in more shade.
    _arm(pen, points, far, wardrobe, top, shade=0.78)
    for side, shade in ((far, 0.82), (pose.near, 1.0)):
        _leg(pen, points, side, wardrobe, trousers, shade=shade)
    _torso(pen, points, wardrobe, top)
    faces_away = math.cos(pose.yaw) < 0
    if not faces_away:
        _arm(pen, points, pose.near, wardrobe, top, shade=1.0)
    _head(pen, points, pose, wardrobe)
    if faces_away:
        _arm(pen, points, pose.near, wardrobe, top, shade=0.95)


@dataclass(frozen=True)
class _Pen:
    canvas: Image
    parts: NDArray[np.uint8]
    unit: float

    def line(
        self, a: NDArray[np.float32], b: NDArray[np.float32], colour: Colour, *, width: float, part: int
    ) -> None:
        thickness = max(1, round(width * self.unit))
        cv2.line(self.canvas, _fixed(a), _fixed(b), colour, thickness, cv2.LINE_AA, _SHIFT)
        # No anti-aliasing: a mask has no class between two.
        cv2.line(self.parts, _fixed(a), _fixed(b), part, thickness, cv2.LINE_8, _SHIFT)

    def disc(self, centre: NDArray[np.float32], colour: Colour, *, radius: float, part: int) -> None:
        size = max(1, round(radius * self.unit * 2**_SHIFT))
        cv2.circle(self.canvas, _fixed(centre), size, colour, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(self.parts, _fixed(centre), size, part, -1, cv2.LINE_8, _SHIFT)

    def polygon(self, corners: NDArray[np.float32], colour: Colour, *, part: int) -> None:
        fixed = np.round(corners * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self.canvas, [fixed], colour, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self.parts, [fixed], part, cv2.LINE_8, _SHIFT)


def _arm(
    pen: _Pen, points: NDArray[np.float32], side: str, wardrobe: Wardrobe, top: Colour, *, shade: float
) -> None:
    shoulder, elbow, wrist = (points[joint] for joint in _ARMS[side])
    lower = wardrobe.skin if wardrobe.short_sleeves else top
    pen.line(elbow, wrist, _shaded(lower, shade), width=0.075, part=3)
    pen.line(shoulder, elbow, _shaded(top, shade), width=0.095, part=3)
    pen.disc(wrist, _shaded(wardrobe.skin, shade), radius=0.045, part=3)


def _leg(
    pen: _Pen, points: NDArray[np.float32], side: str, wardrobe: Wardrobe, trousers: Colour, *, shade: float
) -> None:
    hip, knee, ankle = (points[joint] for joint in _LEGS[side])
    lower = wardrobe.skin if wardrobe.shorts else trousers
    pen.line(knee, ankle, _shaded(lower, shade), width=0.095, part=4)
    pen.line(hip, knee, _shaded(trousers, shade), width=0.13, part=4)
    pen.disc(ankle, _shaded(wardrobe.shoes, shade), radius=0.06, part=4)


def _torso(pen: _Pen, points: NDArray[np.float32], wardrobe: Wardrobe, top: Colour) -> None:
    corners = points[[R_SHOULDER, L_SHOULDER, L_HIP, R_HIP]]
    pen.polygon(corners, top, part=2)
    for a, b in ((R_SHOULDER, R_HIP), (L_SHOULDER, L_HIP), (R_SHOULDER, L_SHOULDER), (R_HIP, L_HIP)):
        pen.line(points[a], points[b], top, width=0.13, part=2)
    if wardrobe.stripes is not None:
        for along in (0.25, 0.5, 0.75):
            a, b = (
                corners[0] + along * (corners[3] - corners[0]),
                corners[1] + along * (corners[2] - corners[1]),
            )
            pen.line(a, b, wardrobe.stripes, width=0.05, part=2)


def _head(pen: _Pen, points: NDArray[np.float32], pose: Pose, wardrobe: Wardrobe) -> None:
    neck, crown = points[NECK], points[HEAD]
    middle = neck + 0.58 * (crown - neck)
    pen.line(neck, middle, _shaded(wardrobe.skin, 0.85), width=0.075, part=1)
    radius = 0.42 * float(np.hypot(*(crown - neck))) / pen.unit
    pen.disc(middle, wardrobe.hair, radius=radius, part=1)
    if math.cos(pose.yaw) >= 0:
        forward = np.array([0.25 * math.sin(pose.yaw), 0.2], np.float32) * radius * pen.unit
        pen.disc(middle + forward, wardrobe.skin, radius=0.8 * radius, part=1)


def _unit(points: NDArray[np.float32]) -> float:
    """Returns about the figure's height in pixels, from bones that foreshorten little."""
    trunk = float(np.hypot(*(points[NECK] - (points[R_HIP] + points[L_HIP]) / 2)))
    # 0.29 is a trunk of mean length (see poses.py). The floor keeps strokes visible.
    return max(trunk / 0.29, 8.0)


def _fixed(point: NDArray[np.float32]) -> tuple[int, int]:
    return round(float(point[0]) * 2**_SHIFT), round(float(point[1]) * 2**_SHIFT)


def _shaded(colour: Colour, shade: float) -> Colour:
    return int(colour[0] * shade), int(colour[1] * shade), int(colour[2] * shade)


def _rgb(pixel: NDArray[np.uint8]) -> Colour:
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _dull(rng: np.random.Generator, brightness: float) -> Colour:
    """Returns a colour of any hue, seldom saturated."""
    grey, hue = rng.uniform(20, 235), rng.normal(0, 45, 3)
    red, green, blue = np.clip((grey + hue) * brightness, 0, 255)
    return int(red), int(green), int(blue)
