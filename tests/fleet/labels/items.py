"""Pictures and labels as an export meets them: drawn ones of odd sizes, and real ones with their labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    LabelRecord,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.formats.base import Answer, ExportItem, Format, ImportedLabel, Known, Plan, Problem
from misfire_fleet.labels.formats.parts.mask_pixels import mask_label, pixels_of
from proving_ground.services import data_root

NOON = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
CLASSES = ("Auto", "Fußgänger", "信号 機", 'a/b: "c"\'', "no")


def drawn(number: int, *, width: int = 64, height: int = 48, kind: str = "image/png") -> bytes:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode({"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}[kind], pixels)[
        1
    ].tobytes()


def item(
    data: bytes,
    label: Label | None = None,
    *,
    size: tuple[int, int] = (64, 48),
    answer: Answer | None = None,
    **fields: Any,
) -> ExportItem:
    """An upload of these bytes."""
    sample = hashlib.sha256(data).hexdigest()
    kind = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/webp" if data[:4] == b"RIFF" else "image/png"
    record = None
    if label is not None:
        record = LabelRecord.of(sample, label, source="person", annotator="Zoë", at=NOON)
    values: dict[str, Any] = {
        "vehicle": "car-7",
        "bundle": "lights@1.0.0",
        "captured_at": NOON.timestamp() - 60,
        "trigger": "doubt",
        "reason": "score 0.93 is above 0.9",
        "percentile": 0.93,
        "scores": {"msp": 0.31, "learning_loss_pp": 1.5},
        "percentiles": {"msp": 0.7, "learning_loss_pp": 0.93},
        "context": {"weather": "Nebel, dicht", "speed": 13.5, "night": True},
    }
    return ExportItem(
        sample=sample,
        media_type=kind,
        width=size[0],
        height=size[1],
        read=lambda: data,
        record=record,
        answer=answer,
        **(values | fields),
    )


def boxes(*rows: tuple[Any, ...], **more: Any) -> BoxesLabel:
    return BoxesLabel(boxes=tuple(Box(name=n, x0=a, y0=b, x1=c, y1=d, **more) for n, a, b, c, d in rows))


def labels_of(kind: str) -> list[tuple[Label, tuple[int, int]]]:
    """Labels of a kind, each with the size of its picture: ordinary, odd, empty, unicode."""
    if kind == "class":
        return [(ClassLabel(name=name), (64, 48)) for name in CLASSES]
    if kind == "classes":
        found = [(), ("Auto",), ("Auto", "Fußgänger", "信号 機")]
        return [(ClassesLabel(names=names), (64, 48)) for names in found]
    if kind == "values":
        return [(ValuesLabel(values=values), (64, 48)) for values in ((0.5,), (-1.25, 3e-7, 1e9))]
    if kind == "points":
        one = PointsLabel(points=(Point(x=3.5, y=7), Point(x=0, y=0, visible=0), Point(x=63, y=1, visible=1)))
        return [(one, (64, 48))]
    if kind == "mask":
        odd = np.full((7, 33), 255, np.uint8)
        odd[2:5, 3:30] = 1
        odd[4:6, 10:12] = 0
        return [
            (mask_label(odd, {0: "Auto", 1: "Fußgänger"}), (33, 7)),
            (mask_label(np.full((48, 64), 255, np.uint8), {}), (64, 48)),
            (mask_label(np.zeros((48, 64), np.uint8), {0: "信号 機"}), (64, 48)),
        ]
    return [
        (boxes(), (64, 48)),
        (boxes(("Auto", 0, 0, 64, 48)), (64, 48)),
        (boxes(("Fußgänger", 1.25, 2.5, 3, 4.75), ("信号 機", 10, 10, 33, 19.125)), (33, 21)),
        (boxes(('a/b: "c"\'', 0.5, 0, 1, 3999), ("no", 0, 0, 1, 1)), (1, 4000)),
    ]


TURNED = BoxesLabel(
    boxes=(
        Box(name="Auto", x0=10, y0=12, x1=40, y1=22, degrees=30),
        Box(name="no", x0=20, y0=20, x1=30, y1=40, degrees=-75.5),
        Box(name="Auto", x0=1, y0=1, x1=5, y1=9),
    )
)
FLAGGED = BoxesLabel(
    boxes=(
        Box(name="Auto", x0=10, y0=12, x1=40, y1=22, crowd=True),
        Box(name="no", x0=20, y0=20, x1=30, y1=40, ignore=True),
        Box(name="Auto", x0=1, y0=1, x1=5, y1=9),
    )
)


def items_of(kind: str) -> list[ExportItem]:
    """Pictures with labels of a kind, and one without a label."""
    made = [
        item(drawn(at, width=w, height=h), label, size=(w, h))
        for at, (label, (w, h)) in enumerate(labels_of(kind))
    ]
    return [*made, item(drawn(99, kind="image/jpeg"))]


def carla(most: int) -> Iterator[ExportItem]:
    """Frames of the test town with their boxes; those of `ignore` count neither way."""
    folder = data_root() / "carla_detection"
    document = json.loads((folder / "test.json").read_text())
    names = {each["id"]: each["name"] for each in document["categories"]}
    found: dict[int, list[Box]] = {}
    for each in document["annotations"]:
        x, y, w, h = each["bbox"]
        found.setdefault(each["image_id"], []).append(
            Box(
                name=names[each["category_id"]],
                x0=x,
                y0=y,
                x1=x + w,
                y1=y + h,
                ignore=bool(each.get("ignore")),
            )
        )
    for picture in document["images"][:most]:
        file = next(folder.rglob(picture["file_name"].rpartition("/")[2]))
        label = BoxesLabel(boxes=tuple(found.get(picture["id"], ())))
        size = picture["width"], picture["height"]
        yield item(file.read_bytes(), label, size=size, vehicle=f"car-{picture['id'] % 10}")


def plan(**values: Any) -> Plan:
    return Plan(**({"classes": CLASSES} | values))


def known_of(items: Iterable[ExportItem], **values: Any) -> Known:
    sizes = {each.sample: (each.width, each.height) for each in items}
    return Known(**({"classes": CLASSES, "size_of": sizes.get} | values))


def read_all(form: Format, path: Path, known: Known) -> dict[str, ImportedLabel]:
    """The labels of a path by sample; fails on the first problem and on a sample that comes twice."""
    found: dict[str, ImportedLabel] = {}
    for each in form.read(path, known):
        assert not isinstance(each, Problem), str(each)
        assert each.sample not in found
        found[each.sample] = each
    return found


def same(label: Label, other: Label, *, within: float = 1e-6) -> bool:
    """Whether labels say the same; places may differ by a rounding."""
    if isinstance(label, MaskLabel) and isinstance(other, MaskLabel):
        return _named_pixels(label) == _named_pixels(other)
    first, second = label.model_dump(), other.model_dump()
    return _alike(first, second, within)


def _named_pixels(label: MaskLabel) -> tuple[tuple[int, ...], list[str]]:
    pixels = pixels_of(label)
    return pixels.shape, [label.names.get(int(number), "") for number in pixels.ravel()]


def _alike(first: Any, second: Any, within: float) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_alike(first[k], second[k], within) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            _alike(a, b, within) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, float) and isinstance(second, int | float):
        return abs(first - second) <= within * max(1.0, abs(first))
    return bool(first == second)


def traffic_lights(most: int) -> Iterator[ExportItem]:
    """Crops of odd sizes with the colour of their light."""
    with np.load(data_root() / "traffic_lights" / "test.npz") as content:
        data, offsets = content["bytes"], content["offset"]
        for at in range(most):
            picture = data[offsets[at] : offsets[at + 1]].tobytes()
            height, width = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape[:2]
            name = str(content["classes"][content["label"][at]])
            yield item(picture, ClassLabel(name=name), size=(width, height))


def people() -> Iterator[ExportItem]:
    """Photographs with the skeleton of the first person whose joints are labelled."""
    folder = data_root() / "coco_pose_ccby"
    document = json.loads((folder / "person_keypoints.json").read_text())
    joints = {a["image_id"]: a["keypoints"] for a in document["annotations"] if a["num_keypoints"]}
    for picture in document["images"]:
        if picture["id"] in joints:
            values = joints[picture["id"]]
            points = tuple(
                Point(x=x, y=y, visible=v)
                for x, y, v in zip(values[::3], values[1::3], values[2::3], strict=True)
            )
            file = next(folder.rglob(picture["file_name"].rpartition("/")[2]))
            size = picture["width"], picture["height"]
            yield item(file.read_bytes(), PointsLabel(points=points), size=size)


def street_masks(most: int) -> Iterator[ExportItem]:
    """Frames whose objects are rectangles of their class, above a road that is not labelled."""
    for frame in carla(most):
        assert isinstance(frame.label, BoxesLabel)
        names = sorted({box.name for box in frame.label.boxes})
        pixels = np.full((frame.height, frame.width), 255, np.uint8)
        for box in frame.label.boxes:
            pixels[int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1] = names.index(box.name)
        yield item(frame.read(), mask_label(pixels, dict(enumerate(names))), size=(frame.width, frame.height))
