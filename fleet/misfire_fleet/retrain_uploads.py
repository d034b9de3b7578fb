"""Uploads and labels become examples: store + labels.csv -> Examples, every loss of a row counted and named.

labels.csv has a header with `id` and `label`. A label is a class name (or its number); for regression numbers
separated by spaces; for keypoints `x,y,visible` triples separated by spaces, in the network's input pixels;
for segmentation the path of a mask image beside the CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.store import Store
from misfire_fleet.store_records import StoredSample
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import Image, decode_image
from misfire_train.data import Examples
from misfire_train.data.images import DecodedImages
from misfire_train.runs import Run

MAX_LABEL_BYTES = 256 * 1024 * 1024
_GROUP_S = 60.0


@dataclass(frozen=True)
class Uploads:
    """Labelled uploads, and what could not be used: counted, the first few named."""

    examples: Examples
    stored: int
    unlabelled: int
    skipped: dict[str, int]
    problems: tuple[str, ...]


def read_labels(path: Path) -> dict[str, str]:
    """Label text by sample id. Raises ConfigError with file and line: column missing, two labels."""
    try:
        size = path.stat().st_size
        if size > MAX_LABEL_BYTES:
            raise ConfigError(f"{path}: {size} bytes; a label file has at most {MAX_LABEL_BYTES}")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _parse(path, csv.DictReader(stream))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a CSV file in UTF-8: {error}") from error


def _parse(path: Path, rows: csv.DictReader[str]) -> dict[str, str]:
    missing = {"id", "label"} - set(rows.fieldnames or ())
    if missing:
        raise ConfigError(
            f"{path}: the header needs the columns id and label; {sorted(missing)[0]} is missing"
        )
    labels: dict[str, str] = {}
    for row in rows:
        identity, label = (row["id"] or "").strip(), (row["label"] or "").strip()
        if not identity and not label:
            continue
        if not identity or not label:
            raise ConfigError(f"{path}:{rows.line_num}: a row needs both an id and a label")
        if labels.setdefault(identity, label) != label:
            raise ConfigError(
                f"{path}:{rows.line_num}: {identity[:16]} is labelled {labels[identity]!r} and {label!r}; "
                "keep one"
            )
    return labels


def labelled_uploads(store: Store, labels: Path, *, run: Run) -> Uploads:
    """The store's samples that have a label, decodable, as examples; ids are the samples' own.

    Groups are a vehicle's minutes: neighbouring frames stay together in every later split.
    Raises ConfigError on a label that the run's task cannot mean, StoreError where nothing is left.
    """
    wanted = read_labels(labels)
    stored = store.newest(store.count() or 1)
    chosen, problems = [], []
    skipped = {"not_stored": len(set(wanted) - {s.id for s in stored}), "not_an_image": 0, "undecodable": 0}
    targets: list[NDArray[Any]] = []
    # By id, not by arrival: the same uploads make the same run, in whatever order they came.
    for sample in sorted(stored, key=lambda each: each.id):
        text = wanted.get(sample.id)
        if text is None:
            continue
        problem = _unusable(store, sample)
        if problem is not None:
            skipped[problem[0]] += 1
            problems.append(problem[1])
            continue
        targets.append(parse_label(text, run=run, sample=sample.id, beside=labels.parent))
        chosen.append(sample)
    if not chosen:
        raise StoreError(
            f"none of the {len(wanted)} labels in {labels} belongs to a usable image "
            f"among {len(stored)} stored samples"
        )
    examples = Examples(
        images=DecodedImages(lambda i: _read(store, chosen[i]), count=len(chosen)),
        targets=np.stack(targets),
        ids=tuple(sample.id for sample in chosen),
        groups=tuple(f"{sample.vehicle}/{int(sample.captured_at // _GROUP_S)}" for sample in chosen),
    )
    unlabelled = sum(sample.id not in wanted for sample in stored)
    return Uploads(examples, len(stored), unlabelled, skipped, tuple(problems[:10]))


def _read(store: Store, sample: StoredSample) -> Image:
    return decode_image(store.read_blob(sample.id), name=sample.id)


def _unusable(store: Store, sample: StoredSample) -> tuple[str, str] | None:
    """Why a sample cannot be trained on, as (counter, sentence), or None."""
    if not sample.media_type.startswith("image/"):
        return "not_an_image", f"{sample.id[:16]}: {sample.media_type}"
    try:
        _read(store, sample)
    except (ImageError, SampleGoneError) as error:
        return "undecodable", str(error)
    return None


def parse_label(text: str, *, run: Run, sample: str, beside: Path) -> NDArray[Any]:
    """One target as the run's task has it. Raises ConfigError naming sample and text."""
    record = run.record
    if record.task == "classification":
        return _class_index(text, record.classes, sample)
    if record.task == "segmentation":
        return _mask(beside / text, run, sample)
    try:
        numbers = [[float(v) for v in word.split(",")] for word in text.split()]
        values = np.array(numbers, np.float32)
    except ValueError:
        raise ConfigError(f"label of {sample[:16]}: {text!r} is not a list of numbers") from None
    expected = (len(record.classes), 3) if record.task == "keypoints" else (len(record.classes), 1)
    if values.shape != expected or not np.isfinite(values).all():
        raise ConfigError(f"label of {sample[:16]}: {values.shape} numbers; {record.task} needs {expected}")
    return values if record.task == "keypoints" else values[:, 0]


def _class_index(text: str, classes: tuple[str, ...], sample: str) -> NDArray[Any]:
    if text in classes:
        return np.asarray(classes.index(text), np.int64)
    if text.isascii() and text.isdigit() and int(text) < len(classes):
        return np.asarray(int(text), np.int64)
    shown = ", ".join(_first(classes, 12))
    raise ConfigError(f"label of {sample[:16]}: there is no class {text!r}; classes are {shown}")


def _first(names: tuple[str, ...], count: int) -> Iterator[str]:
    yield from names[:count]
    if len(names) > count:
        yield f"and {len(names) - count} more"


def _mask(path: Path, run: Run, sample: str) -> NDArray[Any]:
    contract = run.contract
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ConfigError(f"label of {sample[:16]}: {path} is not a mask image")
    resized = cv2.resize(mask, (contract.width, contract.height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.uint8)
