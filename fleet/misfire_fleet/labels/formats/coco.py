"""Writes and reads COCO documents: boxes, crowds, turned boxes, skeletons and masks.

DIR/images/<id>.jpg
DIR/annotations/instances.json    labelled pictures; instances_train.json and so on if there are splits
DIR/annotations/unlabelled.json   all others, so that no trainer takes them for empty
DIR/annotations/predictions.json  the vehicle's answers, as COCO's results

A picture's fields are members of its entry in `images`. `misfire train --dataset coco-boxes:DIR` reads what
is written. Reading joins pictures and annotations on disk, so a document may be larger than memory.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from misfire_fleet.labels.content import MAX_BOXES, Box, BoxesLabel, Label, MaskLabel, Point, PointsLabel
from misfire_fleet.labels.formats.base import (
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
from misfire_fleet.labels.formats.parts.fields import fields_of, moment_text
from misfire_fleet.labels.formats.parts.geometry import around, box_from_corners, corners_of, hull_of
from misfire_fleet.labels.formats.parts.json_stream import JsonParts, members, outline
from misfire_fleet.labels.formats.parts.mask_pixels import (
    filled,
    mask_label,
    mask_of_runs,
    pixels_of,
    runs_of,
)
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.toml import explain
from misfire_train.data.readers.coco_documents import Annotation as _CommonAnnotation
from misfire_train.data.readers.coco_documents import Picture as _CommonPicture

SKELETON = "skeleton"
"""The category of a skeleton: a label of points names none."""
_FOLDER, _UNLABELLED = "annotations", "unlabelled"


class _Picture(_CommonPicture):
    sample_id: str = ""
    labelled: bool = True
    label_kind: Literal["", "boxes", "points", "mask"] = ""
    annotator: str = ""


class _Annotation(_CommonAnnotation):
    segmentation: Any = None
    attributes: dict[str, Any] = Field(default={})


@dataclass
class _Categories:
    """Holds the names of categories, and the number of keypoints of those with some, by id."""

    names: dict[int, str] = field(default_factory=dict)
    points: dict[int, int] = field(default_factory=dict)


@register
class Coco(Format):
    """The exchange format of most tools for boxes."""

    name = "coco"
    help = "COCO instances: images/ and annotations/instances.json, with predictions as COCO results"
    kinds = frozenset({"boxes", "points", "mask"})
    answers = True
    main = "annotations/instances.json"

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes the documents; entries wait in files until all are known."""
        written, writer = Written(), _Writer(folder / _FOLDER, plan)
        with writer:
            for item in items:
                label = item.label
                if label is not None and label.kind not in self.kinds:
                    written.left_out[f"labels of kind {label.kind}"] += 1
                    label = None
                if plan.pictures:
                    write_picture(item, folder / "images")
                written.count(item, labelled=label is not None, answered=writer.add(item, label))
            writer.join()
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a JSON with images, annotations and categories, or a folder with some."""
        found = _documents(path)
        return None if not found else f"COCO ({', '.join(file.name for file in found[:3])})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields a label for each picture of a document, also one without annotations: nothing is there.

        An entry with `labelled: false` and no annotation is not labelled. The label's kind is that of the
        entry (`label_kind`), else the project's, else boxes.
        """
        for file in _documents(path):
            yield from _read_document(file, known)


