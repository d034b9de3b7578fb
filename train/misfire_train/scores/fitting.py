"""Gathers what a score is fitted on: the signals and targets of a whole set, batch by batch.

    probe, images, targets --gather--> FitSet --> build(names, fit=..., holdout=...)

`fit` is what the task model was trained on (banks, class means); `holdout` is what it never saw
(wrong_prediction, stacked, aleatoric). Feature maps are kept only on request: outputs and the last layer's
input suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misfire_runtime.preprocess import InputContract
from misfire_train.errors import ScoreError
from misfire_train.signals import Probe, Signals

MAX_FIT = 20_000
"""Frames that banks and gradients are fitted on; more only cost memory."""


class ImageSet(Protocol):
    """Is what `misfire_train.data.Examples` offers to a scorer."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the names of the images."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Any, contract: InputContract) -> Tensor:
        """Returns [n,C,H,W] float32."""
        ...


@dataclass(frozen=True)
class FitSet:
    """Holds signals of N samples with their targets: class indices, values, joints or label maps.

    classes: K for classification and segmentation, else the number of outputs.
    """

    signals: Signals
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        return int(self.signals.outputs.shape[0])

    def require(self, *, name: str, least: int = 1) -> None:
        """Raises ScoreError if there are fewer than `least` samples, or signals that are not finite."""
        if len(self) < least:
            raise ScoreError(f"{name} needs at least {least} samples to be fitted on, got {len(self)}")
        if len(self.targets) != len(self):
            raise ScoreError(f"{name}: {len(self)} samples but {len(self.targets)} targets")
        finite = torch.isfinite(self.signals.outputs.flatten(1)).all(1)
        finite &= torch.isfinite(self.signals.last_input.flatten(1)).all(1)
        if not bool(finite.all()):
            where = (~finite).nonzero().flatten()[:5].tolist()
            raise ScoreError(f"{name}: signals of fitting samples {where} are not finite")

    def take(self, indices: Sequence[int] | Tensor) -> FitSet:
        """Returns the samples at these positions."""
        index = torch.as_tensor(indices)
        return FitSet(self.signals.take(index), self.targets[index], self.classes)


class Takable(Protocol):
    """Is a set from which some can be taken: `misfire_train.data.Examples`."""

    def __len__(self) -> int: ...

    def take(self, indices: Any) -> Any:
        """Returns those at these positions."""
        ...


Set = TypeVar("Set", bound=Takable)


def spread(examples: Set, most: int) -> Set:
    """Returns at most `most` examples, evenly spaced. All frames that scores are fitted on are drawn so."""
    if len(examples) <= most:
        return examples
    # Evenly spaced instead of drawn, so that every caller takes the same frames.
    chosen: Set = examples.take(np.linspace(0, len(examples) - 1, most).astype(int))
    return chosen


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Runs modules in eval mode, and restores each submodule's own mode: a frozen BatchNorm stays frozen."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def batches(
    images: Tensor | ImageSet, *, contract: InputContract | None, size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (positions, [n,C,H,W]) in order.

    Raises ScoreError on no images, or examples without a contract.
    """
    count = len(images)
    if count == 0:
        raise ScoreError("there are no images to score")
    if size < 1:
        raise ScoreError(f"batch size must be at least 1, got {size}")
    if not isinstance(images, Tensor) and contract is None:
        raise ScoreError("examples need contract=..., the InputContract of the model")
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        if isinstance(images, Tensor):
            yield part, images[part]
        else:
            assert contract is not None
            yield part, images.batch(np.arange(part.start, part.stop), contract)


def gather(
    probe: Probe,
    images: Tensor | ImageSet,
    targets: Tensor | NDArray[Any],
    *,
    classes: int | None = None,
    contract: InputContract | None = None,
    batch: int = 256,
    features: bool = False,
    lighten: Callable[[Signals], Signals] | None = None,
) -> FitSet:
    """Runs the probe over a set in eval mode and keeps what scores are fitted on.

    Args:
        probe: the network.
        images: [N,C,H,W], or Examples with `contract`.
        targets: N of them.
        classes: K. Default: the number of outputs.
        contract: the model's input.
        batch: images at a time.
        features: keep the feature maps too, which learned heads need inside a stacked score.
        lighten: leaves out what scores of the task do not read (`Task.lighten`).

    Raises:
        ScoreError: the set is empty.

    >>> from misfire_train.signals import Probe
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> images, labels = torch.randn(10, 1, 2, 2), torch.zeros(10, dtype=torch.long)
    >>> fit = gather(Probe(model, last_layer="1"), images, labels)
    >>> len(fit), fit.classes, tuple(fit.signals.last_input.shape)
    (10, 3, (10, 4))
    """
    outputs, inputs, pooled = [], [], []
    maps: dict[str, list[Tensor]] = {name: [] for name in probe.feature_names} if features else {}
    with evaluating(probe), torch.no_grad():
        for _, part in batches(images, contract=contract, size=batch):
            signals = probe(part) if lighten is None else lighten(probe(part))
            outputs.append(signals.outputs)
            inputs.append(signals.last_input)
            if signals.pooled is not None:
                pooled.append(signals.pooled)
            for name, kept in maps.items():
                kept.append(signals.features[name])
    weight = None if signals.weight is None else signals.weight.detach()
    bias = None if signals.bias is None else signals.bias.detach()
    joined = {name: torch.cat(kept) for name, kept in maps.items()}
    means = torch.cat(pooled) if pooled else None
    merged = Signals(torch.cat(outputs), torch.cat(inputs), joined, weight, bias, means)
    result = FitSet(merged, torch.as_tensor(targets), classes or int(merged.outputs.shape[1]))
    result.require(name="fit set")
    return result
