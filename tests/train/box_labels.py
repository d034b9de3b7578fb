"""Writes pictures with boxes in each label format, for the tests of their readers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import encode_png
from misfire_train.data.examples import Dataset, Examples

CLASSES = ("car", "person", "sign")


@dataclass
class Frame:
    """A picture and its boxes: x0 y0 x1 y1 in its pixels, class, whether to ignore."""

    name: str
    width: int = 64
    height: int = 48
    boxes: list[tuple[float, float, float, float, int, bool]] = field(default_factory=list)


def draw(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The content depends on the place, so that no two pictures are equal.
    seed = sum(str(path).encode())
    path.write_bytes(encode_png(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)))


def coco(document: Path, images: Path, frames: list[Frame], *, first: int = 1, **changes: Any) -> None:
    """Category ids have gaps, as those of COCO do."""
    document.parent.mkdir(parents=True, exist_ok=True)
    listed, marks = [], []
    for number, frame in enumerate(frames, first):
        draw(images / frame.name, frame.width, frame.height)
        listed.append({"id": number, "file_name": frame.name, "width": frame.width, "height": frame.height})
        for x0, y0, x1, y1, label, ignore in frame.boxes:
            marks.append(
                {
                    "id": len(marks) + 1,
                    "image_id": number,
                    "category_id": 3 + 10 * label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": int(ignore),
                }
            )
    categories = [{"id": 3 + 10 * at, "name": name} for at, name in enumerate(CLASSES)]
    content = {"images": listed, "annotations": marks, "categories": categories} | changes
    document.write_text(json.dumps(content))


def yolo(root: Path, half: str, frames: list[Frame], **changes: Any) -> None:
    for frame in frames:
        draw(root / "images" / half / frame.name, frame.width, frame.height)
        lines = [
            f"{label} {(x0 + x1) / 2 / frame.width!r} {(y0 + y1) / 2 / frame.height!r} "
            f"{(x1 - x0) / frame.width!r} {(y1 - y0) / frame.height!r}"
            for x0, y0, x1, y1, label, _ignore in frame.boxes
        ]
        file = (root / "labels" / half / frame.name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines))
    halves = {each.name: f"images/{each.name}" for each in (root / "images").iterdir()}
    # JSON is YAML.
    content = {**halves, "names": list(CLASSES), "nc": len(CLASSES)} | changes
    (root / "data.yaml").write_text(json.dumps(content))


def voc_xml(frame: Frame, *, from_one: bool = True, size: tuple[int, int] | None = None) -> str:
    shift = 1 if from_one else 0
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><difficult>{int(ignore)}</difficult><bndbox>"
        f"<xmin>{x0 + shift}</xmin><ymin>{y0 + shift}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        f"<part><name>head</name><bndbox><xmin>0</xmin></bndbox></part></object>"
        for x0, y0, x1, y1, label, ignore in frame.boxes
    )
    width, height = size or (frame.width, frame.height)
    return (
        f"<annotation><filename>{frame.name}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc(root: Path, frames: list[Frame], *, from_one: bool = True) -> None:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for frame in frames:
        draw(root / "JPEGImages" / frame.name, frame.width, frame.height)
        file = (root / "Annotations" / frame.name).with_suffix(".xml")
        file.write_text(voc_xml(frame, from_one=from_one))


def kitti(base: Path, frames: list[Frame]) -> None:
    (base / "label_2").mkdir(parents=True, exist_ok=True)
    for frame in frames:
        draw(base / "image_2" / frame.name, frame.width, frame.height)
        lines = [
            f"{'DontCare' if ignore else CLASSES[label]} 0.00 0 -1.57 {x0!r} {y0!r} {x1!r} {y1!r} "
            "1.5 1.6 3.9 0.6 1.7 47.0 -1.6"
            for x0, y0, x1, y1, label, ignore in frame.boxes
        ]
        (base / "label_2" / frame.name).with_suffix(".txt").write_text("\n".join(lines))


def boxes_of(examples: Examples, dataset: Dataset, name: str) -> list[list[float]]:
    """Returns the boxes of one picture in its own pixels, as the network's placement gives them back."""
    at = next(at for at, identity in enumerate(examples.ids) if identity.endswith(name))
    height, width = examples.images[at].shape[:2]
    targets = examples.targets[at].copy()
    assert targets.dtype == np.float32
    assert targets.shape[1] == 6
    targets[:, :4] = Placement.of(width, height, dataset.contract).to_image(targets[:, :4])
    return [[float(value) for value in row] for row in targets]