class _Writer:
    """Holds the documents that are being written."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan, self._open = folder, plan, ExitStack()
        self._documents: dict[str, JsonParts] = {}
        self._numbers = ClassNumbers(plan.classes)
        self._pictures = self._annotations = self._points = 0
        folder.mkdir()
        self._results = (folder / "predictions.json").open("w", encoding="utf-8")
        self._open.enter_context(self._results)
        self._results_written = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, item: ExportItem, label: Label | None) -> bool:
        """Adds a picture; returns whether its answer was written."""
        self._pictures += 1
        document = self._document(_UNLABELLED if label is None else _labelled(item.split))
        entry = {
            "id": self._pictures,
            **fields_of(item),
            "date_captured": moment_text(item.captured_at),
            # What must not be divided between training and test: a vehicle's day.
            "group": f"{item.vehicle}/{moment_text(item.captured_at)[:10]}",
            "labelled": label is not None,
            **({"label_kind": label.kind} if label is not None else {}),
        }
        document.add("images", entry)
        for annotation in self._of_label(label):
            self._annotations += 1
            document.add(
                "annotations",
                {"id": self._annotations, "image_id": self._pictures, "iscrowd": 0, **annotation},
            )
        return self._add_results(item)

    def join(self) -> None:
        """Writes the documents. All have the same categories."""
        if self._documents.keys() <= {_UNLABELLED}:
            self._document(_labelled(""))
        points = [*self._plan.points, *map(str, range(len(self._plan.points), self._points))]
        categories: list[dict[str, Any]] = [
            {"id": number, "name": name, "supercategory": "none"}
            for number, name in enumerate(self._numbers.names, start=1)
        ]
        for each in categories:
            if each["name"] == SKELETON and self._points:
                each |= {"keypoints": points[: self._points], "skeleton": []}
        for document in self._documents.values():
            document.join({"info": {"description": "misfire", "version": "1"}}, {"categories": categories})
        self._results.write("\n]\n" if self._results_written else "[]\n")

    def _document(self, name: str) -> JsonParts:
        if name not in self._documents:
            parts = JsonParts(self._folder / f"{name}.json", arrays=("images", "annotations"))
            self._documents[name] = self._open.enter_context(parts)
        return self._documents[name]

    def _of_label(self, label: Label | None) -> Iterator[dict[str, Any]]:
        if isinstance(label, BoxesLabel):
            yield from (self._of_box(box) for box in label.boxes)
        elif isinstance(label, PointsLabel):
            yield self._of_points(label)
        elif isinstance(label, MaskLabel):
            yield from self._of_mask(label)

    def _category(self, name: str) -> int:
        return self._numbers.of(name) + 1

    def _of_box(self, box: Box) -> dict[str, Any]:
        x0, y0, x1, y1 = hull_of(box)
        corners = [value for corner in corners_of(box) for value in corner]
        return {
            "category_id": self._category(box.name),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (box.x1 - box.x0) * (box.y1 - box.y0),
            "segmentation": [corners],
            "iscrowd": int(box.crowd),
            **({"ignore": 1} if box.ignore else {}),
            # The name under which label tools keep the angle.
            **({"attributes": {"rotation": box.degrees}} if box.degrees else {}),
        }

    def _of_points(self, label: PointsLabel) -> dict[str, Any]:
        self._points = max(self._points, len(label.points))
        x0, y0, x1, y1 = around([(p.x, p.y) for p in label.points if p.visible] or [(0.0, 0.0)])
        return {
            "category_id": self._category(SKELETON),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "segmentation": [],
            "keypoints": [value for p in label.points for value in (p.x, p.y, p.visible)],
            "num_keypoints": sum(p.visible > 0 for p in label.points),
        }

    def _of_mask(self, label: MaskLabel) -> Iterator[dict[str, Any]]:
        pixels = pixels_of(label)
        for number, name in sorted(label.names.items()):
            inside = pixels == number
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            if not len(rows):
                continue
            x0, y0 = int(columns[0]), int(rows[0])
            yield {
                "category_id": self._category(name),
                "bbox": [x0, y0, int(columns[-1]) + 1 - x0, int(rows[-1]) + 1 - y0],
                "area": int(inside.sum()),
                "segmentation": runs_of(inside),
            }

    def _add_results(self, item: ExportItem) -> bool:
        answer = item.answer
        if answer is None or not isinstance(answer.label, BoxesLabel | PointsLabel):
            return False
        for place, annotation in enumerate(self._of_label(answer.label)):
            of_box = isinstance(answer.label, BoxesLabel)
            scores = [s for s in answer.confidence if s is not None]
            score = answer.confidence[place] if of_box and place < len(answer.confidence) else None
            if not of_box and scores:
                score = sum(scores) / len(scores)
            p = answer.p_correct[place] if place < len(answer.p_correct) else None
            result = {
                "image_id": self._pictures,
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                **({} if of_box else {"keypoints": annotation["keypoints"]}),
                "score": 0.0 if score is None else score,
                **({} if p is None else {"p_correct": p}),
                "sample_id": item.sample,
            }
            mark = ",\n" if self._results_written else "[\n"
            self._results.write(mark + json.dumps(result, ensure_ascii=False, allow_nan=False))
            self._results_written += 1
        return True


def _labelled(split: str) -> str:
    return f"instances_{split}" if split else "instances"


def _documents(path: Path) -> list[Path]:
    """Returns the COCO documents at a path: those of pictures, by name."""
    if path.is_file():
        files = [path] if path.suffix.lower() == ".json" else []
    else:
        files = sorted([*path.glob("*.json"), *path.glob(f"{_FOLDER}/*.json"), *path.glob("*/*.coco.json")])
    return [file for file in dict.fromkeys(files) if _is_document(file)]


def _is_document(file: Path) -> bool:
    """Returns whether a JSON is an object with images and annotations, wherever their keys are."""
    head = outline(file)
    if not head.lstrip().startswith("{"):
        return False
    if all(f'"{key}"' in head for key in ("images", "annotations")) or (
        '"image_id"' in head and '"category_id"' in head
    ):
        return True
    # A large array may fill the beginning; other keys follow at the end.
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 64 * 1024))
        tail = stream.read().decode("utf-8", "ignore")
    return '"file_name"' in head and '"categories"' in head + tail


def _read_document(file: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
    """Joins pictures and annotations in a database that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="misfire-coco-") as folder,
        closing(sqlite3.connect(Path(folder) / "join.sqlite")) as joined,
    ):
        joined.execute("PRAGMA journal_mode=OFF")
        joined.execute("PRAGMA synchronous=OFF")
        joined.execute("CREATE TABLE pictures (seq INTEGER PRIMARY KEY, id INTEGER UNIQUE, entry TEXT)")
        joined.execute("CREATE TABLE annotations (seq INTEGER PRIMARY KEY, image INTEGER, entry TEXT)")
        listed, problems = _load(file, joined)
        joined.execute("CREATE INDEX by_image ON annotations (image)")
        yield from problems
        query = "SELECT entry FROM annotations WHERE image = ? ORDER BY seq"
        for number, entry in joined.execute("SELECT id, entry FROM pictures ORDER BY seq"):
            picture = _Picture.model_validate_json(entry)
            found = [_Annotation.model_validate_json(row[0]) for row in joined.execute(query, (number,))]
            if not found and not picture.labelled:
                continue
            yield _label(f"{file.name}: {picture.file_name}", picture, found, listed, known)
        lost = "SELECT count(*), min(image) FROM annotations WHERE image NOT IN (SELECT id FROM pictures)"
        count, first = joined.execute(lost).fetchone()
        if count:
            yield Problem(
                file.name, f"{count} annotations are of pictures that it does not list, such as {first}"
            )


