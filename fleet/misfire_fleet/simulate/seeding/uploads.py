"""Draws the frames of a vehicle's slot and makes uploads of some: offers, bytes, and the right answers.

frames --scores--> sketches of all    --by chance, or the worst--> Upload: a sample and the right answer
A frame fails with the probability that its learned score says, so rates and scores agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import Box, BoxesLabel, ClassLabel
from misfire_fleet.simulate.seeding.pictures import CLASSES, LIGHTS, Scene, Scenes, Thing, numbered
from misfire_fleet.simulate.seeding.plan import (
    RANDOM_RATE,
    REGIONS,
    SLOT_S,
    WEATHERS,
    SeededVehicle,
    SeedPlan,
    Weather,
    drift,
)
from misfire_fleet.simulate.seeding.scores import Array, Calibration, difficulty, draw
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import Clock, Offer, Place, Trigger, pack_embedding

_TRIGGERS = ("target-rate", "novelty", "harsh-brake", "driver-button")
_TRIGGER_SHARES = (0.62, 0.2, 0.12, 0.06)
_CLIPS = 0.004
_NEAR = 0.2
"""Share of uploads that nearly repeat the one before."""
_DELAY_S = 25.0
_DEGREE_KM = 111.0


@dataclass(frozen=True)
class Upload:
    """Holds a sample, the right answer and whether the model was wrong."""

    sample: NewSample
    label: BoxesLabel | ClassLabel
    failed: bool


@dataclass(frozen=True)
class Slot:
    """Says what a vehicle does in a slot: its number, and how many frames and uploads."""

    number: int
    frames: int
    drawn: int
    chosen: int


class UploadPress:
    """Makes the uploads of one vehicle, slot after slot.

    Args:
        plan: of the fleet.
        vehicle: whose uploads.
        scenes: the pictures.
        weather: of each region and slot.
        calibrations: by bundle.
    """

    def __init__(
        self,
        plan: SeedPlan,
        vehicle: SeededVehicle,
        *,
        scenes: Scenes,
        weather: Weather,
        calibrations: dict[str, Calibration],
    ) -> None:
        self._plan, self.vehicle = plan, vehicle
        self._scenes, self._weather, self._calibrations = scenes, weather, calibrations
        self._chance = np.random.default_rng((plan.seed, 5, vehicle.number))
        self._made = 0
        self._frame = 0
        self._last: tuple[Scene, NDArray[np.float32]] | None = None
        # Also a vehicle that names no region is somewhere.
        region = vehicle.region or REGIONS[vehicle.number % len(REGIONS)]
        self._home = np.array((region.lat, region.lon))
        self._at = self._home + self._chance.normal(0, 0.06, 2)

    def scores(self, slot: Slot) -> dict[str, Array]:
        """Returns the scores of all frames of a slot, [frames] each."""
        mean = difficulty(
            self.vehicle.bundle(slot.number),
            weather=self._weather.of(self.vehicle, slot.number),
            night=self._weather.night(slot.number),
            drift=drift(self._plan, self.vehicle, slot.number),
        )
        return draw(self._chance, mean, self._chance.normal(size=slot.frames))

    def uploads(self, slot: Slot, scores: dict[str, Array]) -> list[Upload]:
        """Returns the uploads of a slot: `drawn` frames by chance, and `chosen` of the worst."""
        self._drive()
        order = np.argsort(-scores["stacked"])
        pool = order[: max(slot.chosen, slot.frames // 50)]
        chosen = self._chance.choice(pool, min(slot.chosen, len(pool)), replace=False)
        drawn = self._chance.choice(max(1, slot.frames), slot.drawn, replace=False)
        made = [self._upload(slot, int(frame), scores, random=True) for frame in drawn]
        made += [self._upload(slot, int(frame), scores, random=False) for frame in chosen]
        self._frame += slot.frames
        return made

    def place(self) -> Place | None:
        """Returns what the vehicle reports of its place."""
        region = "" if self.vehicle.region is None else self.vehicle.region.name
        if not self.vehicle.located:
            return Place(region=region) if region else None
        return Place(lat=round(float(self._at[0]), 5), lon=round(float(self._at[1]), 5), region=region)

    def _drive(self) -> None:
        step = self._chance.normal(0, 4 / _DEGREE_KM, 2)
        self._at = self._at + step + 0.1 * (self._home - self._at)

    def _upload(self, slot: Slot, frame: int, scores: dict[str, Array], *, random: bool) -> Upload:
        chance, vehicle = self._chance, self.vehicle
        bundle = vehicle.bundle(slot.number)
        own = {name: float(values[frame]) for name, values in scores.items()}
        percentiles = {
            name: float(self._calibrations[bundle].percentiles(name, np.array(value)))
            for name, value in own.items()
        }
        weather, night = self._weather.of(vehicle, slot.number), self._weather.night(slot.number)
        scene, embedding = self._scene(weather, night)
        failed = bool(chance.random() < own["stacked"])
        answer, label = _answer(chance, scene, vehicle.task, failed=failed, doubt=own["stacked"])
        # The stride keeps vehicles, and the stores of other seeds, apart.
        self._made += 1
        data = numbered(scene.picture, (self._plan.seed * 100_003 + vehicle.number) * 10_000_019 + self._made)
        captured = self._plan.end_of(slot.number) - SLOT_S * (1 - frame / max(1, slot.frames))
        offer = Offer(
            id=hashlib.sha256(data).hexdigest(),
            vehicle=vehicle.name,
            size=len(data),
            media_type=scene.picture.media_type,
            captured_at=Clock(wall=captured, monotonic=float(self._frame + frame), boot_id="drawn"),
            bundle=bundle,
            scores=own,
            percentiles=percentiles,
            trigger=_trigger(chance, own, percentiles, random=random),
            prediction=answer,
            embedding=pack_embedding(embedding),
            context=self._context(weather, night),
            source="front",
            frame=self._frame + frame,
        )
        stored = min(captured + float(chance.exponential(_DELAY_S)), self._plan.end_of(slot.number))
        width, height = scene.size
        return Upload(NewSample(offer, data, width, height, "seed-1", stored), label, failed)

    def _scene(self, weather: int, night: bool) -> tuple[Scene, NDArray[np.float32]]:
        """Returns a scene and the frame's own embedding; often nearly those of the upload before."""
        chance = self._chance
        if self._last is not None and chance.random() < _NEAR:
            scene, before = self._last
            moved = before + 0.004 * chance.normal(size=before.shape)
        else:
            scene = self._scenes.choose(chance, weather, night=night, clip=bool(chance.random() < _CLIPS))
            moved = scene.embedding + 0.05 * chance.normal(size=scene.embedding.shape)
        embedding = np.asarray(moved / np.linalg.norm(moved), np.float32)
        self._last = scene, embedding
        return scene, embedding

    def _context(self, weather: int, night: bool) -> dict[str, str | float | bool]:
        chance, vehicle = self._chance, self.vehicle
        context: dict[str, str | float | bool] = {
            "weather": WEATHERS[weather],
            "light": "night" if night else "day",
            "camera": vehicle.camera,
            "speed_kmh": round(float(abs(chance.normal(38, 17))), 1),
        }
        if vehicle.region is not None:
            context["region"] = vehicle.region.name
        if vehicle.located:
            near = self._at + chance.normal(0, 0.4 / _DEGREE_KM, 2)
            context |= {"lat": round(float(near[0]), 5), "lon": round(float(near[1]), 5)}
        return context


