"""Writes and reads CVAT's XML, "CVAT for images 1.1": an `image` for each picture, with tags and shapes.

    annotations.xml   images/<id>.jpg   labels.json (for CVAT's raw constructor of labels)   samples.csv

A class is a tag, a box is a box (CVAT turns it about its centre too), a skeleton has a point for each name,
and a mask has run lengths. The vehicle's answers have the source "auto". In CVAT a picture without a shape
can be empty or not looked at, and an automatic shape can be checked or not. So a picture counts as labelled
if a person made or moved something in it, or set the tag `misfire-checked`.

Tracks are refused: export "CVAT for images", which makes a box on each picture of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import (
    MAX_BOXES,
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
    names_in,
)
from misfire_fleet.labels.formats.base import (
    ClassNumbers,
    ExportItem,
    Format,
    ImportedLabel,
    Kind,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.parts.fields import SIDECAR, FieldsTable, fields_of
from misfire_fleet.labels.formats.parts.json_stream import outline
from misfire_fleet.labels.formats.parts.mask_pixels import MAX_PIXELS, filled, mask_label, pixels_of
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.formats.parts.plain_xml import elements
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

CHECKED = "misfire-checked"
"""Tag: a person looked at the picture, and what is marked in it is complete."""
SKELETON = "skeleton"
FLAGS = ("crowd", "ignore")
_SHAPES: Mapping[str, frozenset[Kind]] = {
    "tag": frozenset({"class", "classes"}),
    "box": frozenset({"boxes"}),
    "skeleton": frozenset({"points"}),
    "points": frozenset({"points"}),
    "mask": frozenset({"mask"}),
    "polygon": frozenset({"mask"}),
}
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_POINTS = re.compile(r"([-+.0-9eE]{1,30}),([-+.0-9eE]{1,30})")


@register
class CvatImages(Format):
    """XML of CVAT for images."""

    name = "cvat"
    help = "annotations.xml of CVAT for images 1.1, with the vehicle's answers as automatic shapes"
    kinds = frozenset({"class", "classes", "boxes", "points", "mask"})
    answers = True
    main = "annotations.xml"

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes annotations.xml, labels.json, samples.csv, and the pictures to images/."""
        written, names = Written(), ClassNumbers(plan.classes)
        kinds: set[Kind] = set()
        with (
            (folder / self.main).open("w", encoding="utf-8") as stream,
            FieldsTable(folder / SIDECAR) as table,
        ):
            stream.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            for number, item in enumerate(items):
                if plan.pictures:
                    write_picture(item, folder / "images")
                table.add(fields_of(item))
                stream.write(image_xml(item, number, names=names, kinds=kinds, plan=plan, written=written))
            stream.write("</annotations>\n")
        labels = label_specs(names.names, kinds, points=plan.points)
        (folder / "labels.json").write_text(
            json.dumps(labels, indent=2, ensure_ascii=False), encoding="utf-8"
        )
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts an XML whose root is `annotations`, or a folder with an annotations.xml."""
        file = path / self.main if path.is_dir() else path
        if file.suffix.lower() != ".xml" or not file.is_file():
            return None
        if re.search(r"<annotations[\s>]", outline(file, most=4096)) is None:
            return None
        return f"XML of CVAT ({file.name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the label of each picture that a person labelled."""
        file = path / self.main if path.is_dir() else path
        for told in read_images(file, known):
            if told.problem:
                yield Problem(told.where, told.problem)
            elif told.label is not None and told.by_person:
                yield ImportedLabel(
                    told.sample, told.label, told.where, size=told.size, annotator=told.annotator
                )


def label_specs(
    names: Iterable[str], kinds: Iterable[Kind], *, points: Iterable[str]
) -> list[dict[str, Any]]:
    """Returns the labels of a project, as CVAT's raw constructor and its API take them.

    Args:
        names: classes.
        kinds: of the labels.
        points: names of the points of a skeleton.
    """
    kinds = frozenset(kinds)
    specs: list[dict[str, Any]] = []
    marks = [
        {
            "name": name,
            "mutable": False,
            "input_type": "checkbox",
            "default_value": "false",
            "values": ["false"],
        }
        for name in FLAGS
    ]
    if not kinds or kinds - {"points"}:
        specs += [{"name": name, "type": "any", "attributes": marks} for name in names]
    if "points" in kinds:
        listed = list(points)
        circles = "".join(
            f'<circle r="0.75" cx="{10 + 80 * place / max(1, len(listed) - 1):.1f}" cy="50" '
            f'data-type="element node" data-element-id="{place + 1}" data-node-id="{place + 1}" '
            f"data-label-name={quoteattr(name)}></circle>"
            for place, name in enumerate(listed)
        )
        sublabels = [{"name": name, "type": "points", "attributes": []} for name in listed]
        specs.append(
            {"name": SKELETON, "type": "skeleton", "attributes": [], "sublabels": sublabels, "svg": circles}
        )
    return [*specs, {"name": CHECKED, "type": "tag", "attributes": []}]


