"""Writes and reads YOLO's texts: a line `class x y width height` for each object, in shares of the picture.

DIR/data.yaml  DIR/images/<id>.jpg  DIR/labels/<id>.txt (empty: no object)  DIR/predictions/<id>.txt

With splits: images/train and labels/train, and so on. If a box is turned, all lines have the four corners
instead (`class x1 y1 ... x4 y4`, YOLO's OBB). A skeleton is `class x y width height` and `x y visible` of
each point. Pictures without a label are in DIR/unlabelled/, because trainers take a missing text for "no
object". A prediction's line ends in its confidence. `misfire train --dataset yolo:DIR` reads what is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from misfire_fleet.labels.content import Box, BoxesLabel, Point, PointsLabel
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
    require_bounded,
    training_readers,
)
from misfire_fleet.labels.formats.parts.fields import SIDECAR, FieldsTable, fields_of
from misfire_fleet.labels.formats.parts.geometry import (
    Corner,
    around,
    box_from_corners,
    corners_of,
    same_shape,
)
from misfire_fleet.labels.formats.parts.pictures import files_below, picture_size, write_picture
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

DESCRIPTION = "data.yaml"
SKELETON = "skeleton"
"""The class of a skeleton's line: a label of points has none of its own."""
_HALVES = ("train", "val", "test")
_PICTURES = (".jpg", ".png", ".webp", ".jpeg")
_MAX_BYTES = 8 * 1024 * 1024
_NOT_LABELS = frozenset({"classes", "labels", "train", "val", "valid", "test", "readme", "notes"})


