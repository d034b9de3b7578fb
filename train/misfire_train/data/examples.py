"""Holds labelled images in memory or on disk, and data sets of a training half and a test half.

Examples are immutable; `take` returns a view. `batch` is the only way from images to network input, and it
uses `misfire_runtime.preprocess`, as the vehicle does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract, normalise
from misfire_train.data.images import ImageArray, ImageSubset, Indices, planes
from misfire_train.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Holds N labelled images.

    Attributes:
        images: each uint8 [H,W,3] RGB of any size; grey is replicated.
        targets: as the task's class documents them (`misfire_train.tasks`), such as int64 [N] for
            classification. Ragged targets are an array of N arrays. Labels of several outputs are a
            structured array with a field for each output.
        ids: stable and unique names.
        groups: drive, vehicle or track of each example; its id if it has none.

    Raises:
        DatasetError: the lengths differ or an id occurs twice.
    """

    images: Sequence[Image]
    targets: NDArray[Any]
    ids: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {
            "images": len(self.images),
            "targets": len(self.targets),
            "ids": len(self.ids),
            "groups": len(self.groups),
        }
        if len(set(lengths.values())) != 1:
            raise DatasetError(f"examples need as many of each: {lengths}")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            # add() returns None, so `or` records each id and goes on.
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DatasetError(f"the id {twice!r} is there more than once; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Indices) -> Examples:
        """Returns the examples at these positions, in this order; only targets are copied."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        return Examples(
            images=ImageSubset(self.images, chosen),
            targets=self.targets[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
        )

    def of(self, output: str) -> Examples:
        """Returns the examples with the targets of one output, of targets that are a structured array."""
        return replace(self, targets=self.targets[output])

    def positions(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Returns the positions of these ids, int64 [n].

        Raises DatasetError that names the first unknown one.
        """
        where = {identity: position for position, identity in enumerate(self.ids)}
        try:
            return np.array([where[identity] for identity in ids], np.int64)
        except KeyError as error:
            raise DatasetError(f"there is no example {error.args[0]!r} among these {len(self)}") from None

    def batch(self, indices: Indices, contract: InputContract) -> Tensor:
        """Returns network input, equal to what `to_tensor` gives a vehicle for each image.

        Args:
            indices: positions [n] of the images.
            contract: the network's input: size, colour order, mean and standard deviation.

        Returns:
            [n,C,H,W], float32 and normalised, or uint8 if the contract's dtype is uint8.
        """
        import torch  # listing data sets need not wait for it

        pixels = planes(self.images, indices, contract)
        return torch.from_numpy(pixels if contract.dtype == "uint8" else normalise(pixels, contract))


def join(parts: Sequence[Examples]) -> Examples:
    """Returns all examples of several sets, one after another.

    Raises DatasetError on a common id or no set.
    """
    if not parts:
        raise DatasetError("there is nothing to join")
    return Examples(
        images=_joined_images([part.images for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        ids=tuple(i for part in parts for i in part.ids),
        groups=tuple(g for part in parts for g in part.groups),
    )


@dataclass(frozen=True)
class Labels:
    """Describes the labels of one output of a network that has several. classes: as of a data set."""

    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Holds a data set: `train` to train, hold out and calibrate on; `test` for the final evaluation only.

    Attributes:
        task: as in misfire_train.tasks.
        classes: names of classes, joints or values.
        answers: of labels of several outputs, task and classes by output; the targets have a field for each,
            and `task` and `classes` are those of the first.
        contract: the network's input.
        sha256: of the bytes that it was read from.
        notes: what a reader skipped or generated, one sentence each.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    contract: InputContract
    train: Examples
    test: Examples
    sha256: str
    licence: str
    notes: tuple[str, ...] = field(default=())
    answers: Mapping[str, Labels] = field(default_factory=dict)

    def of(self, output: str) -> Dataset:
        """Returns the data set with the labels of one output only. Raises DatasetError if it has none."""
        labels = self.answers.get(output)
        if labels is None:
            known = ", ".join(self.answers) or "one output, without a name"
            raise DatasetError(f"{self.name} has no labels of an output {output!r}; it has those of {known}")
        return replace(
            self,
            task=labels.task,
            classes=labels.classes,
            train=self.train.of(output),
            test=self.test.of(output),
            answers={},
        )


def _joined_images(parts: Sequence[Sequence[Image]]) -> Sequence[Image]:
    arrays = [part.data for part in parts if isinstance(part, ImageArray)]
    if len(arrays) == len(parts) and len({array.shape[1:] for array in arrays}) == 1:
        return ImageArray(np.concatenate(arrays))
    return JoinedImages(parts)


class JoinedImages(Sequence[Image]):
    """Presents several image sequences as one."""

    def __init__(self, parts: Sequence[Sequence[Image]]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        """Returns an RGB image [H,W,3], or a view for a slice."""
        if isinstance(index, slice):
            return ImageSubset(self, np.arange(len(self))[index])
        position = range(len(self))[index]
        # The position at which a part starts belongs to that part; empty parts are skipped.
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.parts[part][position - int(self.starts[part])]
