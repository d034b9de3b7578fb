"""Writes and reads one folder for each class; pictures without a label are in `unlabelled`.

DIR/car/<id>.jpg  DIR/bus/<id>.jpg  DIR/unlabelled/<id>.jpg  DIR/samples.csv (the fields of each)

Characters of a class's name that file systems do not take are written as %XX. A trainer takes `unlabelled`
for a class, so export with `--where labelled=yes` for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from misfire_fleet.labels.content import ClassLabel
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
from misfire_fleet.labels.formats.parts.pictures import (
    PICTURE_ENDINGS,
    files_below,
    has_pictures,
    write_picture,
)
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

UNLABELLED = "unlabelled"
_UNSAFE = frozenset('/\\:*?"<>|%')
_MAX_NAME_BYTES = 255
_HALVES = frozenset({"train", "val", "valid", "validation", "test"})


@register
class ClassFolders(Format):
    """Folders that a person sorts pictures into."""

    name = "folder"
    help = "a folder for each class; sort pictures with any file browser"
    kinds = frozenset({"class"})

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes every picture into the folder of its class. Folders of the plan's classes are made."""
        written = Written()
        for name in plan.classes:
            (folder / folder_name(name)).mkdir(exist_ok=True)
        with FieldsTable(folder / SIDECAR) as table:
            for item in items:
                label = item.label
                known = isinstance(label, ClassLabel)
                if label is not None and not known:
                    written.left_out[f"labels of kind {label.kind}"] += 1
                place = folder_name(label.name) if isinstance(label, ClassLabel) else UNLABELLED
                if plan.pictures:
                    write_picture(item, folder / place)
                else:
                    # The name alone tells the label.
                    (folder / place).mkdir(exist_ok=True)
                    (folder / place / item.file_name).touch()
                table.add({**fields_of(item), "folder": place})
                written.count(item, labelled=known, answered=False)
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a folder of folders with pictures and nothing else at its top but tables and lists."""
        if not path.is_dir():
            return None
        inside = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
        folders = [each for each in inside if each.is_dir()]
        if not folders or any(each.suffix.lower() in PICTURE_ENDINGS for each in inside):
            return None
        if not any(has_pictures(each) for each in folders):
            return None
        return f"{len(folders)} folders of pictures, each a class ({', '.join(f.name for f in folders[:3])})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the class of every picture, by the folder directly above it."""
        if not path.is_dir():
            raise ConfigError(f"{path}: expected a folder with a folder for each class")
        for file in files_below(path, *PICTURE_ENDINGS):
            place = file.relative_to(path)
            if len(place.parts) == 1 or place.parts[-2] == UNLABELLED:
                continue
            if len(place.parts) > 2 and place.parts[0].casefold() not in _HALVES:
                yield Problem(str(place), "is two folders deep; expected CLASS/PICTURE")
                continue
            name = unquote(place.parts[-2])
            if not 0 < len(name) <= 200:
                yield Problem(str(place), f"the folder's name has {len(name)} characters; at most 200")
                continue
            yield ImportedLabel(id_in(file.name), ClassLabel(name=name), str(place))


def folder_name(name: str) -> str:
    """Returns a class's name as the name of a folder; `unquote` gives it back.

    >>> folder_name("Zebra/Größe"), folder_name(".."), folder_name("unlabelled")
    ('Zebra%2FGröße', '%2E%2E', '%75nlabelled')

    Raises:
        ConfigError: it is too long for a file system.
    """
    text = "".join(_escaped(c) if c in _UNSAFE or not c.isprintable() else c for c in name)
    if text.startswith((".", " ", "~")) or text.casefold() == UNLABELLED:
        text = _escaped(text[0]) + text[1:]
    if text.endswith((".", " ")):
        text = text[:-1] + _escaped(text[-1])
    if len(text.encode()) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"class {name[:40]!r}...: its name is too long for a folder; export to another format"
        )
    return text


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