def image_xml(
    item: ExportItem, number: int, *, names: ClassNumbers, kinds: set[Kind], plan: Plan, written: Written
) -> str:
    """Returns the `image` of an item with its label, or with the vehicle's answer if it has none.

    Args:
        item: the picture.
        number: of the picture in the task.
        names: gets the classes.
        kinds: gets the kind.
        plan: has the names of points.
        written: counts it.
    """
    lines, told = None, item.label
    if told is not None:
        lines = _shapes(told, item, plan=plan, source="manual", written=written)
    labelled = lines is not None
    answered = False
    if told is None and item.answer is not None:
        told = item.answer.label
        lines = _shapes(told, item, plan=plan, source="auto", written=written)
        answered = lines is not None
    if lines is not None and told is not None:
        kinds.add(told.kind)
        for name in names_in(told):
            names.of(name)
    if labelled:
        lines = [f'<tag label="{CHECKED}" source="manual"/>', *(lines or ())]
    written.count(item, labelled=labelled, answered=answered)
    subset = f" subset={quoteattr(item.split)}" if item.split else ""
    head = (
        f'  <image id="{number}" name={quoteattr(item.file_name)}{subset} width="{item.width}" '
        f'height="{item.height}">\n'
    )
    return head + "".join(f"    {line}\n" for line in lines or ()) + "  </image>\n"


def _shapes(label: Label, item: ExportItem, *, plan: Plan, source: str, written: Written) -> list[str] | None:
    """Returns a label as elements; None, and a count, if CVAT has no place for it."""
    unfit = [name for name in names_in(label) if _NOT_XML.search(name)]
    if isinstance(label, ValuesLabel) or unfit:
        what = f"class {unfit[0]!r}: XML cannot have its characters" if unfit else "labels of kind values"
        written.left_out[what] += 1
        return None
    if isinstance(label, ClassLabel | ClassesLabel):
        return [f"<tag label={quoteattr(n)} source={quoteattr(source)}/>" for n in names_in(label)]
    if isinstance(label, BoxesLabel):
        return [_box(box, source) for box in label.boxes]
    if isinstance(label, PointsLabel):
        return [_skeleton(label, plan, source)]
    try:
        return _masks(label, source)
    except ValueError as error:
        written.left_out[str(error)] += 1
        return None


def _box(box: Box, source: str) -> str:
    turned = f' rotation="{box.degrees % 360!r}"' if box.degrees else ""
    head = (
        f'<box label={quoteattr(box.name)} source={quoteattr(source)} occluded="0" '
        f'xtl="{box.x0!r}" ytl="{box.y0!r}" xbr="{box.x1!r}" ybr="{box.y1!r}"{turned} z_order="0"'
    )
    flags = [f'<attribute name="{name}">true</attribute>' for name in FLAGS if getattr(box, name)]
    return f"{head}>{''.join(flags)}</box>" if flags else f"{head}/>"


def _skeleton(label: PointsLabel, plan: Plan, source: str) -> str:
    points = "".join(
        f"<points label={quoteattr(_point_name(plan.points, place))} source={quoteattr(source)} "
        f'outside="{int(point.visible == 0)}" occluded="{int(point.visible == 1)}" '
        f'points="{point.x!r},{point.y!r}"/>'
        for place, point in enumerate(label.points)
    )
    return f'<skeleton label="{SKELETON}" source={quoteattr(source)} z_order="0">{points}</skeleton>'


def _point_name(names: tuple[str, ...], place: int) -> str:
    return names[place] if place < len(names) else str(place + 1)