def _load(file: Path, joined: sqlite3.Connection) -> tuple[_Categories, list[Problem]]:
    """Fills the tables; returns the categories, and problems."""
    listed = _Categories()
    problems: list[Problem] = []
    for key, element in members(file):
        if key not in ("images", "annotations", "categories"):
            continue
        try:
            if key == "categories":
                number, name = int(element["id"]), str(element["name"]).strip()
                if not 0 < len(name) <= 200:
                    raise ValueError(f"name of category {number} has {len(name)} characters")
                listed.names[number] = name
                if element.get("keypoints"):
                    listed.points[number] = len(element["keypoints"])
            elif key == "images":
                picture = _Picture.model_validate(element)
                joined.execute(
                    "INSERT INTO pictures (id, entry) VALUES (?, ?)", (picture.id, picture.model_dump_json())
                )
            else:
                annotation = _Annotation.model_validate(element)
                joined.execute(
                    "INSERT INTO annotations (image, entry) VALUES (?, ?)",
                    (annotation.image_id, annotation.model_dump_json()),
                )
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            problems.append(Problem(f"{file.name}: {key}", f"{_shown(element)}: {_why(error)}"))
        except sqlite3.IntegrityError:
            problems.append(Problem(f"{file.name}: {key}", f"{_shown(element)}: its id occurs twice"))
    return listed, problems


def _shown(element: Any) -> str:
    number = element.get("id") if isinstance(element, dict) else None
    return f"entry {number}" if isinstance(number, int) else json.dumps(element)[:60]


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return explain(error, most=1)
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]


def _label(
    where: str, picture: _Picture, annotations: Sequence[_Annotation], listed: _Categories, known: Known
) -> ImportedLabel | Problem:
    sample = picture.sample_id if len(id_in(picture.sample_id)) == 64 else id_in(picture.file_name)
    size = (picture.width, picture.height) if picture.width and picture.height else None
    kind = picture.label_kind or known.kind or "boxes"
    try:
        if len(annotations) > MAX_BOXES:
            raise ValueError(f"has {len(annotations):,} annotations; at most {MAX_BOXES:,} are read")
        if kind == "points":
            label: Label = _points_label(annotations, listed.points)
        elif kind == "mask":
            label = _mask_label(annotations, listed.names, picture, known.size_of(sample))
        else:
            label = BoxesLabel(boxes=tuple(_box(each, listed.names) for each in annotations))
    except ValueError as error:
        why = explain(error, most=1) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        return Problem(where, why)
    return ImportedLabel(sample, label, where, size=size, annotator=picture.annotator)


