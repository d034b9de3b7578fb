"""Samples skeletons of 14 joints in many poses: the joints of a drawn figure.

A figure is about 1 high around the origin, y down. A yaw turns it: at 0 it faces the viewer, at pi it
shows its back, so that its left and right swap sides. Joints follow the order of the LSP and MPII sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JOINTS = (
    "right_ankle",
    "right_knee",
    "right_hip",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_wrist",
    "right_elbow",
    "right_shoulder",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "neck",
    "head_top",
)
R_ANKLE, R_KNEE, R_HIP, L_HIP, L_KNEE, L_ANKLE = range(6)
R_WRIST, R_ELBOW, R_SHOULDER, L_SHOULDER, L_ELBOW, L_WRIST, NECK, HEAD = range(6, 14)


@dataclass(frozen=True)
class Pose:
    """Holds points, float64 [14,2] in figure space, the yaw in radians, and the side nearer to the viewer."""

    points: NDArray[np.float64]
    yaw: float
    near: str


def sample_pose(rng: np.random.Generator) -> Pose:
    """Returns a pose: standing, walking, sitting, waving or bent, from any side."""
    # Mostly facing the viewer or turned away.
    yaw = float(rng.choice([0.0, math.pi]) + rng.normal(0, 0.75))
    tilt = float(rng.normal(0, 0.2) if rng.random() < 0.8 else rng.normal(0, 0.8))
    points = np.zeros((14, 2))
    pelvis, up = np.zeros(2), np.array([math.sin(tilt), -math.cos(tilt)])
    across = np.array([up[1], -up[0]]) * math.cos(yaw)  # from its left to its right, as seen
    torso = 0.3 * rng.uniform(0.85, 1.1) * rng.uniform(0.85, 1.0)
    neck = pelvis + up * torso
    points[NECK] = neck
    lean = tilt + rng.normal(0, 0.2)
    points[HEAD] = neck + 0.145 * rng.uniform(0.9, 1.1) * np.array([math.sin(lean), -math.cos(lean)])
    shoulder, hip = 0.105 * rng.uniform(0.85, 1.15), 0.06 * rng.uniform(0.85, 1.15)
    points[R_SHOULDER], points[L_SHOULDER] = neck + across * shoulder, neck - across * shoulder
    points[R_HIP], points[L_HIP] = pelvis + across * hip, pelvis - across * hip
    sits = rng.random() < 0.15
    # Limbs bend towards the side that the figure faces; without a side, to the right.
    facing = math.copysign(1.0, math.sin(yaw) or 1.0)
    for side, (root, middle, end) in enumerate(
        ((R_SHOULDER, R_ELBOW, R_WRIST), (L_SHOULDER, L_ELBOW, L_WRIST))
    ):
        outward = (1 if side == 0 else -1) * math.copysign(1.0, -math.cos(yaw))
        points[middle], points[end] = _arm(points[root], outward, facing, rng)
    for root, middle, end in ((R_HIP, R_KNEE, R_ANKLE), (L_HIP, L_KNEE, L_ANKLE)):
        points[middle], points[end] = _leg(points[root], facing, rng, sits=sits)
    return Pose(points, yaw, "right" if math.sin(yaw) > 0 else "left")


def _limb(root: NDArray[np.float64], angle: float, length: float) -> NDArray[np.float64]:
    """Returns the end of a limb from a root, at an angle from straight down, positive to the right."""
    return root + length * np.array([math.sin(angle), math.cos(angle)])


def _arm(
    root: NDArray[np.float64], outward: float, facing: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    raised = rng.random() < 0.25
    angle = outward * (rng.uniform(1.4, 3.0) if raised else abs(rng.normal(0.15, 0.5)))
    bend = (facing if rng.random() < 0.6 else outward) * abs(rng.normal(0.3, 0.7))
    elbow = _limb(root, angle, 0.165 * rng.uniform(0.7, 1.05))
    return elbow, _limb(elbow, angle + bend, 0.145 * rng.uniform(0.7, 1.05))


def _leg(
    root: NDArray[np.float64], facing: float, rng: np.random.Generator, *, sits: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    angle = facing * rng.uniform(0.9, 1.6) if sits else rng.normal(0, 0.35)
    bend = -facing * abs(rng.normal(1.2, 0.3) if sits else rng.normal(0, 0.45))
    knee = _limb(root, angle, 0.235 * rng.uniform(0.8, 1.05))
    return knee, _limb(knee, angle + bend, 0.225 * rng.uniform(0.8, 1.05))