def _masks(label: MaskLabel, source: str) -> list[str]:
    pixels = pixels_of(label)
    found = []
    for number, name in sorted(label.names.items()):
        drawn = pixels == number
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        if not rows.size:
            continue
        top, left = int(rows[0]), int(columns[0])
        part = drawn[top : rows[-1] + 1, left : columns[-1] + 1]
        runs = ", ".join(map(str, runs_of_rows(part)))
        found.append(
            f'<mask label={quoteattr(name)} source={quoteattr(source)} occluded="0" rle={quoteattr(runs)} '
            f'left="{left}" top="{top}" width="{part.shape[1]}" height="{part.shape[0]}" z_order="0"/>'
        )
    return found


def runs_of_rows(mask: NDArray[np.bool_]) -> list[int]:
    """Returns the run lengths of a mask [H,W] row by row, beginning with those outside."""
    flat = mask.ravel()
    changes = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    runs: list[int] = np.diff(changes).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


@dataclass(frozen=True)
class ReadImage:
    """Holds what an `image` says.

    Attributes:
        sample: its id, or the name of its file.
        label: None if it says nothing, or something wrong.
        by_person: whether a person made or moved a part of it, or set the tag.
        where: file and line.
        size: of the picture.
        annotator: to whom the task or job is assigned; "" if nobody.
        problem: why there is no label.
        number: of the picture in its task; -1 if the file does not say.
    """

    sample: str
    where: str
    label: Label | None = None
    by_person: bool = False
    size: tuple[float, float] | None = None
    annotator: str = ""
    problem: str = ""
    number: int = -1


def read_images(file: Path, known: Known) -> Iterator[ReadImage]:
    """Yields every picture of an XML, in memory of one picture.

    Args:
        file: of CVAT for images 1.1.
        known: its kind is used if it has one; else shapes are boxes, points or masks, and tags are classes.

    Raises:
        ConfigError: the file is unreadable, or no XML of CVAT.
    """
    kind, annotator = known.kind, ""
    for place, (element, line) in enumerate(elements(file, kept=frozenset({"image", "track", "meta"}))):
        where = f"{file.name}:{line}"
        if place == 0:
            if element.tag != "annotations":
                raise ConfigError(
                    f"{file}: its root is {element.tag[:40]!r}; expected annotations, as CVAT writes"
                )
        elif element.tag == "meta":
            annotator = (element.findtext(".//assignee/username") or "")[:200]
        elif element.tag == "track":
            yield ReadImage(
                "",
                where,
                problem='it has tracks; export "CVAT for images 1.1", which has boxes for each picture',
            )
        else:
            kind = kind or _kind_of(element)
            yield _image(element, kind, known, where, annotator)


def _kind_of(image: Element) -> Kind | None:
    shapes = [each.tag for each in image if each.tag in _SHAPES and each.get("label") != CHECKED]
    for tag, kind in (("box", "boxes"), ("mask", "mask"), ("skeleton", "points"), ("points", "points")):
        if tag in shapes:
            return kind  # type: ignore[return-value]
    return None if not shapes or "polygon" in shapes else "class" if len(shapes) == 1 else "classes"


def _image(image: Element, kind: Kind | None, known: Known, where: str, annotator: str) -> ReadImage:
    sample = id_in(image.get("name", ""))
    text = image.get("id", "")
    number = int(text) if text.isdecimal() and len(text) < 10 else -1
    parts = [each for each in image if each.get("label") != CHECKED]
    checked = len(parts) < len(image)
    by_person = checked or any(each.get("source", "manual") not in ("auto", "file") for each in parts)
    try:
        size = _size(image)
        if not sample:
            raise ValueError("an image without a name")
        if kind is None and by_person:
            raise ValueError("nothing tells what kind of labels the file has")
        # An empty picture of boxes or classes may be labelled: that is for the caller to know.
        told = by_person or parts or kind in ("boxes", "classes")
        label = _label(parts, kind, known, size) if told and kind is not None else None
    except ValueError as error:
        return ReadImage(sample, where, problem=str(error), number=number)
    return ReadImage(sample, where, label, by_person=by_person, size=size, annotator=annotator, number=number)


def _size(image: Element) -> tuple[int, int]:
    width, height = image.get("width", ""), image.get("height", "")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width[:7]) * int(height[:7]) <= MAX_PIXELS):
        raise ValueError(f"width and height are {width[:12]!r} and {height[:12]!r}; expected pixels")
    return int(width), int(height)


