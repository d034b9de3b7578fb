"""Writes and reads a FiftyOne dataset on disk: metadata.json, samples.json and data/.

    dataset = fiftyone.Dataset.from_dir("DIR", dataset_type=fiftyone.types.FiftyOneDataset)

`ground_truth` has the label, `predictions` the vehicle's answer, and every field (percentile, reason, scores,
context) is a field of the sample, so the app sorts and filters by it. Upright boxes are Detections in shares
of the picture; turned ones are Polylines of four corners in `ground_truth_turned`. Masks are files in
fields/ground_truth/. metadata.json has no version, so FiftyOne takes the fields' types from the samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
    names_in,
    parse,
)
from misfire_fleet.labels.formats.base import (
    ALL_KINDS,
    Answer,
    ClassNumbers,
    ExportItem,
    Format,
    ImportedLabel,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.parts.fields import fields_of, moment_of
from misfire_fleet.labels.formats.parts.geometry import box_from_corners, corners_of
from misfire_fleet.labels.formats.parts.json_stream import JsonParts, json_text, members, outline
from misfire_fleet.labels.formats.parts.mask_pixels import png_of, renumbered
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.formats.parts.words import read_mask_label
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

LABEL, TURNED, ANSWER = "ground_truth", "ground_truth_turned", "predictions"
_MASKS = f"fields/{LABEL}"
_NO_FIELD = re.compile(r"[^0-9A-Za-z_]")


@register
class FiftyOne(Format):
    """The dataset of Voxel51's app."""

    name = "fiftyone"
    help = "a FiftyOne dataset: metadata.json, samples.json and data/"
    kinds = ALL_KINDS
    answers = True
    main = "samples.json"

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes samples one after another, and the classes at the end."""
        written, numbers = Written(), ClassNumbers(plan.classes)
        with JsonParts(folder / self.main, arrays=("samples",)) as document:
            for item in items:
                if plan.pictures:
                    write_picture(item, folder / "data")
                document.add("samples", _sample(item, numbers, folder))
                written.count(item)
            document.join({})
        names = list(numbers.names)
        metadata = {
            "media_type": "image",
            "default_classes": names,
            "default_mask_targets": {str(number): name for number, name in enumerate(names)},
            "info": {"project": plan.project, "points": list(plan.points)},
        }
        (folder / "metadata.json").write_text(json_text(metadata), encoding="utf-8")
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a samples.json with samples that have a filepath, alone or in a folder."""
        file = path / self.main if path.is_dir() else path
        if file.suffix.lower() != ".json":
            return None
        head = outline(file).lstrip()
        if not re.match(r'\{\s*"samples"\s*:\s*\[', head) or (len(head) > 100 and '"filepath"' not in head):
            return None
        return f"a FiftyOne dataset ({file.name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the ground truth of every sample that has one; predictions are no labels."""
        file = path / self.main if path.is_dir() else path
        reader = _Reader(file.parent, _mask_names(file.parent), known)
        number = 0
        for key, sample in members(file):
            if key != "samples":
                continue
            number += 1
            where = f"{file.name}: sample {number}"
            try:
                found = reader.label(sample, where)
            except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
                why = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
                yield Problem(where, why.removeprefix(f"{where}: "))
                continue
            if found is not None:
                yield found


def _sample(item: ExportItem, numbers: ClassNumbers, folder: Path) -> dict[str, Any]:
    label, answer = item.label, item.answer
    return {
        "filepath": f"data/{item.file_name}",
        "tags": [*([item.split] if item.split else []), *([] if label is not None else ["unlabelled"])],
        "metadata": {
            "_cls": "ImageMetadata",
            "mime_type": item.media_type,
            "width": item.width,
            "height": item.height,
        },
        # Names of fields are attributes in the app: a dot would be a path.
        **{
            _NO_FIELD.sub("_", name): value
            for name, value in fields_of(item).items()
            if name not in _IN_METADATA
        },
        **({} if label is None else _label_fields(label, item, numbers, folder)),
        **({} if answer is None else {ANSWER: _answer(answer, item)}),
    }


_IN_METADATA = frozenset({"width", "height"})


