"""Takes labelled images in the forms that a notebook has them, as one set of tensors.

(images, targets) of tensors, arrays or lists, a list of pairs, a torch Dataset or DataLoader --> TensorSet

Whatever is read item by item is read once and kept, so that images and targets belong together even if a
Dataset varies them at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from misfire_runtime.errors import ConfigError
from misfire_train.data import Examples
from misfire_train.heads.data import TensorSet
from misfire_train.tasks import Task

MAX_BYTES = 8_000_000_000
"""Of the images of one set; more would not fit beside the rest."""
_IMAGES = ("image", "images", "pixel_values", "img", "x")
_TARGETS = ("label", "labels", "target", "targets", "mask", "masks", "y")
_FORMS = (
    "(images, targets), Examples, a torch Dataset or DataLoader of (image, target), or a list of such pairs"
)


def as_set(given: Any, *, name: str, task: Task) -> Examples | TensorSet:
    """Returns labelled images as a set.

    Args:
        given: Examples; (images, targets), each a tensor, an array or a list; a torch Dataset or DataLoader
            of (image, target), or of dicts with image and label; or a list of such pairs.
        name: of the argument, for messages.
        task: joins targets of several sizes, such as boxes.

    Raises:
        ConfigError: it is none of these, is too large, or images differ in size.
    """
    if isinstance(given, Examples):
        return given
    if isinstance(given, DataLoader):
        return _joined(_items(given, name=name), name=name, task=task, batched=True)
    if isinstance(given, TorchDataset):
        _require_room(given, name=name)
        return _joined(_items(given, name=name), name=name, task=task)
    if isinstance(given, list) and given and isinstance(given[0], tuple | Mapping):
        return _joined(_items(given, name=name), name=name, task=task)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ConfigError(f"fit: {name} is {type(given).__name__}; expected {_FORMS}")
    images, targets = given
    return TensorSet.of(_stacked(images, name=name), _targets(targets, task=task))


def _items(given: Any, *, name: str) -> Iterator[tuple[Any, Any]]:
    """Yields (image, target) of what is iterated or indexed."""
    rows = given
    if isinstance(given, TorchDataset) and not isinstance(given, IterableDataset):
        # A map-style Dataset need not end by IndexError, so it is read by its length.
        rows = (given[i] for i in range(len(given)))  # type: ignore[arg-type]
    for row in rows:
        if isinstance(row, Mapping):
            keys = [next((key for key in names if key in row), "") for names in (_IMAGES, _TARGETS)]
            if not all(keys):
                raise ConfigError(
                    f"fit: items of {name} have {', '.join(map(str, row))}; expected an image "
                    f"({', '.join(_IMAGES)}) and a label ({', '.join(_TARGETS)})"
                )
            yield row[keys[0]], row[keys[1]]
        elif isinstance(row, tuple | list) and len(row) >= 2:
            yield row[0], row[1]
        else:
            raise ConfigError(f"fit: items of {name} are {type(row).__name__}; expected (image, target)")


def _joined(rows: Iterable[tuple[Any, Any]], *, name: str, task: Task, batched: bool = False) -> TensorSet:
    images, targets = [], []
    for image, target in rows:
        images.append(image)
        targets.append(target)
    if not images:
        raise ConfigError(f"fit: {name} is empty")
    if not batched:
        return TensorSet.of(_stacked(images, name=name), _targets(targets, task=task))
    single = [image for batch in images for image in batch]
    return TensorSet.of(
        _stacked(single, name=name), _targets([t for part in targets for t in part], task=task)
    )


def _require_room(given: Any, *, name: str) -> None:
    """Raises ConfigError before a set is read that would not fit into memory."""
    if isinstance(given, IterableDataset) or not len(given):
        return
    first = next(_items([given[0]], name=name))[0]
    size = len(given) * (first.nbytes if isinstance(first, Tensor) else np.asarray(first).nbytes)
    if size > MAX_BYTES:
        raise ConfigError(
            f"fit: {name} takes {size / 1e9:.0f} GB, and at most {MAX_BYTES / 1e9:.0f} are read into memory; "
            "a few thousand images are enough: torch.utils.data.Subset(dataset, range(5000))"
        )


def _stacked(images: Any, *, name: str) -> Tensor:
    """Returns images as one tensor [N,C,H,W]; arrays of doubles become fp32."""
    if isinstance(images, Tensor):
        return images
    if isinstance(images, np.ndarray):
        return _tensor(images)
    if not isinstance(images, Sequence) or not len(images):
        raise ConfigError(f"fit: the images of {name} are {type(images).__name__}; expected {_FORMS}")
    each = [image if isinstance(image, Tensor) else _tensor(np.asarray(image)) for image in images]
    shapes = list(dict.fromkeys(tuple(image.shape) for image in each))
    if len(shapes) > 1:
        shown = ", ".join(str(list(shape)) for shape in shapes[:3])
        raise ConfigError(
            f"fit: the images of {name} have several sizes ({shown}); resize them to the network's input, or "
            "give Examples with a contract, which resizes them as the vehicle does"
        )
    return torch.stack(each)


def _tensor(values: Any) -> Tensor:
    # numpy counts in doubles; networks do not.
    whole = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(np.ascontiguousarray(whole))


def _targets(targets: Any, *, task: Task) -> Any:
    """Returns targets as a tensor, or as the task joins them if they differ in size."""
    if isinstance(targets, Tensor):
        return targets
    if isinstance(targets, np.ndarray):
        return targets if targets.dtype == object else torch.as_tensor(targets)
    each = [np.asarray(target) for target in targets]
    if len({value.shape for value in each}) > 1:
        return task.stack(each)
    return torch.as_tensor(np.stack(each))
