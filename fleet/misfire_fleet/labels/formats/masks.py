"""Writes and reads segmentation masks: for each picture a PNG of class numbers, 255 for "not labelled".

DIR/images/<id>.jpg  DIR/masks/<id>.png  DIR/classes.txt (a line for each number)  DIR/samples.csv

Pictures without a label are in DIR/unlabelled/. `misfire train --dataset masks:DIR` reads what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from misfire_fleet.labels.content import MaskLabel
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
from misfire_fleet.labels.formats.parts.fields import SIDECAR, FieldsTable, fields_of
from misfire_fleet.labels.formats.parts.mask_pixels import png_of, renumbered
from misfire_fleet.labels.formats.parts.pictures import files_below, write_picture
from misfire_fleet.labels.formats.parts.words import read_mask_label
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

_CLASSES = "classes.txt"


@register
class Masks(Format):
    """Pictures and masks side by side."""

    name = "masks"
    help = "images/ and masks/ with PNGs of class numbers, and classes.txt"
    kinds = frozenset({"mask"})

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes masks with the plan's class numbers."""
        written, numbers = Written(), ClassNumbers(plan.classes)
        (folder / "masks").mkdir()
        with FieldsTable(folder / SIDECAR) as table:
            for item in items:
                label = item.label
                labelled = isinstance(label, MaskLabel)
                if isinstance(label, MaskLabel):
                    mask = renumbered(label, {name: numbers.of(name) for name in label.names.values()})
                    (folder / "masks" / f"{item.sample}.png").write_bytes(png_of(mask))
                elif label is not None:
                    written.left_out[f"labels of kind {label.kind}"] += 1
                if plan.pictures:
                    write_picture(item, folder / ("images" if labelled else "unlabelled"))
                table.add(fields_of(item))
                written.count(item, labelled=labelled, answered=False)
        require_lines(numbers.names)
        (folder / _CLASSES).write_text("".join(f"{name}\n" for name in numbers.names), encoding="utf-8")
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a folder with masks/."""
        masks = path / "masks"
        if not masks.is_dir() or next(files_below(masks, ".png"), None) is None:
            return None
        return "masks/ with PNGs of class numbers"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the masks. Numbers mean the lines of classes.txt, or the project's classes without one."""
        masks = path / "masks"
        names = dict(enumerate(_listed(path, known)))
        for file in files_below(masks, ".png"):
            where = str(file.relative_to(path))
            try:
                yield ImportedLabel(id_in(file.name), read_mask_label(file, names=names, where=where), where)
            except ConfigError as error:
                yield Problem(where, str(error).removeprefix(f"{where}: "))


def require_lines(names: Iterable[str]) -> None:
    """Raises ConfigError if a class's name does not fit on a line of a list."""
    bad = next((name for name in names if name != name.strip() or len(name.splitlines()) != 1), None)
    if bad is not None:
        raise ConfigError(
            f"class {bad[:40]!r} has line breaks or outer spaces: a list of lines cannot hold it"
        )


def _listed(path: Path, known: Known) -> tuple[str, ...]:
    from misfire_train.data.readers.class_lists import read_class_list
    from misfire_train.errors import DatasetError

    file = next((f for f in (path / _CLASSES, path / "classes.json") if f.is_file()), None)
    try:
        names = read_class_list(file).names if file is not None else known.classes
    except DatasetError as error:
        raise ConfigError(str(error)) from error
    if not names:
        raise ConfigError(f"{path}: has no {_CLASSES}, and the project has no classes yet")
    return names
