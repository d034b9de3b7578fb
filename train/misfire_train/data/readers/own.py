"""Reads a data set of one's own code: `package.module:factory`.

factory() --> a Dataset, or {"train": ..., "test": ..., "classes": [...], ...}, or (train, test)
   a part: Examples, a torch Dataset of (image, target), a list of such pairs, or (images, targets)

A target of a network with several outputs is a dict {output: label}, or a tuple of labels in the order of
the outputs; `task` and `classes` are then dicts, too. `module:factory?output=NAME` reads the labels of one.

Images are pictures as a camera gives them: uint8 [H,W,3] or [H,W], [3,H,W] tensors, PIL images, or floats of
0..1. Resizing and normalising are misfire's, as on the vehicle.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract
from misfire_train.data.examples import Dataset, Examples, Labels
from misfire_train.data.images import DecodedImages
from misfire_train.data.splits import split
from misfire_train.errors import DatasetError

TEST_FRACTION = 0.2
_HASHED = 64
"""Images that go into the checksum of a data set: reading all of them could take hours."""
_KNOWN = ("train", "test", "classes", "task", "contract", "groups", "name", "licence")


def load_own(name: str) -> Dataset:
    """Returns the data set that `package.module:factory` gives. The current folder is searched.

    name: `?output=NAME` behind it takes the labels of one output. Raises DatasetError if it cannot be
    imported, called, or read as one.
    """
    source, _, query = name.partition("?")
    output = query.removeprefix("output=")
    if query and (output == query or not output):
        raise DatasetError(f"the data set {name}: expected {source}?output=NAME")
    found = _load(source)
    return replace(found.of(output), name=name) if output else found


def _load(name: str) -> Dataset:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
        given = found() if callable(found) else found
    except Exception as error:
        raise DatasetError(f"the data set {name}: {type(error).__name__}: {error}") from error
    return given if isinstance(given, Dataset) else _dataset(given, name=name)


def _dataset(given: Any, *, name: str) -> Dataset:
    facts: dict[str, Any] = {}
    if isinstance(given, Mapping):
        facts = {str(key): value for key, value in given.items()}
        unknown = sorted(set(facts) - set(_KNOWN))
        if unknown or "train" not in facts:
            raise DatasetError(
                f"the data set {name} is a dict of {', '.join(facts)}; expected train, and of "
                f"{', '.join(_KNOWN[1:])} what is known"
            )
    elif isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0], np.ndarray):
        facts = {"train": given[0], "test": given[1]}
    else:
        facts = {"train": given}
    train = _examples(facts["train"], name=f"{name} train", groups=facts.get("groups"))
    notes: tuple[str, ...] = ()
    if facts.get("test") is not None:
        test = _examples(facts["test"], name=f"{name} test", prefix="test-")
    else:
        parts = split(train, fractions={"train": 1 - TEST_FRACTION, "test": TEST_FRACTION}, seed=0)
        train, test = parts["train"], parts["test"]
        notes = (f"no test half was given: {len(test)} examples were set aside",)
    answers = _answers(facts, train, test, name=name)
    first = next(iter(answers.values()), None)
    return Dataset(
        name=name,
        task=first.task if first else str(facts.get("task") or _task_of(train.targets)),
        classes=first.classes if first else _classes(facts, train.targets, test.targets),
        answers=answers,
        contract=_contract(facts.get("contract"), train),
        train=train,
        test=test,
        sha256=_checksum(train, test),
        licence=str(facts.get("licence", "yours")),
        notes=notes,
    )


def _answers(facts: Mapping[str, Any], train: Examples, test: Examples, *, name: str) -> dict[str, Labels]:
    """Returns task and classes by output, {} if there is one. Raises DatasetError if the halves differ."""
    if train.targets.dtype.names != test.targets.dtype.names:
        raise DatasetError(f"{name}: the targets of train and test are of different outputs")
    found = {}
    for output in train.targets.dtype.names or ():
        own = {key: _of_output(facts.get(key), output) for key in ("task", "classes")}
        halves = train.targets[output], test.targets[output]
        try:
            classes = _classes({"train": None, **own}, *halves)
        except DatasetError as error:
            raise DatasetError(f"{name}: output {output}: {error}") from error
        found[output] = Labels(str(own["task"] or _task_of(halves[0])), classes)
    return found


def _of_output(stated: Any, output: str) -> Any:
    return stated.get(output) if isinstance(stated, Mapping) else None


def _examples(given: Any, *, name: str, prefix: str = "", groups: Any = None) -> Examples:
    if isinstance(given, Examples):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        images, targets = given
        if len(images) != len(targets):
            raise DatasetError(f"{name}: {len(images)} images but {len(targets)} targets")

        def of_pairs(index: int) -> Any:
            return images[index]

        decode, labels = of_pairs, list(targets)
    elif hasattr(given, "__len__") and hasattr(given, "__getitem__"):

        def of_items(index: int) -> Any:
            return _pair(given[index], name=name)[0]

        decode, labels = of_items, [_pair(given[i], name=name)[1] for i in range(len(given))]
    else:
        raise DatasetError(
            f"{name} is {type(given).__name__}; expected Examples, (images, targets), or something with a "
            "length and items (image, target), such as a torch Dataset"
        )
    if not labels:
        raise DatasetError(f"{name} is empty")
    ids = tuple(f"{prefix}{i}" for i in range(len(labels)))
    named = tuple(map(str, groups if groups is not None else getattr(given, "groups", ids)))
    return Examples(_pictures(decode, len(labels), name=name), _joined_all(labels, name=name), ids, named)


def _pair(item: Any, *, name: str) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise DatasetError(f"{name}: an item is {type(item).__name__}; expected (image, target)")


def _pictures(decode: Callable[[int], Any], count: int, *, name: str) -> DecodedImages:
    def picture(index: int) -> Image:
        return as_picture(decode(index), name=f"{name}, image {index}")

    first = picture(0)
    same = all(picture(i).shape == first.shape for i in {count // 2, count - 1})
    shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2])) if same else None
    return DecodedImages(picture, count=count, shape=shape) if shape else DecodedImages(picture, count=count)


def as_picture(value: Any, *, name: str = "image") -> Image:
    """Returns an image as uint8 [H,W,3] RGB or [H,W,4]. Raises DatasetError with what was expected.

    >>> as_picture(np.full((1, 4, 6), 0.5, np.float32)).shape
    (4, 6, 3)
    """
    pixels = np.asarray(value)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise DatasetError(
            f"{name} has shape {list(np.shape(value))}; expected [H,W,3], [H,W,4], [H,W] or [3,H,W]: a "
            "vehicle's sources give no further channels"
        )
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not np.issubdtype(pixels.dtype, np.floating) or low < 0 or high > 1:
            raise DatasetError(
                f"{name} is {pixels.dtype} from {low:.3g} to {high:.3g}; expected uint8, or floats from 0 to "
                "1: leave normalisation out of the data set, and state mean and std in its contract"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def _joined_all(labels: Sequence[Any], *, name: str) -> NDArray[Any]:
    """Returns targets as one array, a structured one of labels of several outputs.

    Raises DatasetError if examples have labels of different outputs.
    """
    if not _is_several(labels[0]):
        return _joined([np.asarray(label) for label in labels])
    rows = [_by_output(label) for label in labels]
    outputs = list(rows[0])
    wrong = next((i for i, row in enumerate(rows) if list(row) != outputs), None)
    if wrong is not None:
        raise DatasetError(
            f"{name}: target {wrong} is of {', '.join(rows[wrong]) or 'no output'}, the first of "
            f"{', '.join(outputs)}; every example needs a label of every output"
        )
    columns = {output: _joined([np.asarray(row[output]) for row in rows]) for output in outputs}
    made = np.empty(
        len(rows), [(output, column.dtype, column.shape[1:]) for output, column in columns.items()]
    )
    for output, column in columns.items():
        made[output] = column
    return made


def _is_several(label: Any) -> bool:
    """Returns whether a target is of several outputs: a dict, or a tuple that is not a row of decimals."""
    if isinstance(label, Mapping):
        return True
    return isinstance(label, tuple) and len(label) > 1 and not all(isinstance(v, float) for v in label)


def _by_output(label: Any) -> dict[str, Any]:
    if isinstance(label, Mapping):
        return {str(key): value for key, value in label.items()}
    return {str(place): value for place, value in enumerate(label)} if isinstance(label, tuple) else {}


def _joined(labels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Returns targets as one array: whole numbers as int64, masks as uint8, others as float32."""
    if len({label.shape for label in labels}) > 1:
        ragged = np.empty(len(labels), object)
        for i, label in enumerate(labels):
            ragged[i] = label
        return ragged
    whole = np.stack(labels)
    if np.issubdtype(whole.dtype, np.floating):
        return whole.astype(np.float32)
    return whole.astype(np.uint8 if whole.ndim == 3 else np.int64)


