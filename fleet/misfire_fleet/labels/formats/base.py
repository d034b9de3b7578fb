"""Defines what a label format writes and reads: the two records that pass through it, and its protocol.

sample + its newest label + the vehicle's answer = ExportItem --Format.write--> files in a folder
files --Format.read--> ImportedLabel, or Problem for a part that is wrong --> checked, then recorded

A new format is one file: a subclass of `Format` with `@register` (registry.py) above it. A format knows
only its files: no store, no database, no network. It writes into an empty folder that does not yet have its
final name, and reads a folder or file that was unpacked and bounded before.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from misfire_fleet.labels.content import Label, LabelRecord
from misfire_runtime.errors import ConfigError, MissingExtraError

Kind: TypeAlias = Literal["class", "classes", "values", "boxes", "points", "mask"]
"""`kind` of a label's content."""
ALL_KINDS: frozenset[Kind] = frozenset({"class", "classes", "values", "boxes", "points", "mask"})
ENDINGS: Mapping[str, str] = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
"""Of the media types that the fleet accepts as pictures."""
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Answer:
    """Holds what the vehicle's model answered, as a label that a person may correct.

    Attributes:
        label: the answer in pixels of the stored picture. A model's box is never crowd or ignore.
        confidence: of the class, or of each box or point in order; None if the offer has none.
        p_correct: probability that the class, or each box, is right (`box.p_tp`); None if not known.
        more: boxes that the model found and the offer had no room for.
    """

    label: Label
    confidence: tuple[float | None, ...] = ()
    p_correct: tuple[float | None, ...] = ()
    more: int = 0


@dataclass(frozen=True)
class ExportItem:
    """Holds one picture on its way to a label tool.

    Attributes:
        sample: id of the sample, the SHA-256 of its bytes.
        media_type: one of ENDINGS.
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        vehicle: its name.
        bundle: `name@version` of the bundle that answered.
        captured_at: seconds since 1970.
        trigger: name of the trigger that selected the sample.
        reason: one sentence of why; "" if the vehicle gave none.
        random: True if the sample belongs to the unbiased random stream.
        percentile: the highest percentile of its scores, 0..1.
        scores: by name; a higher value means a more likely failure.
        percentiles: of the scores, 0..1, by name.
        context: what the vehicle noted about the moment.
        read: returns the picture's bytes. Raises SampleGoneError if they are no longer stored.
        answer: of the vehicle's model; None if the offer has none that is a label.
        record: the label to export; None if the sample is not labelled.
        split: "train", "val" or "test" of a snapshot; "" if there is none.
        verdict: of a person on the answer: right, wrong, missed or ignore; "" if there is none.
    """

    sample: str
    media_type: str
    width: int
    height: int
    vehicle: str
    bundle: str
    captured_at: float
    trigger: str
    read: Callable[[], bytes] = field(repr=False, compare=False)
    reason: str = ""
    random: bool = False
    percentile: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    percentiles: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, str | float | bool] = field(default_factory=dict)
    answer: Answer | None = None
    record: LabelRecord | None = None
    split: str = ""
    verdict: str = ""

    @property
    def file_name(self) -> str:
        """Returns the picture's name in an export: the id, and the ending of its media type."""
        return f"{self.sample}{ENDINGS[self.media_type]}"

    @property
    def label(self) -> Label | None:
        """Returns what the record says; None if the sample is not labelled."""
        return None if self.record is None else self.record.label


@dataclass(frozen=True)
class ImportedLabel:
    """Holds one label that a file has.

    Attributes:
        sample: id of the sample, or the name that the file has for it (see `id_in`).
        label: in pixels of the picture as the file knows it.
        where: file and line, or file and entry, for messages.
        size: width and height of that picture, if the file states them; labels are scaled if the stored
            picture has another size of the same shape, and refused if it has another shape.
        annotator: who made it, as the file names them; "" if it does not say.
        at: when it was made, with a time zone; None if the file does not say.
    """

    sample: str
    label: Label
    where: str
    size: tuple[float, float] | None = None
    annotator: str = ""
    at: datetime | None = None


@dataclass(frozen=True)
class Problem:
    """Reports one part of a file that is wrong; the rest can still be read.

    where: file and line, or file and entry.  sentence: what is wrong, and what was expected.
    """

    where: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence}"


