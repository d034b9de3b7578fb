"""Defines what a label of a sample says, for every task: the one form between database, files and tools.

Names of classes, never numbers: a list of classes grows and changes its order. Coordinates are pixels of the
stored picture, with the origin at the corner of the first pixel, so that a box over the whole picture of
WIDTH x HEIGHT is (0, 0, WIDTH, HEIGHT). `canonical` is the text whose hash is the label's content hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from misfire_runtime.errors import ConfigError

MAX_BOXES = 20_000
"""Boxes of one picture; crowds of people and parked cars stay far below."""
MAX_MASK_BYTES = 16 * 1024 * 1024

Name = Annotated[str, Field(min_length=1, max_length=200)]
Pixels = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassLabel(_Content):
    """One class of the whole picture."""

    kind: Literal["class"] = "class"
    name: Name


class ClassesLabel(_Content):
    """Every class that is in the picture; none is a label too."""

    kind: Literal["classes"] = "classes"
    names: tuple[Name, ...] = Field(max_length=10_000)


class ValuesLabel(_Content):
    """The numbers that a regression predicts, in the task's own order and units."""

    kind: Literal["values"] = "values"
    values: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1, max_length=10_000)


class Box(_Content):
    """One object: x0 < x1 and y0 < y1 before the rotation, which turns it clockwise about its centre."""

    name: Name
    x0: Pixels
    y0: Pixels
    x1: Pixels
    y1: Pixels
    degrees: float = Field(default=0.0, allow_inf_nan=False, ge=-360, le=360)
    crowd: bool = False
    """Many objects in one box: nothing in it counts as missed or as false."""
    ignore: bool = False
    """Neither found nor missed counts."""


class BoxesLabel(_Content):
    """Every object of the picture; none is a label too: there is nothing to find."""

    kind: Literal["boxes"] = "boxes"
    boxes: tuple[Box, ...] = Field(max_length=MAX_BOXES)


class Point(_Content):
    """One point of a skeleton; `visible` is COCO's 0 (not labelled), 1 (hidden) or 2 (seen)."""

    x: Pixels
    y: Pixels
    visible: Literal[0, 1, 2] = 2


class PointsLabel(_Content):
    """The points of one skeleton, in the task's own order."""

    kind: Literal["points"] = "points"
    points: tuple[Point, ...] = Field(min_length=1, max_length=10_000)


class MaskLabel(_Content):
    """A class for every pixel: a lossless picture of numbers, and the names of those numbers."""

    kind: Literal["mask"] = "mask"
    png: str = Field(max_length=MAX_MASK_BYTES)
    """Base64 of an 8-bit or 16-bit greyscale PNG as large as the stored picture."""
    names: dict[int, Name]
    """The class of each number; a number without a name is not labelled."""


Label = ClassLabel | ClassesLabel | ValuesLabel | BoxesLabel | PointsLabel | MaskLabel
_LABEL: TypeAdapter[Label] = TypeAdapter(Annotated[Label, Field(discriminator="kind")])


def parse(document: Any, *, where: str) -> Label:
    """Returns the label of a JSON object or of its text.

    Args:
        document: an object with `kind`, or JSON text of one.
        where: file and line, or sample, for the error.

    Raises:
        ConfigError: it is no label; the message says which field is wrong and what was expected.
    """
    try:
        if isinstance(document, str | bytes):
            return _LABEL.validate_json(document)
        return _LABEL.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "label"
        raise ConfigError(f"{where}: {field}: {first['msg']}") from error


def names_in(label: Label) -> list[str]:
    """Returns the classes that a label names, each once, in its order; of a mask, by numbers."""
    match label:
        case ClassLabel():
            return [label.name]
        case ClassesLabel():
            return list(dict.fromkeys(label.names))
        case BoxesLabel():
            return list(dict.fromkeys(box.name for box in label.boxes))
        case MaskLabel():
            return list(dict.fromkeys(name for _, name in sorted(label.names.items())))
        case _:
            return []


def canonical(label: Label) -> str:
    """Returns the label's JSON text with sorted keys and no spaces: equal labels have equal texts."""
    return json.dumps(
        label.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def content_hash(label: Label) -> str:
    """Returns the SHA-256 of the canonical text as 64 hex digits."""
    return hashlib.sha256(canonical(label).encode()).hexdigest()


class LabelRecord(BaseModel):
    """What one annotator said about one sample at one time. Records are added, and never changed or replaced.

    Attributes:
        sample: id of the sample.
        source: where the label was made: `person`, `label-studio`, `cvat`, `file`, `vote`, `audit`.
        annotator: who made it, as the source names them; empty if the source does not say.
        version: counts the records of one sample, source and annotator from 1.
        label: what it says.
        content_hash: of the label.
        at: when the annotator made it, or when it was imported if the source does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: str = Field(pattern=r"^[0-9a-f]{64}$")
    source: str = Field(min_length=1, max_length=64)
    annotator: str = Field(default="", max_length=200)
    version: int = Field(ge=1)
    label: Annotated[Label, Field(discriminator="kind")]
    content_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    at: AwareDatetime

    @classmethod
    def of(
        cls,
        sample: str,
        label: Label,
        *,
        source: str,
        annotator: str = "",
        version: int = 1,
        at: AwareDatetime,
    ) -> LabelRecord:
        """Returns a record with the content hash of its label."""
        return cls(
            sample=sample,
            source=source,
            annotator=annotator,
            version=version,
            label=label,
            content_hash=content_hash(label),
            at=at,
        )