def _label_fields(label: Label, item: ExportItem, numbers: ClassNumbers, folder: Path) -> dict[str, Any]:
    for name in names_in(label):
        numbers.of(name)
    if isinstance(label, MaskLabel):
        pixels = renumbered(label, {name: numbers.of(name) for name in label.names.values()})
        (folder / _MASKS).mkdir(parents=True, exist_ok=True)
        (folder / _MASKS / f"{item.sample}.png").write_bytes(png_of(pixels))
        return {LABEL: {"_cls": "Segmentation", "mask_path": f"{_MASKS}/{item.sample}.png"}}
    if isinstance(label, BoxesLabel) and any(box.degrees for box in label.boxes):
        upright = [_detection(b, item, index=at) for at, b in enumerate(label.boxes) if not b.degrees]
        turned = [_polyline(b, item, index=at) for at, b in enumerate(label.boxes) if b.degrees]
        return {
            LABEL: {"_cls": "Detections", "detections": upright},
            TURNED: {"_cls": "Polylines", "polylines": turned},
        }
    return {LABEL: _content(label, item)}


def _content(label: Label, item: ExportItem) -> dict[str, Any]:
    match label:
        case ClassLabel():
            return {"_cls": "Classification", "label": label.name}
        case ClassesLabel():
            each = [{"_cls": "Classification", "label": name} for name in label.names]
            return {"_cls": "Classifications", "classifications": each}
        case BoxesLabel():
            return {"_cls": "Detections", "detections": [_detection(box, item) for box in label.boxes]}
        case PointsLabel():
            places = [[p.x / item.width, p.y / item.height] for p in label.points]
            visible = [p.visible for p in label.points]
            return {
                "_cls": "Keypoints",
                "keypoints": [
                    {"_cls": "Keypoint", "label": "skeleton", "points": places, "visible": visible}
                ],
            }
        case ValuesLabel() if len(label.values) == 1:
            return {"_cls": "Regression", "value": label.values[0]}
        case ValuesLabel():
            # FiftyOne's regression is one number.
            return {"_cls": "Regression", "value": label.values[0], "values": list(label.values)}
    raise ValueError(f"an answer of kind {label.kind} has no form in FiftyOne")


def _detection(box: Box, item: ExportItem, **more: Any) -> dict[str, Any]:
    sides = box.x0 / item.width, box.y0 / item.height
    return {
        "_cls": "Detection",
        "label": box.name,
        "bounding_box": [*sides, (box.x1 - box.x0) / item.width, (box.y1 - box.y0) / item.height],
        **({"iscrowd": True} if box.crowd else {}),
        **({"ignore": True} if box.ignore else {}),
        **more,
    }


def _polyline(box: Box, item: ExportItem, *, index: int) -> dict[str, Any]:
    return {
        "_cls": "Polyline",
        "label": box.name,
        "points": [[[x / item.width, y / item.height] for x, y in corners_of(box)]],
        "closed": True,
        "filled": False,
        "index": index,
        **({"iscrowd": True} if box.crowd else {}),
        **({"ignore": True} if box.ignore else {}),
    }


def _answer(answer: Answer, item: ExportItem) -> dict[str, Any]:
    content = _content(answer.label, item)
    each = next((content[key] for key in ("detections", "classifications") if key in content), None)
    for place, part in enumerate(each if each is not None else [content]):
        for name, values in (("confidence", answer.confidence), ("p_correct", answer.p_correct)):
            if place < len(values) and values[place] is not None and content["_cls"] != "Keypoints":
                part[name] = values[place]
    return content


