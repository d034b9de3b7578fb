"""Says a label in one cell of a table, and reads it back.

class    car                                 boxes    car,10,20,30,40 bus,1,2,3,4   ("" is no object)
classes  rain|night   ("" is none)           points   10,20,2 11,21,0               (x, y, visible)
values   0.5 -1.25                           mask     masks/0001.png                (beside the table)
any      {"kind": "boxes", ...}              the label's content as JSON, for what has no words

Places are in pixels of the stored picture.
"""

from __future__ import annotations

import re
from pathlib import Path

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
    canonical,
    parse,
)
from misfire_fleet.labels.formats.base import Kind, Known, training_readers
from misfire_fleet.labels.formats.parts.mask_pixels import mask_label
from misfire_runtime.errors import ConfigError

_SEPARATORS = re.compile(r"[;|]")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_VALUES = re.compile(rf"{_NUMBER}(?: +{_NUMBER})*")
_BOX = re.compile(rf"([^\s,][^\s]*?),({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})")
_POINT = re.compile(rf"({_NUMBER}),({_NUMBER}),([012])")


def words_of(label: Label) -> str:
    """Returns a label as the text of a cell."""
    match label:
        case ClassLabel() if _plain(label.name):
            return label.name
        case ClassesLabel() if all(_plain(n) and not _SEPARATORS.search(n) for n in label.names):
            return "|".join(label.names)
        case ValuesLabel():
            return " ".join(map(repr, label.values))
        case BoxesLabel() if all(_has_words(box) for box in label.boxes):
            return " ".join(f"{b.name},{b.x0!r},{b.y0!r},{b.x1!r},{b.y1!r}" for b in label.boxes)
        case PointsLabel():
            return " ".join(f"{p.x!r},{p.y!r},{p.visible}" for p in label.points)
    return canonical(label)


def _plain(name: str) -> bool:
    return name == name.strip() and not name.startswith("{") and name != ""


def _has_words(box: Box) -> bool:
    return not (box.degrees or box.crowd or box.ignore or re.search(r"[\s,]", box.name)) and _plain(box.name)


def label_of(text: str, *, kind: Kind | None, known: Known, beside: Path, where: str) -> Label:
    """Returns the label that a cell says.

    Args:
        text: of the cell.
        kind: as the table states it; None if it does not.
        known: its kind is used if the table states none. Without either, the text decides: `CLASS,x,y,x,y`
            words are boxes, the path of a PNG that is there is a mask, everything else is a class.
        beside: folder that paths are relative to.
        where: file and line, for errors.

    Raises:
        ConfigError: it says no label of that kind.
    """
    text = text.strip()
    if text.startswith("{"):
        label = parse(text, where=where)
        if kind is not None and label.kind != kind:
            raise ConfigError(f"{where}: kind is {kind}, but the label is of kind {label.kind}")
        return label
    return _READERS[kind or known.kind or _guessed(text, known, beside)](text, known, beside, where)


def _guessed(text: str, known: Known, beside: Path) -> Kind:
    if text in known.classes:
        return "class"
    if text and all(_BOX.fullmatch(word) for word in text.split()):
        return "points" if all(_POINT.fullmatch(word) for word in text.split()) else "boxes"
    if text and all(_POINT.fullmatch(word) for word in text.split()):
        return "points"
    if text.lower().endswith(".png") and _inside(text, beside) is not None:
        return "mask"
    return "class"


def _class(text: str, known: Known, _beside: Path, where: str) -> Label:
    if not text:
        raise ConfigError(f"{where}: the label is empty; expected a class")
    if text not in known.classes and text.isascii() and text.isdigit() and int(text) < len(known.classes):
        return ClassLabel(name=known.classes[int(text)])
    return parse({"kind": "class", "name": text}, where=where)


def _classes(text: str, _known: Known, _beside: Path, where: str) -> Label:
    names = [name.strip() for name in _SEPARATORS.split(text) if name.strip()]
    return parse({"kind": "classes", "names": names}, where=where)


def _values(text: str, _known: Known, _beside: Path, where: str) -> Label:
    if _VALUES.fullmatch(text) is None:
        raise ConfigError(f"{where}: {text[:60]!r} is not numbers separated by spaces")
    return parse({"kind": "values", "values": [float(word) for word in text.split()]}, where=where)


def _boxes(text: str, known: Known, _beside: Path, where: str) -> Label:
    boxes = []
    for word in text.split():
        found = _BOX.fullmatch(word)
        if found is None:
            raise ConfigError(f"{where}: {word[:60]!r} is no box; expected class,x0,y0,x1,y1")
        name, *sides = found.groups()
        x0, y0, x1, y1 = map(float, sides)
        if not (x0 < x1 and y0 < y1):
            raise ConfigError(f"{where}: {word[:60]!r} has no area; expected x0 < x1 and y0 < y1")
        if name not in known.classes and name.isascii() and name.isdigit() and int(name) < len(known.classes):
            name = known.classes[int(name)]
        boxes.append({"name": name, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return parse({"kind": "boxes", "boxes": boxes}, where=where)


def _points(text: str, _known: Known, _beside: Path, where: str) -> Label:
    points = []
    for word in text.split():
        found = _POINT.fullmatch(word)
        if found is None:
            raise ConfigError(
                f"{where}: {word[:60]!r} is no point; expected x,y,visible with visible 0, 1 or 2"
            )
        points.append(Point(x=float(found[1]), y=float(found[2]), visible=int(found[3])))
    return parse({"kind": "points", "points": [p.model_dump() for p in points]}, where=where)


def _mask(text: str, known: Known, beside: Path, where: str) -> Label:
    file = _inside(text, beside)
    if file is None:
        raise ConfigError(f"{where}: {text[:200]!r} is no file beside the table")
    return read_mask_label(file, names=dict(enumerate(known.classes)), where=where)


def _inside(text: str, beside: Path) -> Path | None:
    """Returns a file below the table's folder; None if there is none, or the path leads out of it."""
    try:
        file = (beside / text.replace("\\", "/")).resolve()
        return file if file.is_relative_to(beside.resolve()) and file.is_file() else None
    except (OSError, ValueError):
        return None


def read_mask_label(file: Path, *, names: dict[int, str], where: str) -> MaskLabel:
    """Returns the label of a mask's file. Raises ConfigError if it is no lossless picture of numbers."""
    with training_readers():
        from misfire_train.data.readers.mask_images import read_mask
        from misfire_train.errors import DatasetError

    try:
        return mask_label(read_mask(file, classes=len(names) or None), names)
    except DatasetError as error:
        raise ConfigError(f"{where}: {error}") from error


_READERS = {
    "class": _class,
    "classes": _classes,
    "values": _values,
    "boxes": _boxes,
    "points": _points,
    "mask": _mask,
}
