"""Brings labels from files into the store: all of a file's right labels in one transaction, or nothing.

path --unpacked, recognised--> Format.read --ids, sizes, names checked--> LabelLedger.add --> records

Everything that is wrong is listed in full. If anything is, nothing is recorded, unless what is wrong is to be
skipped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select

from misfire_fleet.labels.checking import Added, NewLabel
from misfire_fleet.labels.content import (
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    ValuesLabel,
)
from misfire_fleet.labels.exchange.archives import Limits, unpacked
from misfire_fleet.labels.exchange.comparing import alike
from misfire_fleet.labels.exchange.manifest import ExportManifest, manifest_of
from misfire_fleet.labels.formats.base import Format, ImportedLabel, Kind, Known, Problem, SizeOf
from misfire_fleet.labels.formats.parts.geometry import hull_of, moved, same_shape
from misfire_fleet.labels.formats.parts.mask_pixels import mask_size
from misfire_fleet.labels.formats.parts.words import words_of
from misfire_fleet.labels.formats.registry import recognised
from misfire_fleet.labels.items import PAGE, labels_of
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.schema import labels, samples
from misfire_runtime.errors import ConfigError

_TOOLS = frozenset({"label-studio", "cvat"})
"""Formats that are the source of their labels."""


@dataclass(frozen=True)
class Imported:
    """Tells what an import found and did.

    Attributes:
        format: name of the format.
        seen: by what it was recognised.
        labels: labels in the file.
        scaled: labels that were scaled to the size of the stored picture.
        added: what was recorded, and what the store says is wrong.
        unreadable: a sentence for each part of the file that is wrong in itself.
        conflicts: a sentence for each of its samples about which annotators differ now. Nothing is wrong:
            every annotator's label is kept.
    """

    format: str
    seen: str
    labels: int
    scaled: int
    added: Added
    unreadable: tuple[str, ...]
    conflicts: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Returns True if nothing is wrong."""
        return self.added.ok and not self.unreadable

    def problems(self) -> list[str]:
        """Returns a sentence for each thing that is wrong, all of them."""
        return [*self.unreadable, *self.added.problems()]

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return {
            **self.added.to_dict(),
            "format": self.format,
            "seen": self.seen,
            "labels": self.labels,
            "scaled": self.scaled,
            "unreadable": list(self.unreadable),
            "conflicts": list(self.conflicts),
            "ok": self.ok,
        }


@dataclass(frozen=True)
class Wish:
    """Says how to import.

    Attributes:
        form: the format; None recognises it.
        kind: of the labels, for files that do not say it; None takes the only kind that the store has.
        annotator: who made the labels, if the file does not say.
        add_classes: adds classes that the fleet does not have.
        skip_bad: records what is right although something is wrong.
        dry_run: only checks.
        limits: of an archive.
    """

    form: Format | None = None
    kind: Kind | None = None
    annotator: str = ""
    add_classes: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    limits: Limits = field(default_factory=Limits)


class _UnreadableError(Exception):
    """Ends a pass over a file that has problems, before anything is recorded."""


def import_labels(store: Store, path: Path, *, wish: Wish, actor: str = "") -> Imported:
    """Records the labels of a path.

    Args:
        store: with the samples.
        path: a folder, a file, or an archive of them.
        wish: how.
        actor: who adds classes, for the audit log.

    Raises:
        ConfigError: the path as a whole cannot be read, has no labels, or is of another project.
        StoreUnavailableError: nothing was recorded; the call may be repeated.
    """
    with unpacked(path, wish.limits) as place:
        manifest = manifest_of(place)
        form, seen = _format(place, path, wish)
        ledger = LabelLedger(store)
        known = Known(
            classes=tuple(each.name for each in ledger.classes()),
            kind=wish.kind or _only_kind(store),
            size_of=_sizes(store),
        )
        reading = _Reading(store, form, place, known, wish=wish, manifest=manifest)
        result = _record(ledger, reading, wish, actor)
        result = replace(result, unchanged=result.unchanged + reading.unchanged)
        conflicts = tuple(_conflicts(ledger, reading.samples)) if result.written else ()
    found = Imported(
        form.name, seen, reading.labels, reading.scaled, result, tuple(reading.problems), conflicts
    )
    _require_own(path, found, manifest)
    return found