@dataclass(frozen=True)
class _Reader:
    """Reads samples. folder: of the dataset. names: classes of mask numbers."""

    folder: Path
    names: Mapping[int, str]
    known: Known

    def label(self, sample: Any, where: str) -> ImportedLabel | None:
        """Returns the label of a sample, None if it has none. Raises ValueError or ConfigError."""
        if not isinstance(sample, dict) or not isinstance(sample.get("filepath"), str):
            raise ValueError("expected a sample with a filepath")
        parts = [sample[name] for name in (LABEL, TURNED) if isinstance(sample.get(name), dict)]
        if not parts:
            return None
        stated = sample.get("sample_id")
        identity = id_in(stated if isinstance(stated, str) else sample["filepath"])
        metadata = sample.get("metadata") or {}
        size = _size(metadata.get("width"), metadata.get("height")) or self.known.size_of(identity)
        annotator = sample.get("annotator")
        return ImportedLabel(
            identity,
            self._content(parts, size or (1, 1), where),
            where,
            size=size,
            annotator=annotator if isinstance(annotator, str) else "",
            at=moment_of(sample.get("labelled_at")),
        )

    def _content(self, parts: Sequence[Mapping[str, Any]], size: tuple[int, int], where: str) -> Label:
        boxes = [box for part in parts for box in _boxes(part, size)]
        if all(part.get("_cls") in ("Detections", "Polylines") for part in parts):
            # Upright and turned boxes are in two fields; the index is their place in the label.
            if all(isinstance(index, int) for index, _ in boxes):
                boxes.sort(key=lambda pair: pair[0])
            return parse({"kind": "boxes", "boxes": [box for _, box in boxes]}, where=where)
        content = parts[0]
        match content.get("_cls"):
            case "Classification":
                found: dict[str, Any] = {"kind": "class", "name": content["label"]}
            case "Classifications":
                found = {"kind": "classes", "names": [each["label"] for each in content["classifications"]]}
            case "Regression":
                found = {"kind": "values", "values": content.get("values") or [content["value"]]}
            case "Keypoints":
                found = {"kind": "points", "points": _points(content["keypoints"], size)}
            case "Segmentation" if isinstance(content.get("mask_path"), str):
                return self._mask(content["mask_path"], where)
            case other:
                raise ValueError(f"{LABEL} is a {str(other)[:40]}, which is no label of misfire")
        return parse(found, where=where)

    def _mask(self, path: str, where: str) -> Label:
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder.resolve()) or not file.is_file():
            raise ValueError(f"mask_path {path[:100]!r} is no file of the dataset")
        return read_mask_label(file, names=dict(self.names), where=where)


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    return (width, height) if all(type(v) is int and 0 < v < 1_000_000 for v in (width, height)) else None


def _boxes(part: Mapping[str, Any], size: tuple[int, int]) -> list[tuple[Any, dict[str, Any]]]:
    """Returns (index, box) of detections or closed polylines."""
    detections, lines = part.get("detections") or (), part.get("polylines") or ()
    return [
        *((each.get("index"), _read_detection(each, size)) for each in detections),
        *((each.get("index"), _read_polyline(each, size)) for each in lines),
    ]


def _read_detection(each: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    x, y, width, height = (float(value) for value in each["bounding_box"])
    if not (width > 0 and height > 0):
        raise ValueError(f"a detection of {str(each.get('label'))[:40]} has no area")
    return {
        "name": each["label"],
        "x0": x * size[0],
        "y0": y * size[1],
        "x1": (x + width) * size[0],
        "y1": (y + height) * size[1],
        "crowd": bool(each.get("iscrowd")),
        "ignore": bool(each.get("ignore")),
    }


def _read_polyline(each: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    corners = [(float(x) * size[0], float(y) * size[1]) for x, y in each["points"][0]]
    box = box_from_corners(str(each["label"]), corners)
    return {**box.model_dump(), "crowd": bool(each.get("iscrowd")), "ignore": bool(each.get("ignore"))}


def _points(listed: Any, size: tuple[int, int]) -> list[dict[str, Any]]:
    if len(listed) != 1:
        raise ValueError(f"has {len(listed)} skeletons; a label of points is one")
    places = listed[0]["points"]
    visible = listed[0].get("visible") or [2] * len(places)
    return [
        {"x": float(x) * size[0], "y": float(y) * size[1], "visible": seen}
        for (x, y), seen in zip(places, visible, strict=True)
    ]


def _mask_names(folder: Path) -> dict[int, str]:
    """Returns the classes of mask numbers, as metadata.json states them; none without it."""
    try:
        metadata = json.loads(outline(folder / "metadata.json", most=16 * 1024 * 1024) or "{}")
        named = list((metadata.get("mask_targets") or {}).values())
        targets: dict[str, str] = metadata.get("default_mask_targets") or (named[0] if named else {})
        return {int(number): str(name) for number, name in targets.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}
