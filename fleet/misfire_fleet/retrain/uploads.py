"""Makes examples from uploads and labels: store + labels.csv -> Examples. Skipped rows are counted and named.

labels.csv has a header with `id` and `label`. A label is a class name (or its number); for regression numbers
separated by spaces; for keypoints `x,y,visible` triples separated by spaces, in the network's input pixels;
for segmentation the path of a mask image, relative to the folder of the CSV; for detection
`class,x0,y0,x1,y1` words separated by spaces, in pixels of the stored picture, and nothing for a frame
without objects.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.retrain.targets import Learner
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.clock import utc_text
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import Image, decode_image
from misfire_train.data import Examples
from misfire_train.data.images import DecodedImages, ImageSubset
from misfire_train.tasks import LabelPlace

MAX_LABEL_BYTES = 256 * 1024 * 1024
"""The whole file is kept in memory: more than three million rows of an id and a class name."""
_GROUP_S = 60.0
"""Seconds of one group: frames of the same minute look alike and must not be on both sides of a split."""


@dataclass(frozen=True)
class Uploads:
    """Holds labelled uploads, and the counts and first few names of those that could not be used."""

    examples: Examples
    stored: int
    unlabelled: int
    skipped: dict[str, int]
    problems: tuple[str, ...]


def read_labels(path: Path, *, empty: bool = False) -> dict[str, str]:
    """Returns the label texts of a CSV by sample id.

    Args:
        path: of the CSV.
        empty: whether an empty label is one: there is nothing in that frame.

    Raises:
        ConfigError: the file cannot be read, has no column id or label, or has two labels for one id. The
            message has the file, and the line of an invalid row.
    """
    try:
        size = path.stat().st_size
        if size > MAX_LABEL_BYTES:
            raise ConfigError(f"{path}: {size} bytes; a label file has at most {MAX_LABEL_BYTES}")
        # utf-8-sig: spreadsheets save CSV with a byte order mark, which would become part of "id".
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _parse(path, csv.DictReader(stream), empty=empty)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a CSV file in UTF-8: {error}") from error


def _parse(path: Path, rows: csv.DictReader[str], *, empty: bool) -> dict[str, str]:
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
        # None is a row that ends before the label: cut off, rather than empty.
        if not identity or not (label or (empty and row["label"] is not None)):
            raise ConfigError(f"{path}:{rows.line_num}: a row needs both an id and a label")
        if labels.setdefault(identity, label) != label:
            raise ConfigError(
                f"{path}:{rows.line_num}: {identity[:16]} is labelled {labels[identity]!r} and {label!r}; "
                "keep one"
            )
    return labels


def labelled_uploads(store: Store, labels: Path, *, run: Learner) -> Uploads:
    """Returns the store's labelled images that decode as examples, with the samples' ids.

    Only labelled rows are read. Each image is decoded once, as long as its pixels fit into the cache of
    `DecodedImages`. A group is a minute of a vehicle, so later splits keep neighbouring frames together.

    Args:
        store: the store with the uploads.
        labels: CSV with the columns id and label.
        run: its task and contract say how labels and pixels are read.

    Raises:
        ConfigError: the CSV or a label of it is invalid for the run's task.
        StoreError: no label belongs to a usable image.
    """
    wanted = read_labels(labels, empty=run.task.empty_label)

    def target(sample: StoredSample) -> NDArray[Any]:
        size = (sample.width, sample.height)
        return parse_label(wanted[sample.id], run=run, sample=sample.id, beside=labels.parent, size=size)

    return uploads_of(store, list(wanted), target=target, group=_minute, run=run, what=str(labels))


def uploads_of(
    store: Store,
    ids: Sequence[str],
    *,
    target: Callable[[StoredSample], NDArray[Any]],
    group: Callable[[StoredSample], str],
    run: Learner,
    what: str,
) -> Uploads:
    """Returns the stored images with these ids that decode as examples.

    Args:
        store: the store with the uploads.
        ids: of labelled samples.
        target: of a sample, by its label.
        group: of a sample: what must stay on one side of a split.
        run: its contract says how pixels are read.
        what: where the labels are, for the error.

    Raises:
        ConfigError: a label is invalid for the run's task.
        StoreError: no label belongs to a usable image, or the bytes of a sample were altered.
    """
    # Sorted by id, not by arrival: the same uploads make the same run, in whatever order they arrived.
    labelled = store.among(ids)
    total = store.count()
    pictures = [sample for sample in labelled if sample.media_type.startswith("image/")]
    problems = [f"{s.id[:16]}: {s.media_type}" for s in labelled if not s.media_type.startswith("image/")]
    images = DecodedImages(lambda i: _read(store, pictures[i]), count=len(pictures))
    usable, damaged = _decodable(images, run)
    if not usable:
        raise StoreError(
            f"none of the {len(ids)} labels in {what} belongs to a usable image among {total} stored samples"
        )
    chosen = [pictures[i] for i in usable]
    examples = Examples(
        images=ImageSubset(images, usable),
        targets=run.task.stack([target(sample) for sample in chosen]),
        ids=tuple(sample.id for sample in chosen),
        groups=tuple(map(group, chosen)),
    )
    skipped = {
        "not_stored": len(ids) - len(labelled),
        "not_an_image": len(labelled) - len(pictures),
        "undecodable": len(damaged),
    }
    return Uploads(examples, total, total - len(labelled), skipped, (*problems, *damaged)[:10])


def _read(store: Store, sample: StoredSample) -> Image:
    data = store.read_blob(sample.id)
    # The id is the hash of the bytes. Others, such as those of a test sample, must not be trained on.
    if hashlib.sha256(data).hexdigest() != sample.id:
        raise StoreError(f"sample {sample.id[:16]}: its bytes were altered; misfire fleet check --deep")
    return decode_image(data, name=sample.id)


def _decodable(images: DecodedImages, run: Learner) -> tuple[list[int], list[str]]:
    """Returns the indices of the images that decode, and a sentence for each of the others.

    Decoding uses the same contract as training, so the decoded pixels are in the cache when training starts.
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
    """Returns the minute that a sample belongs to, by the recording's own time if it has one.

    A recording without a date has only a position in it, which is used instead of the capture time: replayed
    fast, an hour of it may be captured within a minute and would become one group.
    """
    offer = sample.offer
    if offer.recorded_at is None and offer.position_s is not None:
        return f"{sample.vehicle}/{offer.source}/{int(offer.position_s // _GROUP_S)}"
    return f"{sample.vehicle}/{int(sample.captured_at // _GROUP_S)}"