@dataclass
class Written:
    """Counts what a format wrote.

    Attributes:
        samples: pictures, or rows without pictures.
        labelled: those with a label.
        answered: those with the vehicle's answer.
        left_out: what was not written, by reason: a label of a kind that the format has no place for, a box
            that it can only tell in part.
    """

    samples: int = 0
    labelled: int = 0
    answered: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def count(self, item: ExportItem, *, labelled: bool = True, answered: bool = True) -> None:
        """Counts an item that was written, and whether its label and its answer were."""
        self.samples += 1
        self.labelled += labelled and item.record is not None
        self.answered += answered and item.answer is not None


@dataclass(frozen=True)
class Plan:
    """Says what to write.

    Attributes:
        classes: the project's classes in the order of their numbers. A class that a label has beyond them
            gets the next number (see `ClassNumbers`).
        pictures: False writes only labels and fields.
        points: names of the points of a skeleton, in the task's order; numbers are used beyond them.
        project: name of the fleet, kept in the export so that the labels of another one are recognised.
    """

    classes: tuple[str, ...] = ()
    pictures: bool = True
    points: tuple[str, ...] = ()
    project: str = ""


SizeOf: TypeAlias = Callable[[str], "tuple[int, int] | None"]


@dataclass(frozen=True)
class Known:
    """Tells a reader what the store knows, for files that do not say it themselves.

    Attributes:
        classes: the project's classes in the order of their numbers.
        kind: of the project's labels, for files from which it cannot be told; None if it is not known.
        size_of: returns width and height of a stored picture by its id; None if it is not stored.
    """

    classes: tuple[str, ...] = ()
    kind: Kind | None = None
    size_of: SizeOf = field(default=lambda _sample: None)


class Format(ABC):
    """Writes and reads the files of one kind.

    Attributes:
        name: as `--to` and `--from` have it.
        help: one line of what it is, for the list of formats.
        kinds: kinds of labels that it can carry; pictures with other labels are written as unlabelled and
            counted in `Written.left_out`.
        answers: True if it has a place for the vehicle's answers.
        main: path of its labels' document below the folder, such as "labels.csv", if it has a single one. An
            export to a file of this ending is that document alone, without pictures. "" if it has several.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    answers: ClassVar[bool] = False
    main: ClassVar[str] = ""

    @abstractmethod
    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes the items, one after another, in memory that does not grow with their number.

        Args:
            items: in the order to be kept. May be consumed once.
            folder: exists and is empty.
            plan: classes and options.

        Returns:
            The counts.

        Raises:
            OSError: the folder cannot be written.
        """

    @abstractmethod
    def recognise(self, path: Path) -> str | None:
        """Returns what it saw at a path that it can read, such as "a COCO document (labels.json)"; else None.

        Looks at names and at the first bytes of few files, and raises nothing for files of any content.
        """

    @abstractmethod
    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the labels of a path, in the order of the file; samples without a label are not yielded.

        Args:
            path: a folder or a file that `recognise` accepts.
            known: what the store knows.

        Raises:
            ConfigError: the file as a whole is unreadable or malformed; the message has the file, and the
                line or field.
        """


class ClassNumbers:
    """Numbers classes: those of the plan first, then others in the order of their appearance, from 0."""

    def __init__(self, classes: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(classes))}

    def of(self, name: str) -> int:
        """Returns the class's number, a new one if it has none yet."""
        return self._numbers.setdefault(name, len(self._numbers))

    @property
    def names(self) -> tuple[str, ...]:
        """Returns all names, by number."""
        return tuple(self._numbers)


def id_in(name: str) -> str:
    """Returns the sample id in a file's name or path, or the last part of the name if there is none.

    Tools add prefixes, endings and hashes of their own: `3f9a-<id>_jpg.rf.77.jpg` still is the id's.

    >>> id_in("upload/12-" + "a" * 64 + ".jpg") == "a" * 64
    True
    >>> id_in("frames\\\\0001.png")
    '0001.png'
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    found = _ID.findall(last.lower())
    return found[0] if len(set(found)) == 1 else last


@contextmanager
def training_readers() -> Iterator[None]:
    """Translates a missing library of the trainer's readers, which some formats share, into what to install.

    Raises:
        MissingExtraError: the server was installed without the extra `train`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        if missing.startswith("misfire"):
            raise
        raise MissingExtraError(
            f"this format needs {missing}, which is not installed: pip install 'misfire[train]' "
            "-c constraints.txt"
        ) from error


def require_bounded(path: Path, max_bytes: int) -> None:
    """Raises ConfigError if a file that is read whole is larger, or cannot be read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if size > max_bytes:
        raise ConfigError(f"{path}: {size:,} bytes; at most {max_bytes:,} are read")