@register
class Yolo(Format):
    """Text labels as Ultralytics' trainers read them."""

    name = "yolo"
    help = "data.yaml, images/ and labels/ with a text for each picture; turned boxes and skeletons too"
    kinds = frozenset({"boxes", "points"})
    answers = True

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes a text for each labelled picture."""
        written, numbers = Written(), ClassNumbers(plan.classes)
        halves: dict[str, None] = {}
        points, turned = 0, False
        (folder / "labels").mkdir()
        with FieldsTable(folder / SIDECAR) as table:
            for item in items:
                label = item.label
                labelled = isinstance(label, BoxesLabel | PointsLabel)
                if isinstance(label, BoxesLabel | PointsLabel):
                    halves[item.split] = None
                    points = max(points, len(label.points) if isinstance(label, PointsLabel) else 0)
                    turned |= isinstance(label, BoxesLabel) and any(box.degrees for box in label.boxes)
                    lines = _lines(label, item, numbers, written)
                    _write_lines(folder / "labels" / item.split / f"{item.sample}.txt", lines)
                elif label is not None:
                    written.left_out[f"labels of kind {label.kind}"] += 1
                answered = item.answer is not None and isinstance(item.answer.label, BoxesLabel)
                if answered:
                    _write_lines(folder / "predictions" / f"{item.sample}.txt", _predictions(item, numbers))
                if plan.pictures:
                    write_picture(item, folder / (f"images/{item.split}" if labelled else "unlabelled"))
                table.add(fields_of(item))
                written.count(item, labelled=labelled, answered=answered)
        if turned:
            _turn_all(folder / "labels")
        (folder / DESCRIPTION).write_text(_description(numbers.names, halves, points), encoding="utf-8")
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a data.yaml with names, a folder with one, or texts of numbers beside a list of classes."""
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and path.suffix.lower() not in (".yaml", ".yml"):
            return None
        described = path if path.is_file() else _description_in(folder)
        listed = _class_list(folder)
        if described is None and listed is None:
            return None
        if described is not None and "names" not in _head(described):
            return None
        first = next(_label_files(folder), None)
        if first is None or any(not _looks_like_a_line(line) for line in _head(first).splitlines()[:3]):
            return None
        return f"YOLO's texts ({(described or listed or folder).name}, {first.relative_to(folder)})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the labels of all texts; one that is empty says that there is no object.

        A picture's size is needed for turned boxes and to say a box in pixels, so it must be stored.
        """
        folder = path if path.is_dir() else path.parent
        names, keypoints = _names(path, folder, known)
        for file in _label_files(folder):
            where, sample = str(file.relative_to(folder)), id_in(file.stem)
            size = known.size_of(sample)
            if size is None:
                # Counted as unknown by the importer; its boxes need no size for that.
                yield ImportedLabel(sample, BoxesLabel(boxes=()), where)
                continue
            cut = _other_shape(file, size)
            if cut is not None:
                yield Problem(where, f"its picture is {cut[0]}x{cut[1]}, the stored one {size[0]}x{size[1]}")
                continue
            yield _read_file(file, sample, where, names=names, size=size, keypoints=keypoints)


def _lines(
    label: BoxesLabel | PointsLabel, item: ExportItem, numbers: ClassNumbers, written: Written
) -> list[str]:
    width, height = item.width, item.height
    if isinstance(label, PointsLabel):
        return [_skeleton_line(label, numbers.of(SKELETON), width, height)]
    lines = []
    for box in label.boxes:
        if box.crowd or box.ignore:
            written.left_out["boxes of crowds or to be ignored, which YOLO has no place for"] += 1
        else:
            lines.append(_box_line(box, numbers.of(box.name), width, height))
    return lines


def _box_line(box: Box, number: int, width: int, height: int) -> str:
    if box.degrees:
        corners = (value for x, y in corners_of(box) for value in (x / width, y / height))
        return " ".join([str(number), *map(_share, corners)])
    x, y = (box.x0 + box.x1) / 2 / width, (box.y0 + box.y1) / 2 / height
    sides = (x, y, (box.x1 - box.x0) / width, (box.y1 - box.y0) / height)
    return " ".join([str(number), *map(_share, sides)])


def _skeleton_line(label: PointsLabel, number: int, width: int, height: int) -> str:
    placed = [(p.x, p.y) for p in label.points if p.visible] or [(0.0, 0.0)]
    x0, y0, x1, y1 = around(placed)
    sides = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    points = [f"{_share(p.x / width)} {_share(p.y / height)} {p.visible}" for p in label.points]
    return " ".join([str(number), *map(_share, sides), *points])


def _predictions(item: ExportItem, numbers: ClassNumbers) -> list[str]:
    assert item.answer is not None and isinstance(item.answer.label, BoxesLabel)
    boxes = item.answer.label.boxes
    confidence = (*item.answer.confidence, *[None] * len(boxes))
    return [
        f"{_box_line(box, numbers.of(box.name), item.width, item.height)} {_share(score or 0.0)}"
        for box, score in zip(boxes, confidence, strict=False)
    ]


def _share(value: float) -> str:
    # Ten digits: a thousandth of a pixel in any picture.
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def _turn_all(folder: Path) -> None:
    """Rewrites upright boxes as four corners: trainers of turned boxes take only those."""
    for file in files_below(folder, ".txt"):
        lines = []
        for line in file.read_text("ascii").splitlines():
            number, *words = line.split()
            if len(words) == 4:
                x, y, w, h = (float(word) / (1 if at < 2 else 2) for at, word in enumerate(words))
                corners = (x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h)
                words = [_share(value) for value in corners]
            lines.append(" ".join([number, *words]))
        _write_lines(file, lines)


def _description(names: Sequence[str], halves: Mapping[str, None], points: int) -> str:
    """Returns data.yaml. Its strings are JSON's, which YAML takes."""
    lines = [
        f"{half}: images/{half}\n" if half in _HALVES else "train: images\n" for half in halves or {"": None}
    ]
    if points:
        lines.append(f"kpt_shape: [{points}, 3]\n")
    named = "".join(f"  {number}: {_yaml_text(name)}\n" for number, name in enumerate(names))
    return "".join([*lines, f"nc: {len(names)}\n", f"names:\n{named}" if named else "names: []\n"])


def _yaml_text(name: str) -> str:
    return "".join(
        c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(name, ensure_ascii=False)
    )


def _description_in(folder: Path) -> Path | None:
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return next((file for file in found if file.stem in ("data", "dataset")), found[0] if found else None)


def _class_list(folder: Path) -> Path | None:
    return next((f for f in (folder / "classes.txt", folder / "obj.names") if f.is_file()), None)


def _label_files(folder: Path) -> Iterator[Path]:
    """Yields label texts: those below folders called labels, else all but lists."""
    below = [each for each in (folder / "labels", *sorted(folder.glob("*/labels"))) if each.is_dir()]
    for place in below or [folder]:
        for file in files_below(place, ".txt"):
            parts = file.relative_to(folder).parts
            if below or not (file.stem.casefold() in _NOT_LABELS or "predictions" in parts):
                yield file


def _other_shape(file: Path, stored: tuple[int, int]) -> tuple[int, int] | None:
    """Returns the size of the picture beside a text if it has another shape: shares of it mean nothing here.

    A picture that was only resized has the same shares, so its size does not matter.
    """
    places, parts = [file], list(file.parts)
    if "labels" in parts[:-1]:
        # The last one: a folder above may have the name too.
        parts[len(parts) - 2 - parts[-2::-1].index("labels")] = "images"
        places.insert(0, Path(*parts))
    for picture in (place.with_suffix(ending) for place in places for ending in _PICTURES):
        size = picture_size(picture) if picture.is_file() else None
        if size is not None and min(size) > 0:
            return None if same_shape(size, stored) else size
    return None


