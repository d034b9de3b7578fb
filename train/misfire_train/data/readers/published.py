"""Reads the published classification sets: digits, the MNIST family, traffic lights."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import InputContract, decode_image
from misfire_train.data.catalogue import DataFile, entries, open_file
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.images import DecodedImages, ImageArray
from misfire_train.errors import DatasetError

# The idx format's code for unsigned bytes.
_IDX_TYPE_UINT8 = 8
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns a gzipped idx file of unsigned bytes.

    Raises DatasetError if the header and the length disagree.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path}: not a complete gzip file ({error})") from error
    if len(data) < 4 or data[0] != 0 or data[1] != 0 or data[2] != _IDX_TYPE_UINT8:
        raise DatasetError(f"{path}: not an idx file of unsigned bytes")
    dimensions = data[3]
    if len(data) < 4 + 4 * dimensions:
        raise DatasetError(f"{path}: ends within its header")
    # The format's sizes are big-endian.
    shape = tuple(int(n) for n in np.frombuffer(data[4 : 4 + 4 * dimensions], ">u4"))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DatasetError(f"{path}: the header states {shape}, the file holds {values.size} bytes")
    return values.reshape(shape)


def load_digits(root: Path | None = None) -> Dataset:
    """Returns scikit-learn's digits, 8x8: three quarters to train on, one to test, evenly by class."""
    from sklearn.datasets import load_digits as bundled

    raw = bundled()
    # scikit-learn's grey values go from 0 to 16.
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)
    labels = raw.target.astype(np.int64)
    everything = _labelled(ImageArray(images), labels, "digits")
    tests = np.zeros(len(labels), bool)
    for value in range(10):
        # Every fourth of a class, so the halves are the same everywhere without a random generator.
        tests[np.flatnonzero(labels == value)[3::4]] = True
    return Dataset(
        name="digits",
        task="classification",
        classes=tuple(str(value) for value in range(10)),
        contract=InputContract(height=8, width=8, color="gray", mean=(0.305,), std=(0.376,)),
        train=everything.take(np.flatnonzero(~tests)),
        test=everything.take(np.flatnonzero(tests)),
        sha256=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        licence=entries()["digits"].licence,
    )


def load_mnist(root: Path | None = None) -> Dataset:
    """Returns MNIST, 28x28 grey."""
    digits = tuple(str(value) for value in range(10))
    return _load_idx_set("mnist", classes=digits, mean=0.1307, std=0.3081, root=root)


def load_fashion_mnist(root: Path | None = None) -> Dataset:
    """Returns Fashion-MNIST, 28x28 grey."""
    return _load_idx_set("fashion-mnist", classes=FASHION_CLASSES, mean=0.286, std=0.353, root=root)


def load_kmnist(root: Path | None = None) -> Dataset:
    """Returns the test half of KMNIST under MNIST's input contract, as unfamiliar input. `train` is empty."""
    entry = entries()["kmnist"]
    test = _read_pair("kmnist", entry.files, "test", root=root)
    return Dataset(
        name="kmnist",
        task="classification",
        classes=KMNIST_CLASSES,
        contract=_grey_28(0.1307, 0.3081),
        train=test.take([]),
        test=test,
        sha256=entry.sha256,
        licence=entry.licence,
        notes=("only the test half is published here: nothing to train on",),
    )


def load_traffic_lights(root: Path | None = None) -> Dataset:
    """Returns crops of traffic lights, about twice as high as wide, decoded on access."""
    entry = entries()["traffic-lights"]
    train, test = (
        _read_crops(file, part, root=root) for file, part in zip(entry.files, ("train", "test"), strict=True)
    )
    return Dataset(
        name="traffic-lights",
        task="classification",
        classes=("red", "yellow", "green"),
        contract=InputContract(height=48, width=24, mean=(0.564, 0.535, 0.557), std=(0.251, 0.257, 0.254)),
        train=train,
        test=test,
        sha256=entry.sha256,
        licence=entry.licence,
        notes=(
            "crops of the two halves may come from the same video; no drive is named, none can be held out",
        ),
    )


def _grey_28(mean: float, std: float) -> InputContract:
    return InputContract(height=28, width=28, color="gray", mean=(mean,), std=(std,))


def _labelled(images: ImageArray, labels: NDArray[np.int64], prefix: str) -> Examples:
    ids = tuple(f"{prefix}-{position:05d}" for position in range(len(labels)))
    return Examples(images=images, targets=labels, ids=ids, groups=ids)


def _load_idx_set(
    name: str, *, classes: tuple[str, ...], mean: float, std: float, root: Path | None
) -> Dataset:
    entry = entries()[name]
    return Dataset(
        name=name,
        task="classification",
        classes=classes,
        contract=_grey_28(mean, std),
        train=_read_pair(name, entry.files[:2], "train", root=root),
        test=_read_pair(name, entry.files[2:], "test", root=root),
        sha256=entry.sha256,
        licence=entry.licence,
    )


def _read_pair(name: str, files: tuple[DataFile, ...], part: str, *, root: Path | None) -> Examples:
    images, labels = (read_idx(open_file(file, name=name, root=root)) for file in files)
    if len(images) != len(labels):
        raise DatasetError(f"{name}: {len(images)} images, but {len(labels)} labels")
    return _labelled(ImageArray(images), labels.astype(np.int64), f"{name}-{part}")


def _read_crops(file: DataFile, part: str, *, root: Path | None) -> Examples:
    path = open_file(file, name="traffic-lights", root=root)
    with np.load(path, allow_pickle=False) as archive:
        data, offsets = archive["bytes"], archive["offset"]
        labels, names = archive["label"].astype(np.int64), [str(name) for name in archive["filename"]]

    def decode(index: int) -> NDArray[np.uint8]:
        return decode_image(data[offsets[index] : offsets[index + 1]].tobytes(), name=names[index])

    ids = tuple(f"{part}/{name}" for name in names)
    return Examples(images=DecodedImages(decode, count=len(ids)), targets=labels, ids=ids, groups=ids)
