"""Collects what a head learns from: parts, losses and failures of images that the task network never fitted.

labelled images, clean and corrupted --probe, eval, no grad--> LossSet (one row per image and version)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, corrupt, image_seed
from misfire_train.data.images import DecodedImages
from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.heads.residual import ResidualHead
from misfire_train.objectives import check_losses
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe, Signals
from misfire_train.tasks import Task
from misfire_train.tasks.check import require_fit

BATCH = 256


class LabelledSet(Protocol):
    """Is a set of N labelled images: Examples, or TensorSet."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> Any: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Any, contract: InputContract) -> Tensor:
        """Returns [n,C,H,W] float32."""
        ...

    def take(self, indices: Any) -> LabelledSet:
        """Returns the images at these positions."""
        ...


@dataclass(frozen=True)
class TensorSet:
    """Holds network input in memory. images: [N,C,H,W]; targets: N of them."""

    images: Tensor
    targets: Any
    ids: tuple[str, ...]

    @classmethod
    def of(cls, images: Tensor, targets: Any) -> TensorSet:
        """Returns a set named by position. Raises ConfigError if the numbers of images and targets differ."""
        if len(images) != len(targets):
            raise ConfigError(f"{len(images)} images but {len(targets)} targets")
        return cls(images, targets, tuple(f"#{i}" for i in range(len(images))))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any, contract: InputContract) -> Tensor:
        """Returns [n,C,H,W] as they are."""
        return self.images[torch.as_tensor(np.asarray(indices))]

    def take(self, indices: Any) -> TensorSet:
        """Returns the images at these positions."""
        chosen = np.asarray(indices)
        return TensorSet(
            self.images[torch.as_tensor(chosen)], self.targets[chosen], tuple(self.ids[i] for i in chosen)
        )


@dataclass(frozen=True)
class LossSet:
    """Holds R rows, one for each image and version.

    Attributes:
        parts: [R,...] each.
        losses: [R,U], NaN if a unit is missing.
        frame_losses: [R].
        failed: [R] bool, None if the task has no failure.
        image: [R], the image that a row shows.
        clean: [R] bool, False for corrupted copies.
        group: [R] text, the drive, vehicle or track of the image; None if no group is known.
        protected: int64 [R], the group that the score must not tell; None without one.
    """

    parts: Parts
    losses: Tensor
    frame_losses: Tensor
    failed: Tensor | None
    image: Tensor
    clean: Tensor
    group: NDArray[np.str_] | None = None
    protected: Tensor | None = None

    def __len__(self) -> int:
        return len(self.losses)

    def take(self, rows: Tensor) -> LossSet:
        """Returns the rows at these positions."""
        return LossSet(
            tuple(part[rows] for part in self.parts),
            self.losses[rows],
            self.frame_losses[rows],
            None if self.failed is None else self.failed[rows],
            self.image[rows],
            self.clean[rows],
            None if self.group is None else self.group[rows.numpy()],
            None if self.protected is None else self.protected[rows],
        )

    def groups_of_images(self) -> list[str]:
        """Returns the group of each image, by number; its own number if no group is known."""
        return _groups_of_images(self.image, self.group)


@dataclass(frozen=True)
class BoxSet:
    """Holds R frames and versions. parts: of the head. right, overlap, uncovered: labels [R,K], NaN if none.

    unseen: [R], missed objects without a candidate.  losses, failed: [R].
    image: [R], the image that a row shows.  clean: bool [R].
    group: [R] text, the drive of the image; None if no group is known.
    """

    parts: Parts
    right: Tensor
    overlap: Tensor
    uncovered: Tensor
    unseen: Tensor
    losses: Tensor
    failed: Tensor
    image: Tensor
    clean: Tensor
    group: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.losses)

    def take(self, rows: Tensor) -> BoxSet:
        """Returns the rows at these positions."""
        return BoxSet(
            parts=tuple(part[rows] for part in self.parts),
            group=None if self.group is None else self.group[rows.numpy()],
            **{name: value[rows] for name, value in self._columns().items()},
        )

    def groups_of_images(self) -> list[str]:
        """Returns the group of each image, by number; its own number if no group is known."""
        return _groups_of_images(self.image, self.group)

    def _columns(self) -> dict[str, Any]:
        names = ("right", "overlap", "uncovered", "unseen", "losses", "failed", "image", "clean")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def join(sets: Sequence[BoxSet]) -> BoxSet:
        """Returns all rows of several sets."""
        groups = [s.group for s in sets if s.group is not None]
        columns = [s._columns() for s in sets]
        return BoxSet(
            parts=tuple(torch.cat(part) for part in zip(*(s.parts for s in sets), strict=True)),
            group=np.concatenate(groups) if len(groups) == len(sets) else None,
            **{name: torch.cat([column[name] for column in columns]) for name in columns[0]},
        )


def _groups_of_images(image: Tensor, group: NDArray[np.str_] | None) -> list[str]:
    images = int(image.max()) + 1
    if group is None:
        return [str(number) for number in range(images)]
    names = [""] * images
    for number, name in zip(image.tolist(), group.tolist(), strict=True):
        names[number] = name
    return names


