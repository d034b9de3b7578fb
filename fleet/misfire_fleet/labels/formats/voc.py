"""Writes and reads Pascal VOC: an XML for each picture, with an `object` for each box.

DIR/Annotations/<id>.xml  DIR/JPEGImages/<id>.jpg  DIR/ImageSets/Main/{train,val,test}.txt  DIR/samples.csv

VOC counts pixels from 1 and includes the last one. A turned box has the upright one around it in `bndbox`,
and its own in `robndbox` (cx, cy, w, h, angle in radians), as roLabelImg writes it. `difficult` means "to be
ignored". A picture without an XML is not labelled; one without an object has nothing to find.
`misfire train --dataset voc:DIR` reads what is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from misfire_fleet.labels.content import MAX_BOXES, Box, BoxesLabel
from misfire_fleet.labels.formats.base import (
    ExportItem,
    Format,
    ImportedLabel,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.parts.fields import SIDECAR, FieldsTable, fields_of
from misfire_fleet.labels.formats.parts.geometry import hull_of
from misfire_fleet.labels.formats.parts.json_stream import outline
from misfire_fleet.labels.formats.parts.pictures import files_below, write_picture
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")
_FIELDS = ("vehicle", "bundle", "captured_at", "trigger", "reason", "percentile", "annotator")


@register
class PascalVoc(Format):
    """XML as LabelImg and its relatives write it."""

    name = "voc"
    help = "Annotations/ with an XML for each picture, and JPEGImages/"
    kinds = frozenset({"boxes"})

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes an XML for each picture with a label of boxes."""
        written = Written()
        annotations, lists = folder / "Annotations", folder / "ImageSets" / "Main"
        annotations.mkdir()
        with FieldsTable(folder / SIDECAR) as table:
            for item in items:
                label = item.label
                if isinstance(label, BoxesLabel):
                    (annotations / f"{item.sample}.xml").write_bytes(_document(item, label, written))
                    if item.split:
                        lists.mkdir(parents=True, exist_ok=True)
                        with (lists / f"{item.split}.txt").open("a", encoding="ascii") as listed:
                            listed.write(f"{item.sample}\n")
                elif label is not None:
                    written.left_out[f"labels of kind {label.kind}"] += 1
                if plan.pictures:
                    write_picture(item, folder / "JPEGImages")
                table.add(fields_of(item))
                written.count(item, labelled=isinstance(label, BoxesLabel), answered=False)
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a folder with XML whose root is `annotation`, or one such file."""
        if path.is_dir():
            folder = path / "Annotations" if (path / "Annotations").is_dir() else path
            file = next(files_below(folder, ".xml"), None)
        else:
            file = path if path.suffix.lower() == ".xml" else None
        if file is None or "<annotation" not in (head := outline(file, most=4096)) or "<annotations" in head:
            return None
        return f"Pascal VOC ({file.relative_to(path) if path.is_dir() else file.name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the boxes of every XML, in edges from 0.

        Tools that count from 0 themselves are recognised by a box that begins at 0, anywhere in the folder.
        """
        from misfire_train.data.readers.plain_xml import read_xml
        from misfire_train.errors import DatasetError

        folder = path / "Annotations" if (path / "Annotations").is_dir() else path
        files = [path] if path.is_file() else files_below(folder, ".xml")
        base = path if path.is_dir() else path.parent
        shift = 0.0 if _from_zero(path, folder) else 1.0
        for file in files:
            where = str(file.relative_to(base))
            try:
                root = read_xml(file)
                if root.tag != "annotation":
                    raise ConfigError(f"its root is {root.tag[:40]}; expected annotation")
                label = BoxesLabel(boxes=_boxes(root, shift))
            except (DatasetError, ConfigError, ValueError) as error:
                yield Problem(where, str(error).splitlines()[0])
                continue
            yield ImportedLabel(
                _identity(root, file), label, where, size=_size(root), annotator=_text(root, "annotator")
            )


def _document(item: ExportItem, label: BoxesLabel, written: Written) -> bytes:
    root = Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", item.file_name)
    _add(SubElement(root, "source"), "database", "misfire")
    size = SubElement(root, "size")
    for tag, value in (("width", item.width), ("height", item.height), ("depth", 3)):
        _add(size, tag, str(value))
    _add(root, "segmented", "0")
    _add(root, "sample_id", item.sample)
    fields = fields_of(item)
    for name in _FIELDS:
        if fields.get(name) not in (None, ""):
            _add(root, name, str(fields[name]))
    for box in label.boxes:
        _add_object(root, box, item, written)
    indent(root)
    return str(tostring(root, encoding="unicode")).encode()