def _head(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(16 * 1024).decode("utf-8", "replace")
    except OSError:
        return ""


def _looks_like_a_line(line: str) -> bool:
    words = line.split()
    try:
        return not words or (len(words) >= 5 and all(math.isfinite(float(word)) for word in words))
    except ValueError:
        return False


def _names(path: Path, folder: Path, known: Known) -> tuple[tuple[str, ...], bool]:
    """Returns the class names by number, and whether lines have points after the box."""
    with training_readers():
        from misfire_train.data.readers.boxes.yolo_description import find_description
        from misfire_train.data.readers.class_lists import read_class_list
        from misfire_train.errors import DatasetError

    try:
        described = find_description(path if path.is_file() else folder)
        if described is not None:
            return described.names, described.keypoints
        listed = _class_list(folder)
        names = read_class_list(listed).names if listed is not None else known.classes
    except DatasetError as error:
        raise ConfigError(str(error)) from error
    if not names:
        raise ConfigError(f"{folder}: has no {DESCRIPTION} or classes.txt with the names of the classes")
    return names, known.kind == "points"


def _read_file(
    file: Path, sample: str, where: str, *, names: Sequence[str], size: tuple[int, int], keypoints: bool
) -> ImportedLabel | Problem:
    try:
        require_bounded(file, _MAX_BYTES)
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (ConfigError, UnicodeDecodeError) as error:
        return Problem(where, f"cannot be read as text ({error})")
    boxes: list[Box] = []
    skeletons: list[PointsLabel] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = _parsed(line.split(), names, size, keypoints=keypoints)
        except ValueError as error:
            return Problem(f"{where}:{number}", str(error).splitlines()[0])
        (boxes if isinstance(found, Box) else skeletons).append(found)  # type: ignore[arg-type]
    if not keypoints:
        return ImportedLabel(sample, BoxesLabel(boxes=tuple(boxes)), where)
    if len(skeletons) != 1:
        return Problem(where, f"has {len(skeletons)} skeletons; a label of points is one")
    return ImportedLabel(sample, skeletons[0], where)


def _parsed(
    words: Sequence[str], names: Sequence[str], size: tuple[int, int], *, keypoints: bool
) -> Box | PointsLabel:
    """Returns a line's box or skeleton. Raises ValueError if it has neither."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r} has something else than numbers") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{' '.join(words)[:60]!r} has numbers that are not finite")
    label, *values = values
    # Some tools write class numbers as 3.0.
    if not label.is_integer() or not 0 <= label < len(names):
        raise ValueError(f"class {words[0]} is not listed; classes are 0 to {len(names) - 1}")
    name, (width, height) = names[int(label)], size
    if keypoints and len(values) > 4:
        return _skeleton(values[4:], width, height)
    if len(values) == 4:
        x, y, w, h = (value * (width, height)[at % 2] for at, value in enumerate(values))
        if w <= 0 or h <= 0:
            raise ValueError("the box has no area")
        return Box(name=name, x0=x - w / 2, y0=y - h / 2, x1=x + w / 2, y1=y + h / 2)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"{len(words)} numbers; expected class, x, y, width and height, or class and a polygon"
        )
    points: list[Corner] = [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]
    if len(points) == 4:
        return box_from_corners(name, points)
    # A polygon of segmentation: the box around it, as the project's trainer reads it.
    x0, y0, x1, y1 = around(points)
    if not (x0 < x1 and y0 < y1):
        raise ValueError("the polygon has no area")
    return Box(name=name, x0=x0, y0=y0, x1=x1, y1=y1)


def _skeleton(values: Sequence[float], width: int, height: int) -> PointsLabel:
    if len(values) % 3 == 0:
        rows = [(values[at], values[at + 1], round(values[at + 2])) for at in range(0, len(values), 3)]
    elif len(values) % 2 == 0:
        rows = [(values[at], values[at + 1], 2) for at in range(0, len(values), 2)]
    else:
        raise ValueError(f"{len(values)} numbers after the box; expected x y or x y visible for each point")
    if not all(visible in (0, 1, 2) for _, _, visible in rows):
        raise ValueError("visible is something else than 0, 1 or 2")
    return PointsLabel(points=tuple(Point(x=x * width, y=y * height, visible=v) for x, y, v in rows))