def _record(ledger: LabelLedger, reading: _Reading, wish: Wish, actor: str) -> Added:
    options: dict[str, Any] = {"add_classes": wish.add_classes, "actor": actor, "skip_wrong": wish.skip_bad}
    try:
        return ledger.add(reading.pass_over(), dry_run=wish.dry_run, **options)
    except _UnreadableError:
        # Once more, only to list what the store says is wrong too.
        return ledger.add(reading.pass_over(to_the_end=True), dry_run=True, **options)


def _format(place: Path, path: Path, wish: Wish) -> tuple[Format, str]:
    if wish.form is None:
        try:
            return recognised(place)
        except ConfigError as error:
            # The temporary folder of an archive means nothing to anybody.
            raise ConfigError(str(error).replace(str(place), str(path))) from error
    seen = wish.form.recognise(place)
    if seen is None:
        looks = ""
        with suppress(ConfigError):
            other, saw = recognised(place)
            looks = f"; it looks like {other.name}: {saw}"
        raise ConfigError(f"{path}: is not {wish.form.name} ({wish.form.help}){looks}")
    return wish.form, seen


class _Reading:
    """Reads a file, possibly twice; holds what the last pass found."""

    def __init__(
        self,
        store: Store,
        form: Format,
        place: Path,
        known: Known,
        *,
        wish: Wish,
        manifest: ExportManifest | None,
    ) -> None:
        self._store, self._form, self._place, self._known = store, form, place, known
        self._wish, self._manifest = wish, manifest
        self.labels = self.scaled = self.unchanged = 0
        self.problems: list[str] = []
        self.samples: set[str] = set()

    def pass_over(self, *, to_the_end: bool = False) -> Iterator[NewLabel]:
        """Yields the labels that are right in themselves and say something new.

        Raises _UnreadableError after the last one if there were problems, unless they are to be skipped.
        """
        self.labels = self.scaled = self.unchanged = 0
        self.problems = []
        found = self._found()
        while page := list(islice(found, PAGE)):
            stored = [each.sample for each in page if self._known.size_of(each.sample) is not None]
            current = labels_of(self._store, stored)
            for each in page:
                known = current.get(each.sample)
                if known is None or not alike(known.label, each.label):
                    yield each
                elif each.annotator in ("", known.annotator):
                    self.unchanged += 1
                else:
                    # Another one who agrees, up to the rounding of the file.
                    yield replace(each, label=known.label)
        self._compare()
        if self.problems and not (to_the_end or self._wish.skip_bad or self._wish.dry_run):
            raise _UnreadableError

    def _found(self) -> Iterator[NewLabel]:
        """Yields the file's labels for the stored pictures, and notes its problems."""
        source = self._form.name if self._form.name in _TOOLS else "file"
        for each in self._form.read(self._place, self._known):
            if isinstance(each, Problem):
                self.problems.append(str(each))
                continue
            self.labels += 1
            try:
                label = self._fitted(each)
            except ValueError as error:
                self.problems.append(f"{each.where}: {error}")
                continue
            self.samples.add(each.sample)
            annotator = each.annotator or self._wish.annotator
            yield NewLabel(each.sample, label, source, annotator=annotator, at=each.at, where=each.where)

    def _fitted(self, each: ImportedLabel) -> Label:
        """Returns the label for the stored picture. Raises ValueError if it cannot be one."""
        stored, label = self._known.size_of(each.sample), composed(each.label)
        if stored is None:
            return label
        if each.size is not None and tuple(each.size) != stored:
            label = scaled(label, each.size, stored)
            self.scaled += 1
        _require_inside(label, stored)
        return label

    def _compare(self) -> None:
        """Compares with the manifest: a copy that was interrupted lacks labels."""
        expected = self._manifest.labelled if self._manifest is not None else 0
        read = self.labels + len(self.problems)
        if read < expected:
            self.problems.append(
                f"{self._place.name}: has {read:,} labels, and had {expected:,} when it was exported: some "
                "were deleted, or it was copied in part"
            )


def _conflicts(ledger: LabelLedger, ids: Set[str]) -> Iterator[str]:
    """Yields a sentence for each of these samples about which annotators differ."""
    for conflict in ledger.conflicts():
        if conflict.sample in ids:
            said = (f"{r.annotator or r.source} says {words_of(r.label)[:60]!r}" for r in conflict.records)
            yield f"sample {conflict.sample}: {', '.join(said)}"