def _add_object(root: Element, box: Box, item: ExportItem, written: Written) -> None:
    x0, y0, x1, y1 = hull_of(box)
    # Readers tell the counting from 1 by boxes that never begin below it.
    inside = max(0.0, x0), max(0.0, y0), min(float(item.width), x1), min(float(item.height), y1)
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        written.left_out["boxes outside of their picture"] += 1
        return
    if max(abs(a - b) for a, b in zip(inside, (x0, y0, x1, y1), strict=True)) > 1e-6 and not box.degrees:
        written.left_out["parts of boxes beyond the edge of their picture"] += 1
    element = SubElement(root, "object")
    _add(element, "name", box.name)
    _add(element, "pose", "Unspecified")
    _add(element, "truncated", "0")
    _add(element, "difficult", "1" if box.ignore or box.crowd else "0")
    if box.crowd:
        _add(element, "crowd", "1")
        _add(element, "ignore", "1" if box.ignore else "0")
    corners = SubElement(element, "bndbox")
    for tag, value in zip(_SIDES, (inside[0] + 1, inside[1] + 1, inside[2], inside[3]), strict=True):
        _add(corners, tag, repr(round(value, 6)).removesuffix(".0"))
    if box.degrees:
        turned = SubElement(element, "robndbox")
        centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        sides = (*centre, box.x1 - box.x0, box.y1 - box.y0, math.radians(box.degrees))
        for tag, value in zip(_TURNED, sides, strict=True):
            _add(turned, tag, repr(round(value, 9)))


def _add(parent: Element, tag: str, text: str) -> None:
    # XML has no place for most control characters, escaped or not.
    SubElement(parent, tag).text = "".join(c if c.isprintable() or c in "\t\n" else "\ufffd" for c in text)


def _from_zero(path: Path, folder: Path) -> bool:
    """Returns whether a box begins below 1: its tool counts pixels from 0."""
    from misfire_train.data.readers.plain_xml import read_xml
    from misfire_train.errors import DatasetError

    for file in [path] if path.is_file() else files_below(folder, ".xml"):
        try:
            corners = list(read_xml(file).iter("bndbox"))
            if any(float(_text(each, side)) < 1 for each in corners for side in ("xmin", "ymin")):
                return True
        except (DatasetError, ValueError):
            continue  # told when it is read
    return False


def _boxes(root: Element, shift: float) -> tuple[Box, ...]:
    objects = list(root.iterfind("object"))
    if len(objects) > MAX_BOXES:
        raise ValueError(f"has {len(objects):,} objects; at most {MAX_BOXES:,} are read")
    return tuple(_box(each, number, shift) for number, each in enumerate(objects, start=1))


def _box(element: Element, number: int, shift: float) -> Box:
    name = _text(element, "name")
    if not name:
        raise ValueError(f"object {number} has no name")
    # Children of the object: parts of a person have boxes of their own.
    upright, turned = element.find("bndbox"), element.find("robndbox")
    degrees = 0.0
    if turned is not None:
        x, y, width, height, angle = _numbers(turned, _TURNED, number)
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        degrees = math.degrees(angle)
    elif upright is not None:
        x0, y0, x1, y1 = _numbers(upright, _SIDES, number)
        corners = (x0 - shift, y0 - shift, x1, y1)
    else:
        raise ValueError(f"object {number} ({name[:40]}) has no bndbox")
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise ValueError(f"object {number} ({name[:40]}) has no area")
    crowd = _text(element, "crowd") not in ("", "0")
    ignore = _text(element, "ignore" if crowd else "difficult") not in ("", "0")
    x0, y0, x1, y1 = corners
    return Box(name=name, x0=x0, y0=y0, x1=x1, y1=y1, degrees=degrees, crowd=crowd, ignore=ignore)


def _numbers(element: Element, tags: tuple[str, ...], number: int) -> tuple[float, ...]:
    texts = [_text(element, tag) for tag in tags]
    try:
        values = tuple(map(float, texts))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"object {number} has {', '.join(texts)[:80]}; expected {', '.join(tags)}")
    return values


def _identity(root: Element, file: Path) -> str:
    """Returns the sample id that an XML states, or that of its picture's name, or of its own."""
    names = (_text(root, "sample_id"), file.stem, _text(root, "filename"))
    found = [id_in(name) for name in names if name]
    return next((name for name in found if len(name) == 64), found[0])


def _size(root: Element) -> tuple[float, float] | None:
    try:
        width, height = int(_text(root, "size/width")), int(_text(root, "size/height"))
    except ValueError:
        return None
    # Zeros are what some tools write if they do not know the size.
    return (width, height) if width > 0 and height > 0 else None


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()
