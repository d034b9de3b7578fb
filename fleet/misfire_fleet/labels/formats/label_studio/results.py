"""Turns labels into the results of Label Studio's annotations and back.

Label Studio measures in per cent of the picture, turns a box about its top left corner, and keeps a box's
crowd or ignore mark as a second result with the same id. It accepts anything and draws only what fits, so
`results_of` writes only what is inside the picture and has a name of the configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

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
)
from misfire_fleet.labels.formats.base import Kind
from misfire_fleet.labels.formats.label_studio.brush_rle import pack, unpack
from misfire_fleet.labels.formats.label_studio.config import (
    CONTROLS,
    CROWD,
    FLAGS,
    HIDDEN,
    IGNORE,
    PICTURE,
    VISIBILITY,
    LabellingConfig,
)
from misfire_fleet.labels.formats.parts.mask_pixels import mask_label, pixels_of

Result: TypeAlias = dict[str, Any]
_DIGITS = 4
"""Of pixels that were per cent: without rounding, 10 px come back as 10.000000000000002."""
_KINDS: Mapping[str, Kind] = {
    "rectanglelabels": "boxes",
    "keypointlabels": "points",
    "brushlabels": "mask",
    "number": "values",
}
_NUMBERED = re.compile(r"(?:value)?([1-9][0-9]{0,4})")
_POINT_WIDTH = 0.5
"""Size of a point on the screen, in per cent of the picture."""


def results_of(
    label: Label,
    config: LabellingConfig,
    *,
    size: tuple[int, int],
    scores: Sequence[float | None] = (),
) -> list[Result]:
    """Returns a label as results of an annotation or prediction.

    Args:
        label: of the configuration's kind.
        config: of the project.
        size: width and height of the picture.
        scores: confidence of the class, or of each box or point.

    Raises:
        ValueError: the label has another kind, a class that the project lacks, or more points or values.
    """
    if label.kind != config.kind:
        raise ValueError(f"a label of {label.kind}, for a project of {config.kind}")
    writer = _Writer(config, size, scores)
    if isinstance(label, ClassLabel):
        return writer.choices([label.name])
    if isinstance(label, ClassesLabel):
        return writer.choices(label.names) if label.names else []
    if isinstance(label, ValuesLabel):
        return writer.values(label.values)
    if isinstance(label, BoxesLabel):
        return writer.boxes(label.boxes)
    if isinstance(label, PointsLabel):
        return writer.points(label.points)
    return writer.mask(label)


class _Writer:
    def __init__(
        self, config: LabellingConfig, size: tuple[int, int], scores: Sequence[float | None]
    ) -> None:
        self._config, (self._width, self._height), self._scores = config, size, scores
        self._control = CONTROLS[config.kind]

    def choices(self, names: Sequence[str]) -> list[Result]:
        self._check(names)
        return [self._result("c", {"choices": list(names)}, score=self._score(0))]

    def values(self, values: Sequence[float]) -> list[Result]:
        names = self._config.names
        if len(values) != len(names):
            raise ValueError(f"{len(values)} values, for a project of {len(names)}")
        return [
            self._result(f"v{number}", {"number": value}, name=name)
            for number, (name, value) in enumerate(zip(names, values, strict=True))
        ]

    def boxes(self, boxes: Sequence[Box]) -> list[Result]:
        self._check(box.name for box in boxes)
        found: list[Result] = []
        for number, box in enumerate(boxes):
            place = self._place(box)
            if place is None:
                continue
            identity = f"b{number}"
            found.append(self._result(identity, place | {"rectanglelabels": [box.name]}, self._score(number)))
            flags = [name for name, set_ in ((CROWD, box.crowd), (IGNORE, box.ignore)) if set_]
            if flags:
                found.append(self._mark(identity, FLAGS, place | {"choices": flags}))
        return found

    def points(self, points: Sequence[Point]) -> list[Result]:
        names = self._config.names
        if len(points) > len(names):
            raise ValueError(f"{len(points)} points, for a project of {len(names)}")
        found: list[Result] = []
        for number, (name, point) in enumerate(zip(names, points, strict=False)):
            # A point outside of the picture cannot be drawn: the person places it, or leaves it out.
            if not point.visible or not (0 <= point.x <= self._width and 0 <= point.y <= self._height):
                continue
            place = {"x": 100 * point.x / self._width, "y": 100 * point.y / self._height}
            place["width"] = _POINT_WIDTH
            found.append(self._result(f"p{number}", place | {"keypointlabels": [name]}, self._score(number)))
            if point.visible == 1:
                found.append(self._mark(f"p{number}", VISIBILITY, place | {"choices": [HIDDEN]}))
        return found

    def mask(self, label: MaskLabel) -> list[Result]:
        self._check(label.names.values())
        pixels = pixels_of(label)
        if pixels.shape != (self._height, self._width):
            height, width = pixels.shape
            raise ValueError(f"a mask of {width} x {height} for a picture of {self._width} x {self._height}")
        return [
            self._result(f"m{number}", {"format": "rle", "rle": pack(drawn), "brushlabels": [name]})
            for number, name in sorted(label.names.items())
            if (drawn := pixels == number).any()
        ]

    def _place(self, box: Box) -> dict[str, float] | None:
        """Returns a box in per cent; None if nothing of it is in the picture."""
        x0, y0, x1, y1 = box.x0, box.y0, box.x1, box.y1
        if not box.degrees:
            x0, x1 = max(0.0, x0), min(float(self._width), x1)
            y0, y1 = max(0.0, y0), min(float(self._height), y1)
        if x1 <= x0 or y1 <= y0:
            return None
        x, y = _turned(x0, y0, about=((x0 + x1) / 2, (y0 + y1) / 2), degrees=box.degrees)
        return {
            "x": 100 * x / self._width,
            "y": 100 * y / self._height,
            "width": 100 * (x1 - x0) / self._width,
            "height": 100 * (y1 - y0) / self._height,
            "rotation": box.degrees,
        }

    def _score(self, number: int) -> float | None:
        return self._scores[number] if number < len(self._scores) else None

    def _result(
        self, identity: str, value: Mapping[str, Any], score: float | None = None, *, name: str = ""
    ) -> Result:
        result = self._mark(identity, name or self._control.name, value) | {"type": self._control.result}
        return result if score is None else result | {"score": score}

    def _mark(self, identity: str, name: str, value: Mapping[str, Any]) -> Result:
        return {
            "id": identity,
            "type": "choices",
            "from_name": name,
            "to_name": PICTURE,
            "original_width": self._width,
            "original_height": self._height,
            "image_rotation": 0,
            "value": dict(value),
        }

    def _check(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self._config.names))
        if unknown:
            raise ValueError(f"the project lacks the {_classes(unknown)}")


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


def _turned(x: float, y: float, *, about: tuple[float, float], degrees: float) -> tuple[float, float]:
    """Returns a point after a clockwise turn on the screen, where y points down."""
    if not degrees:
        return x, y
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = x - about[0], y - about[1]
    return about[0] + across * cosine - down * sine, about[1] + across * sine + down * cosine


def size_of(results: Sequence[Any]) -> tuple[int, int] | None:
    """Returns width and height of the picture, as the first result that has them says."""
    for each in results:
        if isinstance(each, dict):
            width, height = each.get("original_width"), each.get("original_height")
            if type(width) is int and type(height) is int and 0 < width < 1 << 20 and 0 < height < 1 << 20:
                return width, height
    return None


def kind_of(results: Sequence[Any]) -> Kind | None:
    """Returns the kind of the first result that tells it; choices are one class if only one is chosen."""
    for each in results:
        kind = each.get("type") if isinstance(each, dict) else None
        if isinstance(kind, str) and kind in _KINDS:
            return _KINDS[kind]
        if kind == "choices" and each.get("from_name") not in (FLAGS, VISIBILITY):
            chosen = each.get("value", {}).get("choices", ()) if isinstance(each.get("value"), dict) else ()
            return "class" if len(chosen) == 1 and each.get("from_name") != "classes" else "classes"
    return None


def label_of(
    results: Any,
    *,
    kind: Kind,
    names: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Label:
    """Returns the label that an annotation's results say.

    Args:
        results: the annotation's list.
        kind: of the labels of the project.
        names: of the points or values, or of the classes of a mask, in order. A mask may have others.
        size: width and height of the picture, for an annotation without any result.

    Raises:
        ValueError: a result is malformed, of another kind, or outside of what a label can say.
    """
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise ValueError("result is no list of results")
    if len(results) > 2 * MAX_BOXES:
        raise ValueError(f"{len(results):,} results; a picture has at most {MAX_BOXES:,} objects")
    # A relation joins two results and says nothing about the picture.
    told = [each for each in results if each.get("type") != "relation"]
    reader = _Reader(told, names, size)
    try:
        return {
            "class": reader.one_class,
            "classes": reader.classes,
            "values": reader.values,
            "boxes": reader.boxes,
            "points": reader.points,
            "mask": reader.mask,
        }[kind]()
    except KeyError as error:
        raise ValueError(f"a result lacks {error.args[0]!r}") from error


class _Reader:
    def __init__(self, results: Sequence[Result], names: Sequence[str], size: tuple[int, int] | None) -> None:
        self._results, self._names, self._size = results, names, size

    def one_class(self) -> Label:
        chosen = self._chosen()
        if len(chosen) != 1:
            raise ValueError(f"{len(chosen)} choices; expected one class")
        return ClassLabel(name=chosen[0])

    def classes(self) -> Label:
        return ClassesLabel(names=tuple(self._chosen()))

    def values(self) -> Label:
        found = {
            each["from_name"]: _number(each["value"], "number", most=math.inf) for each in self._of("number")
        }
        names = self._names or _in_order("values", found)
        lacking = [name for name in names if name not in found]
        if lacking or not found:
            raise ValueError(f"the value {lacking[0] if lacking else 'of the picture'!r} was not given")
        return ValuesLabel(values=tuple(found[name] for name in names))

    def boxes(self) -> Label:
        marks = self._marks(FLAGS)
        found = []
        for each in self._of("rectanglelabels", aside=FLAGS):
            width, height = self._pixels(each)
            value = each["value"]
            x, y = _number(value, "x") * width / 100, _number(value, "y") * height / 100
            across, down = _number(value, "width") * width / 100, _number(value, "height") * height / 100
            degrees = _number(value, "rotation") if value.get("rotation") else 0.0
            if across <= 0 or down <= 0:
                raise ValueError("a box has no width or no height")
            middle = _turned(x + across / 2, y + down / 2, about=(x, y), degrees=degrees)
            flags = marks.get(str(each.get("id")), frozenset())
            left, top = middle[0] - across / 2, middle[1] - down / 2
            found.append(
                Box(
                    name=_name(value, "rectanglelabels"),
                    x0=_rounded(left),
                    y0=_rounded(top),
                    x1=_rounded(left + across),
                    y1=_rounded(top + down),
                    degrees=_rounded(math.fmod(degrees, 360)),
                    crowd=CROWD in flags,
                    ignore=IGNORE in flags,
                )
            )
        return BoxesLabel(boxes=tuple(found))

    def points(self) -> Label:
        marks = self._marks(VISIBILITY)
        found: dict[str, Point] = {}
        for each in self._of("keypointlabels", aside=VISIBILITY):
            width, height = self._pixels(each)
            name = _name(each["value"], "keypointlabels")
            if name in found:
                raise ValueError(f"the point {name!r} is there twice")
            x, y = _number(each["value"], "x") * width / 100, _number(each["value"], "y") * height / 100
            hidden = HIDDEN in marks.get(str(each.get("id")), frozenset())
            found[name] = Point(x=_rounded(x), y=_rounded(y), visible=1 if hidden else 2)
        names = self._names or _in_order("points", found)
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise ValueError(f"unknown points: {', '.join(unknown)}")
        return PointsLabel(points=tuple(found.get(name, Point(x=0, y=0, visible=0)) for name in names))

    def mask(self) -> Label:
        drawn = list(self._of("brushlabels"))
        size = self._pixels(drawn[0]) if drawn else self._size
        if size is None:
            raise ValueError("an empty mask, and the size of the picture is not known")
        width, height = size
        pixels = np.zeros((height, width), np.uint16)
        numbers = {name: number for number, name in enumerate(self._names, start=1)}
        for each in drawn:
            value = each["value"]
            if self._pixels(each) != size:
                raise ValueError("two brush strokes are of pictures of different sizes")
            if value.get("format", "rle") != "rle":
                raise ValueError(f"a brush mask in the format {value.get('format')!r}; expected rle")
            number = numbers.setdefault(_name(value, "brushlabels"), len(numbers) + 1)
            # Drawn later lies above: that is what the person saw.
            pixels[unpack(value["rle"], width=width, height=height)] = number
        return mask_label(pixels, {number: name for name, number in numbers.items()})

    def _chosen(self) -> list[str]:
        chosen = []
        for each in self._of("choices"):
            listed = each["value"].get("choices")
            if not isinstance(listed, list) or not all(isinstance(n, str) and n for n in listed):
                raise ValueError("choices is no list of names")
            chosen += listed
        return list(dict.fromkeys(chosen))

    def _of(self, kind: str, *, aside: str = "") -> Iterable[Result]:
        """Yields the results of a kind. Raises ValueError for others, except the control `aside`."""
        for each in self._results:
            if each.get("type") == kind and isinstance(each.get("value"), dict):
                yield each
            elif not aside or each.get("from_name") != aside:
                raise ValueError(f"a result of the type {each.get('type')!r}; expected {kind!r}")

    def _marks(self, control: str) -> dict[str, frozenset[str]]:
        found = {}
        for each in self._results:
            if each.get("from_name") == control and isinstance(each.get("value"), dict):
                listed = each["value"].get("choices")
                found[str(each.get("id"))] = frozenset(map(str, listed if isinstance(listed, list) else ()))
        return found

    def _pixels(self, result: Result) -> tuple[int, int]:
        size = size_of([result]) or self._size
        if size is None:
            raise ValueError("original_width or original_height is missing or no number of pixels")
        return size


def numbered(kind: Kind, count: int) -> tuple[str, ...]:
    """Returns the names of points or values that have no others: "1", "2", ... or "value1", "value2", ..."""
    return tuple(f"value{number}" if kind == "values" else str(number) for number in range(1, count + 1))


def _in_order(kind: Kind, found: Collection[str]) -> tuple[str, ...]:
    """Returns all names up to the highest number among those that were found. Raises ValueError."""
    numbers = [_NUMBERED.fullmatch(name) for name in found]
    highest = max((int(number[1]) for number in numbers if number), default=0)
    if not found or None in numbers or not 0 < highest <= 10_000:
        raise ValueError(f"the order of the {kind} is not known; it is in label_config.xml beside the file")
    return numbered(kind, highest)


def _number(value: Mapping[str, Any], key: str, *, most: float = 1e9) -> float:
    number = value[key]
    # The negated comparison refuses NaN too.
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < most:
        raise ValueError(f"{key} is {str(number)[:40]!r}; expected a number")
    return float(number)


def _name(value: Mapping[str, Any], key: str) -> str:
    listed = value.get(key)
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], str) or not listed[0]:
        raise ValueError(f"{key} is {str(listed)[:80]}; expected a list of one name")
    return listed[0]


def _rounded(value: float) -> float:
    return round(value, _DIGITS) + 0.0