def _task_of(targets: NDArray[Any]) -> str:
    if targets.dtype == object:
        return "detection"
    if np.issubdtype(targets.dtype, np.floating):
        return "regression"
    return "classification" if targets.ndim == 1 else "segmentation"


def _classes(facts: Mapping[str, Any], targets: NDArray[Any], others: NDArray[Any]) -> tuple[str, ...]:
    """Returns the classes that are stated, else those of the targets of train and test."""
    stated = facts.get("classes") or getattr(facts["train"], "classes", None)
    if stated:
        return tuple(map(str, stated))
    if targets.dtype == object:
        raise DatasetError("a data set of boxes needs class names: give classes=[...]")
    if np.issubdtype(targets.dtype, np.floating):
        return tuple(f"value_{i}" for i in range(targets.shape[1] if targets.ndim == 2 else 1))
    known = [part[part != 255] if targets.ndim == 3 else part for part in (targets, others)]
    return tuple(str(k) for k in range(1 + max(int(part.max()) for part in known if part.size)))


def _contract(given: Any, train: Examples) -> InputContract:
    if isinstance(given, InputContract):
        return given
    height, width, channels = train.images[0].shape
    known = {"height": height, "width": width, "color": "rgba" if channels == 4 else "rgb"}
    return InputContract.model_validate({**known, **dict(given or {})})


def _checksum(train: Examples, test: Examples) -> str:
    """Returns a SHA-256 over all targets and some evenly spaced images."""
    digest = hashlib.sha256()
    for part in (train, test):
        for column in [part.targets[name] for name in part.targets.dtype.names or ()] or [part.targets]:
            for target in column:
                digest.update(np.ascontiguousarray(target).tobytes())
        for i in np.linspace(0, len(part) - 1, min(_HASHED, len(part))).astype(int):
            digest.update(np.ascontiguousarray(part.images[int(i)]).tobytes())
    return digest.hexdigest()