def slices_of(store: Store, ids: Sequence[str], *, by: str) -> dict[str, str]:
    """Returns the slice of each stored sample by its id.

    Args:
        store: the store with the uploads.
        ids: of samples.
        by: `vehicle`, `day`, `class` (the vehicle's answer), or a key of the frame's context.
    """
    found = {}
    for sample in store.among(ids):
        if by == "vehicle":
            name = sample.vehicle
        elif by == "day":
            name = utc_text(sample.captured_at)[:10]
        elif by == "class":
            name = str(sample.prediction.get("class", "unknown"))
        else:
            name = str((sample.offer.context or {}).get(by, "unknown"))
        found[sample.id] = name
    return found


def parse_label(
    text: str, *, run: Learner, sample: str, beside: Path, size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """Returns the target that a label text describes, with the shape and type of the run's task.

    Args:
        text: the label as in the CSV.
        run: has the task, its classes and its contract.
        sample: id of the sample, for errors.
        beside: folder that paths in the text are relative to.
        size: width and height of the sample's image, which a mask must have too; None if not known.

    Raises:
        ConfigError: the text is not a label of this task; the message names the sample.
    """
    place = LabelPlace(run.record.classes, run.contract, folder=beside, size=size)
    try:
        return run.task.parse_label(text, place)
    except ConfigError as error:
        raise ConfigError(f"label of {sample[:16]}: {error}") from error
