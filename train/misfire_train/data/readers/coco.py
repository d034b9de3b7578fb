"""Reads COCO keypoints: one crop per labelled person (or other category), joints in the crop's pixels.

PATH/person_keypoints.json, images beside it or in PATH/images
PATH/annotations/person_keypoints_{train,val}2017.json, images in PATH/train2017 and PATH/val2017
PATH/{train,val,test}.json, images in PATH/train, PATH/val and PATH/test
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import sha256_file
from misfire_runtime.preprocess import Image, InputContract, decode_image
from misfire_train.data.catalogue import find_entry, open_file
from misfire_train.data.examples import Dataset
from misfire_train.data.images import DecodedImages
from misfire_train.data.readers.coco_documents import (
    Annotation,
    Document,
    Source,
    data_root,
    find_sources,
    image_folders,
    joint_names,
    names_a_document,
    names_a_file_inside,
    read_document,
)
from misfire_train.data.readers.files import ImageFile, digest_files, named_file, read_images, skipped_notes
from misfire_train.data.readers.halves import divide
from misfire_train.data.readers.options import Options, list_digest
from misfire_train.errors import DatasetError

_SIDE = 96
# COCO's boxes follow the body; the margin keeps joints at its border inside the crop.
_MARGIN = 1.25
# Pixels of the shorter side.
_SMALLEST_BOX = 12.0
_UNUSABLE = "crowd, tiny, or without a visible keypoint"


@dataclass(frozen=True)
class Crop:
    """Is a square of an image, scaled to the network's input; black beyond the image's border."""

    file: ImageFile
    left: float
    top: float
    side: float

    def cut(self, image: Image, *, side: int) -> Image:
        """Returns uint8 [side,side,3]."""
        scale = side / self.side
        move = np.array([[scale, 0, -self.left * scale], [0, scale, -self.top * scale]], np.float32)
        move[:, 2] += 0.5 * scale - 0.5  # pixel centres, not corners, are whole numbers
        if scale < 1:  # average first: only warping would alias
            image = cv2.GaussianBlur(image, (0, 0), 0.5 * (1 / scale - 1) + 1e-3)
        return np.asarray(cv2.warpAffine(image, move, (side, side), flags=cv2.INTER_LINEAR), np.uint8)

    def moved(self, points: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
        """Converts points [J,2] of the image to points of the crop."""
        origin = np.array([self.left, self.top], np.float32)
        return np.asarray((points + 0.5 - origin) * (side / self.side) - 0.5, np.float32)


def load_coco_pose_ccby(root: Path | None = None) -> Dataset:
    """Returns the 16 photographs of the catalogue, which are for trying formats."""
    entry = find_entry("coco-pose-ccby")
    paths = [open_file(file, name=entry.name, root=root) for file in entry.files]
    dataset = load_coco_keypoints(paths[0], Options())
    return Dataset(**{**vars(dataset), "name": entry.name, "licence": entry.licence, "sha256": entry.sha256})


@dataclass
class _Persons:
    """Collects what is cut out of the images, and what was left out."""

    crops: list[Crop] = field(default_factory=list)
    targets: list[NDArray[np.float32]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    files: list[ImageFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_coco_keypoints(path: Path, options: Options) -> Dataset:
    """Returns the persons of one COCO document, or of one per half.

    Images are searched for beside the JSON, in `images`, in the folders of the half (`train2017`, `train`),
    or below `images=FOLDER`. Crowds, boxes below 12 pixels and annotations without a visible keypoint are
    left out and counted. Annotations whose image is missing are counted separately.

    Args:
        path: the JSON, or a folder with one JSON or one per half.
        options: size, group, test, images.

    Raises:
        DatasetError: a document is malformed, keypoints are not triples, or nothing is left.
    """
    sources = find_sources(path, options, kind="keypoints")
    root = data_root(sources[0])
    documents = [read_document(source.path) for source in sources]
    names = joint_names(documents, sources)
    side = _square(options, sources[0].path)
    persons = _Persons()
    for source, document in zip(sources, documents, strict=True):
        _collect(persons, source, document, root=root, joints=len(names), side=side, options=options)
    file_names = [crop.file.name for crop in persons.crops]
    # A JSON of the test half is a source by now; only a list of names is left to be looked up.
    own = replace(options, test=None) if names_a_document(options) else options
    halves = divide(
        images=_cuts(persons.crops, side=side),
        targets=np.stack(persons.targets),
        ids=persons.ids,
        names=file_names,
        groups=file_names,
        words=persons.words,
        options=own,
        folder=root,
    )
    checksums = {source.path.name: sha256_file(source.path) for source in sources}
    return Dataset(
        name=f"coco-keypoints:{path}",
        task="keypoints",
        classes=names,
        contract=InputContract(height=side, width=side, mean=(0.45, 0.45, 0.44), std=(0.25, 0.25, 0.26)),
        train=halves.train,
        test=halves.test,
        sha256=digest_files(persons.files, more=checksums | list_digest(own, root)),
        licence="yours",
        notes=(*persons.notes, *halves.notes),
    )


def _collect(
    persons: _Persons,
    source: Source,
    document: Document,
    *,
    root: Path,
    joints: int,
    side: int,
    options: Options,
) -> None:
    """Adds the persons of one document."""
    folders = image_folders(source, root, options)
    files, absent, problems = _read_files(document, folders, root)
    unusable = missing = 0
    before = len(persons.crops)
    for annotation in document.annotations:
        file = files.get(annotation.image_id)
        if file is None:
            missing += 1
        elif not _usable(annotation):
            unusable += 1
        else:
            crop = _crop(file, annotation)
            persons.crops.append(crop)
            persons.targets.append(_target(annotation, crop, joints=joints, side=side, where=source.path))
            identity = f"{annotation.image_id}/{annotation.id}"
            persons.ids.append(f"{source.part}/{identity}" if source.part else identity)
            persons.words.append(source.word)
    persons.files += files.values()
    looked = f"looked in {', '.join(str(folder) for folder in folders)}"
    counted = f"of {len(document.images)} images of {source.path.name} are not there"
    lost = [f"{len(absent)} {counted}, such as {absent[0]}; {looked}"] if absent else []
    if len(persons.crops) == before:
        left_out = (
            f"{missing} of its {len(document.annotations)} annotations are of images that cannot be read"
        )
        why = "; ".join([*lost, *skipped_notes(problems), f"{left_out}, {unusable} {_UNUSABLE}"])
        raise DatasetError(f"{source.path}: no person with keypoints whose image can be read is left; {why}")
    persons.notes += [*skipped_notes(problems), *lost]
    total = f"of {len(document.annotations)} annotations of {source.path.name} left out"
    if missing:
        persons.notes.append(f"{missing} {total}: their images cannot be read")
    if unusable:
        persons.notes.append(f"{unusable} {total}: {_UNUSABLE}")


def _read_files(
    document: Document, folders: Sequence[Path], root: Path
) -> tuple[dict[int, ImageFile], list[str], list[str]]:
    """Returns (image files by image id, names that are not there, what cannot be decoded)."""
    places: dict[int, Path] = {}
    absent = []
    for picture in document.images:
        found = (
            named_file(picture.file_name, folders) if names_a_file_inside(picture.file_name, root) else None
        )
        if found is None:
            absent.append(picture.file_name)
        else:
            places[picture.id] = found
    read, unreadable = read_images(list(dict.fromkeys(places.values())), base=root)
    by_path = {file.path: file for file in read}
    return {key: by_path[path] for key, path in places.items() if path in by_path}, absent, unreadable


def _usable(annotation: Annotation) -> bool:
    seen = annotation.num_keypoints > 0 or any(value > 0 for value in annotation.keypoints[2::3])
    return not annotation.iscrowd and seen and min(annotation.bbox[2:]) >= _SMALLEST_BOX


def _crop(file: ImageFile, annotation: Annotation) -> Crop:
    x, y, width, height = annotation.bbox
    side = _MARGIN * max(width, height)
    return Crop(file, x + (width - side) / 2, y + (height - side) / 2, side)


def _target(
    annotation: Annotation, crop: Crop, *, joints: int, side: int, where: Path
) -> NDArray[np.float32]:
    if len(annotation.keypoints) != 3 * joints:
        raise DatasetError(
            f"{where}: annotation {annotation.id} has {len(annotation.keypoints)} numbers "
            f"for {joints} keypoints; expected {3 * joints}"
        )
    given = np.array(annotation.keypoints, np.float32).reshape(joints, 3)
    points = crop.moved(given[:, :2], side=side)
    # A pixel reaches half a pixel beyond its centre.
    inside = ((points > -0.5) & (points < side - 0.5)).all(1)
    seen = np.where(inside, given[:, 2], 0)
    return np.column_stack((np.where(seen[:, None] > 0, points, 0), seen)).astype(np.float32)


def _cuts(crops: list[Crop], *, side: int) -> DecodedImages:
    def decode(index: int) -> Image:
        crop = crops[index]
        return crop.cut(decode_image(crop.file.path.read_bytes(), name=crop.file.name), side=side)

    return DecodedImages(decode, count=len(crops), shape=(side, side, 3))


def _square(options: Options, path: Path) -> int:
    if options.size is None:
        return _SIDE
    if options.size[0] != options.size[1]:
        raise DatasetError(
            f"{path}: crops of persons are square; size={options.size[0]}x{options.size[1]} is not"
        )
    return options.size[0]
