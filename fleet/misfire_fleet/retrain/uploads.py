"""Uploads and labels become examples: store + labels.csv -> Examples, every loss of a row counted and named.

labels.csv has a header with `id` and `label`. A label is a class name (or its number); for regression numbers
separated by spaces; for keypoints `x,y,visible` triples separated by spaces, in the network's input pixels;
for segmentation the path of a mask image beside the CSV.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import Image, decode_image
from misfire_train.data import Examples
from misfire_train.data.images import DecodedImages, ImageSubset
from misfire_train.runs import Run
from misfire_train.tasks import LabelPlace

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

    Only labelled rows are read, and each image is decoded once, as far as its pixels fit in the cache of
    `DecodedImages`. Groups are a vehicle's minutes: neighbouring frames stay together in every later split.
    Raises ConfigError on a label that the run's task cannot mean, StoreError where nothing is left.
    """
    wanted = read_labels(labels)
    # By id, not by arrival: the same uploads make the same run, in whatever order they came.
    labelled = store.among(list(wanted))
    total = store.count()
    pictures = [sample for sample in labelled if sample.media_type.startswith("image/")]
    problems = [f"{s.id[:16]}: {s.media_type}" for s in labelled if not s.media_type.startswith("image/")]
    images = DecodedImages(lambda i: _read(store, pictures[i]), count=len(pictures))
    usable, damaged = _decodable(images, run)
    if not usable:
        raise StoreError(
            f"none of the {len(wanted)} labels in {labels} belongs to a usable image "
            f"among {total} stored samples"
        )
    chosen = [pictures[i] for i in usable]
    examples = Examples(
        images=ImageSubset(images, usable),
        targets=run.task.stack(
            [
                parse_label(
                    wanted[s.id], run=run, sample=s.id, beside=labels.parent, size=(s.width, s.height)
                )
                for s in chosen
            ]
        ),
        ids=tuple(sample.id for sample in chosen),
        groups=tuple(map(_minute, chosen)),
    )
    skipped = {
        "not_stored": len(wanted) - len(labelled),
        "not_an_image": len(labelled) - len(pictures),
        "undecodable": len(damaged),
    }
    return Uploads(examples, total, total - len(labelled), skipped, (*problems, *damaged)[:10])


def _read(store: Store, sample: StoredSample) -> Image:
    return decode_image(store.read_blob(sample.id), name=sample.id)


def _decodable(images: DecodedImages, run: Run) -> tuple[list[int], list[str]]:
    """Returns the places of the images that decode, and a sentence for each other one.

    The pixels are asked for as training will, so that they are kept from here on.
    """
    usable, problems = [], []
    for place in range(len(images)):
        try:
            images.planes(np.array([place]), run.contract)
        except (ImageError, SampleGoneError) as error:
            problems.append(str(error))
        else:
            usable.append(place)
    return usable, problems


def _minute(sample: StoredSample) -> str:
    """Returns the minute that a sample belongs to, by the recording's own time where it has one.

    A recording without a date has only its position: by the clock, an hour replayed in a minute is one group.
    """
    offer = sample.offer
    if offer.recorded_at is None and offer.position_s is not None:
        return f"{sample.vehicle}/{offer.source}/{int(offer.position_s // _GROUP_S)}"
    return f"{sample.vehicle}/{int(sample.captured_at // _GROUP_S)}"


def parse_label(
    text: str, *, run: Run, sample: str, beside: Path, size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """One target as the run's task has it. Raises ConfigError naming sample and text.

    size: width and height of the sample's image, which a mask must have too; None where it is not known.
    """
    place = LabelPlace(run.record.classes, run.contract, folder=beside, size=size)
    try:
        return run.task.parse_label(text, place)
    except ConfigError as error:
        raise ConfigError(f"label of {sample[:16]}: {error}") from error
