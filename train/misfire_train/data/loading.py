"""Loads a data set by name: `mnist`, or a reader and what it reads, `image-folder:PATH`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from misfire_train.data.catalogue import entries
from misfire_train.data.drawn.drives import load_drives
from misfire_train.data.drawn.figures import load_figures
from misfire_train.data.drawn.street import load_street
from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.carla_detection import load_carla_detection
from misfire_train.data.readers.boxes.carla_masks import load_carla_masks
from misfire_train.data.readers.boxes.coco import load_coco_boxes
from misfire_train.data.readers.boxes.kitti import load_kitti
from misfire_train.data.readers.boxes.voc import load_voc
from misfire_train.data.readers.boxes.yolo import load_yolo
from misfire_train.data.readers.coco import load_coco_keypoints, load_coco_pose_ccby
from misfire_train.data.readers.folders import load_image_folder
from misfire_train.data.readers.masks import load_masks
from misfire_train.data.readers.options import Options, parse_argument, printable
from misfire_train.data.readers.own import load_own
from misfire_train.data.readers.published import (
    load_digits,
    load_fashion_mnist,
    load_kmnist,
    load_mnist,
    load_traffic_lights,
)
from misfire_train.data.readers.tables import load_csv_classes, load_csv_labels, load_csv_regression
from misfire_train.errors import DatasetError

_NAMED: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "kmnist": load_kmnist,
    "traffic-lights": load_traffic_lights,
    "figures": load_figures,
    "figure-parts": lambda root: load_figures(root, labels="parts"),
    "figure-boxes": lambda root: load_figures(root, labels="boxes"),
    "street": lambda root: load_street(),
    "coco-pose-ccby": load_coco_pose_ccby,
    "carla-detection": load_carla_detection,
    "carla-masks": load_carla_masks,
    "drive-garments": lambda root: load_drives(root, kind="garments"),
    "drive-lights": lambda root: load_drives(root, kind="lights"),
    "drive-figures": lambda root: load_drives(root, kind="figures"),
    "drive-parts": lambda root: load_drives(root, kind="parts"),
    "drive-boxes": lambda root: load_drives(root, kind="boxes"),
}
_ALL_TAKE = ("size", "group", "test")
READERS: dict[str, tuple[Callable[[Path, Options], Dataset], tuple[str, ...]]] = {
    "image-folder": (load_image_folder, (*_ALL_TAKE, "classes", "channels")),
    "coco-keypoints": (load_coco_keypoints, (*_ALL_TAKE, "images")),
    "masks": (load_masks, (*_ALL_TAKE, "classes", "ignore")),
    "csv-regression": (load_csv_regression, _ALL_TAKE),
    "csv-classes": (load_csv_classes, (*_ALL_TAKE, "classes")),
    "csv-labels": (load_csv_labels, _ALL_TAKE),
    "coco-boxes": (load_coco_boxes, (*_ALL_TAKE, "classes", "others", "images")),
    "yolo": (load_yolo, (*_ALL_TAKE, "classes", "others")),
    "voc": (load_voc, (*_ALL_TAKE, "classes", "others")),
    "kitti": (load_kitti, (*_ALL_TAKE, "classes", "others")),
}
"""The readers of one's own data, and the options that each takes."""


def is_own(name: str) -> bool:
    """Returns whether a data set is of one's own code: `package.module:factory`, no reader and its path.

    >>> is_own("mydata:frames?output=scene"), is_own("images:frames"), is_own("digits")
    (True, False, False)
    """
    module, _, rest = name.partition(":")
    names = [rest.partition("?")[0], *module.split(".")]
    return module not in (*READERS, *_NAMED, "images") and all(part.isidentifier() for part in names)


def load_dataset(name: str, *, root: Path | None = None, several: bool = False) -> Dataset:
    """Returns the data set of that name, its files verified by checksum.

    Args:
        name: one of `misfire data list`. Readers of your own files take a path after a colon, and after the
            path optionally `?size=WIDTHxHEIGHT&group=REGEX`; docs/data.md has all options. A set of your own
            code is `package.module:factory`.
        root: folder of the published sets; else MISFIRE_DATA, else the user's cache.
        several: labels of several outputs are welcome. A training takes those of one.

    Raises:
        DatasetError: the name is unknown, a file is missing or changed, or its content is malformed.
        ConfigError: the reader has no such option, or its value is wrong.

    >>> digits = load_dataset("digits")
    >>> len(digits.train), len(digits.test), digits.contract.height
    (1352, 445, 8)
    """
    reader, colon, argument = name.partition(":")
    if reader in READERS:
        if not argument:
            raise DatasetError(f"{reader} needs a path: {reader}:PATH")
        if printable(argument) != argument:
            raise DatasetError(
                f"{printable(argument)}: the path of a data set must be UTF-8; rename the folder"
            )
        load, takes = READERS[reader]
        # The name keeps the options: whoever reads the set again by its name must get the same pictures.
        return replace(load(*parse_argument(argument, takes=takes)), name=name)
    if name in _NAMED:
        return _NAMED[name](root)
    if colon and reader in _NAMED:
        raise DatasetError(f"{reader} takes no path; name the folder of its files with --data")
    if is_own(name):
        own = load_own(name)
        if own.answers and not several:
            raise DatasetError(
                f"{name} has labels of several outputs ({', '.join(own.answers)}): name one with "
                f"{name}?output={next(iter(own.answers))}"
            )
        return own
    if name == "dashcam":
        raise DatasetError("dashcam has no labels: it is a source for `misfire run`, not for training")
    if reader == "images":
        raise DatasetError("images:PATH has no labels: only `misfire export` can calibrate on it")
    known = [entry + (":PATH" if entry in READERS else "") for entry in entries() if entry != "dashcam"]
    close = difflib.get_close_matches(reader, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if Path(name).is_dir():
        hint = f"; for a folder with one subfolder per class say 'image-folder:{name}'."
    raise DatasetError(f"there is no data set '{name}'{hint} Known: {', '.join(known)}")