def join_sets(sets: Sequence[LossSet]) -> LossSet:
    """Returns all rows of several sets."""
    failed = [s.failed for s in sets if s.failed is not None]
    groups = [s.group for s in sets if s.group is not None]
    return LossSet(
        parts=tuple(torch.cat(column) for column in zip(*(s.parts for s in sets), strict=True)),
        losses=torch.cat([s.losses for s in sets]),
        frame_losses=torch.cat([s.frame_losses for s in sets]),
        failed=torch.cat(failed) if len(failed) == len(sets) else None,
        image=torch.cat([s.image for s in sets]),
        clean=torch.cat([s.clean for s in sets]),
        group=np.concatenate(groups) if len(groups) == len(sets) else None,
    )


def image_batches(examples: LabelledSet, contract: InputContract, *, size: int = BATCH) -> Iterator[Tensor]:
    """Yields network input, batch by batch."""
    for start in range(0, len(examples), size):
        yield examples.batch(np.arange(start, min(start + size, len(examples))), contract)


def collect(
    probe: Probe,
    head: LossHead,
    examples: LabelledSet,
    *,
    task: Task,
    contract: InputContract,
    clean: bool = True,
) -> LossSet:
    """Returns the head's parts and the losses from one pass over the images.

    Raises ConfigError on bad losses.
    """
    return collect_each(probe, [head], examples, task=task, contract=contract, clean=clean)[0]


@torch.no_grad()
def collect_each(
    probe: Probe,
    heads: Sequence[LossHead],
    examples: LabelledSet,
    *,
    task: Task,
    contract: InputContract,
    clean: bool = True,
) -> list[LossSet]:
    """Returns what `collect` does, for heads that differ only in the free score that they start from.

    Raises ConfigError on bad losses.
    """
    first = heads[0]
    device = next(probe.parameters()).device
    parts: list[Parts] = []
    bases: list[list[Tensor]] = [[] for _ in heads]
    outputs: list[Tensor] = []
    with evaluating(probe, *heads):
        for images in image_batches(examples, contract):
            signals = on_cpu(probe(images.to(device)))
            parts.append(first.extract(signals))
            for head, base in zip(heads[1:], bases[1:], strict=True):
                assert isinstance(head, ResidualHead)
                base.append(head.free_units(signals.outputs))
            outputs.append(task.condense(signals.outputs))
    joined, targets = torch.cat(outputs), task.collate(examples.targets)
    frame = checked_losses(task, joined, targets, ids=examples.ids)
    # A head that answers for the frame learns the frame's loss; one that answers for units, theirs.
    losses = task.unit_losses(joined, targets).float() if isinstance(first, ResidualHead) else frame[:, None]
    found = LossSet(
        parts=tuple(torch.cat(column) for column in zip(*parts, strict=True)),
        losses=losses,
        frame_losses=frame,
        failed=task.failed(joined, targets) if task.knows_failures else None,
        image=torch.arange(len(examples)),
        clean=torch.full((len(examples),), clean),
        group=np.array(examples.groups, np.str_) if isinstance(examples, Examples) else None,
    )
    # The statistics are the same for all of them, and are not copied.
    others = [replace(found, parts=(torch.cat(base), *found.parts[1:])) for base in bases[1:]]
    return [found, *others]


def on_cpu(signals: Signals) -> Signals:
    """Returns the same signals on the CPU in fp32, where heads are trained."""
    return signals.cpu().float()


def checked_losses(task: Task, outputs: Tensor, targets: Tensor, *, ids: Sequence[str]) -> Tensor:
    """Returns sample losses [N]. Raises ConfigError that names samples with a NaN, infinite or negative loss.

    It also raises ConfigError if outputs or targets do not fit the task.
    """
    require_fit(task, outputs, targets)
    try:
        return check_losses(task.sample_loss(outputs, targets).float(), ids=ids)
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error


def corrupted_copies(examples: Examples, recipe: HeadRecipe, *, seed: int) -> list[Examples]:
    """Returns `recipe.copies` versions, each image with its own family and severity, some with two families.

    Raises ConfigError on an unknown family.
    """
    names = tuple(FAMILIES) if recipe.families is None else recipe.families
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(
                f"head.families: there is no corruption {name!r}; there are {', '.join(FAMILIES)}"
            )
    if not names:
        return []
    # A prime above any number of copies keeps the seeds of two runs apart.
    return [
        _copy(examples, names, recipe.mixed, seed=seed * 1009 + number) for number in range(recipe.copies)
    ]


def _copy(examples: Examples, families: Sequence[str], mixed: float, *, seed: int) -> Examples:
    def decode(index: int) -> Image:
        own = image_seed(seed, examples.ids[index])
        generator = np.random.default_rng(own)
        count = 2 if generator.random() < mixed and len(families) > 1 else 1
        image = examples.images[index]
        for family in generator.choice(len(families), count, replace=False):
            image = corrupt(image, families[family], severity=int(generator.integers(1, 6)), seed=own)
        return image

    # Not cached: each copy is read once.
    lazy = DecodedImages(decode, count=len(examples), max_cache_bytes=0)
    return Examples(lazy, examples.targets, examples.ids, examples.groups)


def augmented(examples: TensorSet, augment: Callable[[Tensor], Tensor], *, copies: int) -> list[TensorSet]:
    """Returns versions of tensors by a function of the caller's, [n,C,H,W] to the same."""
    return [TensorSet(augment(examples.images), examples.targets, examples.ids) for _ in range(copies)]