def _label(parts: list[Element], kind: Kind, known: Known, size: tuple[int, int]) -> Label:
    for part in parts:
        if kind not in _SHAPES.get(part.tag, ()):
            raise ValueError(f"a {part.tag[:40]}, which says nothing about {kind}")
    if len(parts) > MAX_BOXES:
        raise ValueError(f"{len(parts):,} shapes; a picture has at most {MAX_BOXES:,} objects")
    if kind == "boxes":
        return BoxesLabel(boxes=tuple(map(_read_box, parts)))
    if kind == "points":
        return _read_points(parts)
    if kind == "mask":
        return _read_mask(parts, known, size)
    names = tuple(dict.fromkeys(_name(part) for part in parts))
    if kind == "classes":
        return ClassesLabel(names=names)
    if len(names) != 1:
        raise ValueError(f"{len(names)} tags; expected one class")
    return ClassLabel(name=names[0])


def _read_box(part: Element) -> Box:
    x0, y0, x1, y1 = (_number(part, side) for side in ("xtl", "ytl", "xbr", "ybr"))
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box {x0:g} {y0:g} {x1:g} {y1:g} has no area")
    set_ = {
        each.get("name") for each in part.iter("attribute") if (each.text or "").strip().lower() == "true"
    }
    degrees = _number(part, "rotation") if part.get("rotation") else 0.0
    return Box(
        name=_name(part),
        x0=x0,
        y0=y0,
        x1=x1,
        y1=y1,
        degrees=degrees - 360 if degrees > 180 else degrees,
        crowd="crowd" in set_,
        ignore="ignore" in set_,
    )


def _read_points(parts: list[Element]) -> Label:
    if len(parts) != 1:
        raise ValueError(f"{len(parts)} skeletons; expected one")
    if parts[0].tag == "points":
        return PointsLabel(points=tuple(Point(x=x, y=y) for x, y in _places(parts[0])))
    found = []
    for each in parts[0].iter("points"):
        x, y = _places(each)[0]
        hidden = 1 if each.get("occluded") == "1" else 2
        # An outside point is not in the picture; where CVAT keeps it says nothing.
        outside = each.get("outside") == "1"
        found.append(Point(x=x, y=y, visible=0 if outside else hidden))
    if not found:
        raise ValueError("a skeleton without points")
    return PointsLabel(points=tuple(found))


def _read_mask(parts: list[Element], known: Known, size: tuple[int, int]) -> Label:
    width, height = size
    pixels = np.zeros((height, width), np.uint16)
    numbers = {name: number for number, name in enumerate(known.classes, start=1)}
    for part in sorted(parts, key=lambda each: _number(each, "z_order") if each.get("z_order") else 0.0):
        number = numbers.setdefault(_name(part), len(numbers) + 1)
        if part.tag == "polygon":
            flat = [value for place in _places(part) for value in place]
            pixels[filled([flat], height=height, width=width)] = number
            continue
        left, top, across, down = (int(_number(part, key)) for key in ("left", "top", "width", "height"))
        if not (0 <= left < left + across <= width and 0 <= top < top + down <= height):
            raise ValueError(f"a mask of {across} x {down} at {left}, {top} is not inside the picture")
        pixels[top : top + down, left : left + across][_drawn(part, across, down)] = number
    return mask_label(pixels, {number: name for name, number in numbers.items()})


def _drawn(part: Element, width: int, height: int) -> NDArray[np.bool_]:
    words = part.get("rle", "").split(",")
    if not all(word.strip().isdecimal() and len(word) < 12 for word in words):
        raise ValueError("its rle is no list of run lengths")
    runs = [int(word) for word in words]
    if sum(runs) != width * height:
        raise ValueError(f"its rle has {sum(runs):,} pixels; expected {width * height:,}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _places(part: Element) -> list[tuple[float, float]]:
    words = part.get("points", "").split(";")
    found = [_POINTS.fullmatch(word.strip()) for word in words]
    try:
        return [(float(each[1]), float(each[2])) for each in found]  # type: ignore[index]
    except (TypeError, ValueError):
        raise ValueError(f"points are {part.get('points', '')[:60]!r}; expected x,y;x,y") from None


def _number(part: Element, key: str) -> float:
    text = part.get(key, "")
    if len(text) > 40 or _NUMBER.fullmatch(text) is None or not abs(float(text)) < 1e6:
        raise ValueError(f"{key} is {text[:40]!r}; expected a number")
    return float(text)


def _name(part: Element) -> str:
    name = part.get("label", "")
    if not 0 < len(name) <= 200:
        raise ValueError(f"a {part.tag} without a label")
    return name