def composed(label: Label) -> Label:
    """Returns a label with its names in composed characters: a Mac's files spell an umlaut in two."""
    match label:
        case ClassLabel():
            return ClassLabel(name=_nfc(label.name))
        case ClassesLabel():
            return ClassesLabel(names=tuple(map(_nfc, label.names)))
        case BoxesLabel():
            boxes = (box.model_copy(update={"name": _nfc(box.name)}) for box in label.boxes)
            return BoxesLabel(boxes=tuple(boxes))
        case MaskLabel():
            return label.model_copy(update={"names": {k: _nfc(name) for k, name in label.names.items()}})
        case _:
            return label


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def scaled(label: Label, size: tuple[float, float], stored: tuple[int, int]) -> Label:
    """Returns a label that was made on a picture of another size for the stored one.

    Raises:
        ValueError: it has places that mean nothing in the stored picture; the sentence says how to mend that.
    """
    if isinstance(label, (ClassLabel, ClassesLabel, ValuesLabel)):
        return label
    shown = f"{size[0]:g}x{size[1]:g}", f"{stored[0]}x{stored[1]}"
    if (round(size[0]), round(size[1])) == stored[::-1] and stored[0] != stored[1]:
        raise ValueError(
            f"its picture is {shown[0]}, the stored one {shown[1]}: the tool shows it turned, as its file "
            "says (EXIF), and places are those of the stored picture; judge it on the verdict screen, and "
            "let vehicles upload upright pictures"
        )
    if isinstance(label, MaskLabel):
        raise ValueError(f"its mask is {shown[0]}, the stored picture {shown[1]}; masks are not resized")
    if not same_shape(size, stored):
        raise ValueError(
            f"its picture is {shown[0]}, the stored one {shown[1]}, which has another shape: it was cropped, "
            "so its places mean nothing here; label the picture as it was exported or pushed"
        )
    return moved(label, across=stored[0] / size[0], down=stored[1] / size[1])


def _require_inside(label: Label, size: tuple[int, int]) -> None:
    """Raises ValueError if a label cannot be of a picture of this size."""
    width, height = size
    if isinstance(label, MaskLabel) and mask_size(label) != size:
        found = mask_size(label)
        raise ValueError(f"its mask is {found[0]}x{found[1]}, the stored picture {width}x{height}")
    for number, box in enumerate(label.boxes if isinstance(label, BoxesLabel) else (), start=1):
        x0, y0, x1, y1 = hull_of(box)
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"box {number} ({box.name[:40]}) has no area")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            corners = f"{x0:g}, {y0:g}, {x1:g}, {y1:g}"
            raise ValueError(
                f"box {number} ({box.name[:40]}: {corners}) is outside of its {width}x{height} picture"
            )


def _require_own(path: Path, found: Imported, manifest: ExportManifest | None) -> None:
    """Raises ConfigError if nothing in the file has to do with this store."""
    if not found.labels and not found.unreadable:
        raise ConfigError(f"{path}: has no labels ({found.format}: {found.seen})")
    added = found.added
    strange = len(added.unknown_samples) + len(added.invalid)
    if found.labels and strange and not (added.recorded or added.unchanged) and _all_strange(found):
        first = next(iter(added.unknown_samples), "") or added.invalid[0]
        project = manifest.project if manifest is not None else ""
        named = f"the project {project!r}" if project else "another project"
        raise ConfigError(
            f"{path}: none of its {found.labels:,} labels is of a sample of this store, such as "
            f"{first[:80]}. They are of {named}; nothing was recorded"
        )


def _all_strange(found: Imported) -> bool:
    added = found.added
    return not (added.unknown_classes or added.misfits or added.clashes or found.unreadable)


def _only_kind(store: Store) -> Kind | None:
    """Returns the kind of the store's labels; None if it has none, or several."""
    with store.database.read() as connection:
        kinds: list[Any] = list(connection.scalars(select(labels.c.kind).distinct().limit(2)))
    return kinds[0] if len(kinds) == 1 else None


def _sizes(store: Store) -> SizeOf:
    @lru_cache(10_000)
    def size_of(sample: str) -> tuple[int, int] | None:
        if len(sample) != 64 or not sample.isascii() or not sample.isalnum():
            return None
        with store.database.read() as connection:
            row = connection.execute(
                select(samples.c.width, samples.c.height).where(samples.c.id == sample)
            ).one_or_none()
        return None if row is None else (int(row.width), int(row.height))

    return size_of