def _trigger(
    chance: np.random.Generator, scores: dict[str, float], percentiles: dict[str, float], *, random: bool
) -> Trigger:
    if random:
        return Trigger(name="random", random=True, rate=RANDOM_RATE)
    name = str(chance.choice(_TRIGGERS, p=_TRIGGER_SHARES))
    reason = {
        "target-rate": f"stacked {scores['stacked']:.2f} is above this vehicle's threshold",
        "novelty": f"unlike the last uploads; stacked {scores['stacked']:.2f}",
        "harsh-brake": f"brake > 4 m/s2 while stacked is at {100 * percentiles['stacked']:.1f} %",
        "driver-button": "the driver pressed the button",
    }[name]
    return Trigger(name=name, reason=reason)


def _answer(
    chance: np.random.Generator, scene: Scene, task: str, *, failed: bool, doubt: float
) -> tuple[dict[str, Any], BoxesLabel | ClassLabel]:
    """Returns the model's answer and the right one; they agree unless it `failed`."""
    if task == "class":
        others = [light for light in LIGHTS if light != scene.light]
        told = str(chance.choice(others)) if failed else scene.light
        return {"class": told, "confidence": round(float(1 - doubt * chance.uniform(0.5, 1)), 4)}, ClassLabel(
            name=scene.light
        )
    things = [thing for thing in scene.things if min(_sides(thing)) >= 8]
    missed = int(chance.integers(len(things))) if failed and things and chance.random() < 0.7 else -1
    boxes = [_box(chance, thing, right=True) for at, thing in enumerate(things) if at != missed]
    if failed and missed < 0:
        width, height = scene.size
        x, y = chance.uniform(0, 0.7) * width, chance.uniform(0, 0.6) * height
        ghost = Thing(str(chance.choice(CLASSES)), (x, y, x + 0.2 * width, y + 0.3 * height))
        boxes.append(_box(chance, ghost, right=False))
    boxes.sort(key=lambda box: -box["score"])
    label = BoxesLabel(
        boxes=tuple(
            Box(name=thing.name, x0=thing.box[0], y0=thing.box[1], x1=thing.box[2], y1=thing.box[3])
            for thing in things
        )
    )
    return {"boxes": boxes, "more": 0, "size": list(scene.size)}, label


def _sides(thing: Thing) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return x1 - x0, y1 - y0


def _box(chance: np.random.Generator, thing: Thing, *, right: bool) -> dict[str, Any]:
    """Returns a box as an offer has it, a little beside its object; `p`: that it is right."""
    moved = np.array(thing.box) + (chance.normal(0, 0.6, 4) if right else 0)
    return {
        "class": thing.name,
        "score": round(float(chance.uniform(0.55, 0.98)), 4),
        "p": round(float(chance.beta(9, 1.4) if right else chance.beta(1.6, 5)), 4),
        "box": [round(float(side), 1) for side in np.maximum(moved, 0)],
    }