def _category(annotation: _Annotation, categories: Mapping[int, str]) -> str:
    name = categories.get(annotation.category_id)
    if name is None:
        listed = ", ".join(f"{key} {value}" for key, value in sorted(categories.items())[:5])
        raise ValueError(
            f"annotation {annotation.id} is of category {annotation.category_id}, "
            f"which is not listed ({listed})"
        )
    return name


def _box(annotation: _Annotation, categories: Mapping[int, str]) -> Box:
    name = _category(annotation, categories)
    flags = {"crowd": bool(annotation.iscrowd), "ignore": bool(annotation.ignore)}
    rotation = annotation.attributes.get("rotation")
    x, y, width, height = annotation.bbox
    if not (width > 0 and height > 0):
        raise ValueError(
            f"annotation {annotation.id} ({name[:40]}) has the bbox {list(annotation.bbox)}: no area"
        )
    box = {"name": name, "x0": x, "y0": y, "x1": x + width, "y1": y + height}
    if isinstance(rotation, int | float) and rotation:
        polygons = annotation.segmentation
        if isinstance(polygons, list) and len(polygons) == 1 and len(polygons[0]) == 8:
            values = [float(value) for value in polygons[0]]
            turned = box_from_corners(name, list(zip(values[::2], values[1::2], strict=True)))
            return Box.model_validate({**turned.model_dump(), **flags})
        # Without corners the bbox is the one before the rotation, as CVAT writes it.
        return Box.model_validate({**box, **flags, "degrees": (rotation + 180) % 360 - 180})
    return Box.model_validate({**box, **flags})


def _points_label(annotations: Sequence[_Annotation], points: Mapping[int, int]) -> PointsLabel:
    # A crowd has keypoints too, none of them labelled.
    found = [each for each in annotations if any(each.keypoints[2::3])]
    if len(found) != 1:
        raise ValueError(f"has {len(found)} skeletons; a label of points is one")
    values, expected = found[0].keypoints, points.get(found[0].category_id)
    if len(values) % 3 or (expected is not None and len(values) != 3 * expected):
        raise ValueError(
            f"annotation {found[0].id} has {len(values)} numbers for {expected or 'its'} keypoints"
        )
    rows = [values[at : at + 3] for at in range(0, len(values), 3)]
    if not all(row[2] in (0, 1, 2) for row in rows):
        raise ValueError(f"annotation {found[0].id} has a visibility other than 0, 1 or 2")
    return PointsLabel(points=tuple(Point(x=x, y=y, visible=int(v)) for x, y, v in rows))


def _mask_label(
    annotations: Sequence[_Annotation],
    categories: Mapping[int, str],
    picture: _Picture,
    stored: tuple[int, int] | None,
) -> MaskLabel:
    """Returns the mask of all annotations; later ones are above earlier ones."""
    size = (picture.width, picture.height) if picture.width and picture.height else stored
    if size is None:
        raise ValueError("has no width and height")
    width, height = int(size[0]), int(size[1])
    if stored is not None and (width, height) != stored:
        raise ValueError(f"its masks are {width}x{height}, the stored picture {stored[0]}x{stored[1]}")
    if not 0 < width * height <= 64_000_000:
        raise ValueError(f"is {width}x{height}; at most 64,000,000 pixels are read")
    names = dict(enumerate(dict.fromkeys(categories.values())))
    numbers = {name: number for number, name in names.items()}
    pixels = np.full((height, width), 65_535, np.uint16)
    for each in annotations:
        shape = each.segmentation
        if isinstance(shape, dict):
            inside = mask_of_runs(shape)
        elif isinstance(shape, list) and shape:
            inside = filled(shape, height=height, width=width)
        else:
            raise ValueError(f"annotation {each.id} has no segmentation")
        if inside.shape != pixels.shape:
            raise ValueError(f"annotation {each.id} has a mask of another size")
        pixels[inside] = numbers[_category(each, categories)]
    # 255 stands for "not labelled" wherever eight bits are enough.
    pixels[pixels == 65_535] = 255 if len(names) <= 255 else 65_535
    return mask_label(pixels, names)
