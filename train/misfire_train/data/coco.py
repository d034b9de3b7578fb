"""COCO keypoints: one crop per labelled person (or whatever the category is), joints in the crop's pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_runtime.bundle import sha256_file
from misfire_runtime.preprocess import Image, InputContract, decode_image
from misfire_train.data.catalogue import find_entry, open_file
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.files import (
    ImageFile,
    Options,
    digest_files,
    read_images,
    skipped_notes,
    train_and_test,
)
from misfire_train.data.images import DecodedImages
from misfire_train.errors import DatasetError

_SIDE = 96
_MARGIN = 1.25
_SMALLEST_BOX = 12.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Picture(_Part):
    id: int
    file_name: str = Field(min_length=1)


class _Category(_Part):
    id: int
    name: str
    keypoints: tuple[str, ...] = ()


class _Annotation(_Part):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    keypoints: tuple[float, ...] = ()
    num_keypoints: int = 0
    iscrowd: int = 0


class _Document(_Part):
    images: tuple[_Picture, ...]
    annotations: tuple[_Annotation, ...]
    categories: tuple[_Category, ...]


@dataclass(frozen=True)
class Crop:
    """A square of an image, scaled to the network's input; black where it reaches beyond the image."""

    file: ImageFile
    left: float
    top: float
    side: float

    def cut(self, image: Image, *, side: int) -> Image:
        """uint8 [side,side,3]."""
        scale = side / self.side
        move = np.array([[scale, 0, -self.left * scale], [0, scale, -self.top * scale]], np.float32)
        move[:, 2] += 0.5 * scale - 0.5  # pixel centres, not corners, are whole numbers
        if scale < 1:  # average first: a warp alone would alias
            image = cv2.GaussianBlur(image, (0, 0), 0.5 * (1 / scale - 1) + 1e-3)
        return np.asarray(cv2.warpAffine(image, move, (side, side), flags=cv2.INTER_LINEAR), np.uint8)

    def moved(self, points: NDArray[np.float32], *, side: int) -> NDArray[np.float32]:
        """[J,2] of the image to [J,2] of the crop."""
        origin = np.array([self.left, self.top], np.float32)
        return np.asarray((points + 0.5 - origin) * (side / self.side) - 0.5, np.float32)


def load_coco_pose_ccby(root: Path | None = None) -> Dataset:
    """The 16 photographs of the catalogue: to try formats with."""
    entry = find_entry("coco-pose-ccby")
    paths = [open_file(file, name=entry.name, root=root) for file in entry.files]
    dataset = load_coco_keypoints(paths[0], Options())
    return Dataset(**{**vars(dataset), "name": entry.name, "licence": entry.licence, "sha256": entry.sha256})


def load_coco_keypoints(path: Path, options: Options) -> Dataset:
    """path: the JSON, or a folder with one. Images are looked for beside it and in `images`.

    Crowds, boxes below 12 pixels and annotations without a visible keypoint are left out and counted.
    Raises DatasetError on a malformed document, on keypoints that are not triples, or where nothing is left.
    """
    document_path = _document_path(path)
    document = _parse(document_path)
    names = _joint_names(document, document_path)
    files, problems = _read_files(document, document_path.parent)
    side = _square(options, document_path)
    crops, targets, ids, groups, left_out = [], [], [], [], 0
    for annotation in document.annotations:
        file = files.get(annotation.image_id)
        if file is None or not _usable(annotation):
            left_out += 1
            continue
        crop = _crop(file, annotation)
        crops.append(crop)
        targets.append(_target(annotation, crop, joints=len(names), side=side, where=document_path))
        ids.append(f"{annotation.image_id}/{annotation.id}")
        groups.append(options.group_of(file.name, file.name))
    if not crops:
        raise DatasetError(f"{document_path}: no person with keypoints whose image can be read is left")
    examples = Examples(_cuts(crops, side=side), np.stack(targets), tuple(ids), tuple(groups))
    train, test, notes = train_and_test(examples)
    crowd = (f"{left_out} of {len(document.annotations)} annotations left out (crowd, tiny, or no keypoint)",)
    return Dataset(
        name=f"coco-keypoints:{path}",
        task="keypoints",
        classes=names,
        contract=InputContract(height=side, width=side, mean=(0.45, 0.45, 0.44), std=(0.25, 0.25, 0.26)),
        train=train,
        test=test,
        sha256=digest_files(files.values(), more={document_path.name: sha256_file(document_path)}),
        licence="yours",
        notes=skipped_notes(problems) + (crowd if left_out else ()) + notes,
    )


def _document_path(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(found) != 1:
        which = ", ".join(candidate.name for candidate in found) or "none"
        raise DatasetError(f"{path}: expected one JSON of keypoints, found {which}; name the file itself")
    return found[0]


def _parse(path: Path) -> _Document:
    try:
        return _Document.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{path}: not a COCO document: {where}: {first['msg']}") from error


def _joint_names(document: _Document, path: Path) -> tuple[str, ...]:
    named = [category for category in document.categories if category.keypoints]
    if len(named) != 1:
        raise DatasetError(f"{path}: expected one category with keypoints, found {len(named)}")
    return named[0].keypoints


def _read_files(document: _Document, folder: Path) -> tuple[dict[int, ImageFile], list[str]]:
    """Image files by image id; a file_name that leads out of the folder is not followed."""
    places: dict[int, Path] = {}
    problems = []
    for picture in document.images:
        candidates = [
            base / picture.file_name
            for base in (folder, folder / "images", folder.parent / "images", folder.parent)
        ]
        inside = [
            c for c in candidates if c.is_file() and c.resolve().is_relative_to(folder.parent.resolve())
        ]
        if inside:
            places[picture.id] = inside[0]
        else:
            problems.append(f"{picture.file_name}: not found beside the JSON or in images/")
    read, unreadable = read_images(list(places.values()), base=folder)
    by_path = {file.path: file for file in read}
    return {key: by_path[path] for key, path in places.items() if path in by_path}, problems + unreadable


def _usable(annotation: _Annotation) -> bool:
    seen = annotation.num_keypoints > 0 or any(value > 0 for value in annotation.keypoints[2::3])
    return not annotation.iscrowd and seen and min(annotation.bbox[2:]) >= _SMALLEST_BOX


def _crop(file: ImageFile, annotation: _Annotation) -> Crop:
    x, y, width, height = annotation.bbox
    side = _MARGIN * max(width, height)
    return Crop(file, x + (width - side) / 2, y + (height - side) / 2, side)


def _target(
    annotation: _Annotation, crop: Crop, *, joints: int, side: int, where: Path
) -> NDArray[np.float32]:
    if len(annotation.keypoints) != 3 * joints:
        raise DatasetError(
            f"{where}: annotation {annotation.id} has {len(annotation.keypoints)} numbers "
            f"for {joints} keypoints; expected {3 * joints}"
        )
    given = np.array(annotation.keypoints, np.float32).reshape(joints, 3)
    points = crop.moved(given[:, :2], side=side)
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
