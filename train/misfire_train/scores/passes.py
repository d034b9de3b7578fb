"""Defines scores that run the model more than once per image, and the extra passes that they share.

    dropout   T passes with dropout on and everything else, BatchNorm above all, in eval mode
    flip      one pass over the mirrored image
    image     whatever the score does with the image itself (other networks, an autoencoder)

A `PassScore` names its kind in `extra`; `scores.compute` makes each kind of pass once per batch and hands it
to all scores that need it. Such a score has no place in a one-pass graph: its `forward` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.errors import ScoreError
from misfire_train.signals import Probe, Score, Signals

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class PassScore(Score):
    """Is a score of several passes; `combine` takes the plain pass's signals and what `extra` names."""

    exportable = False
    extra: Literal["dropout", "flip", "image"] = "image"

    def forward(self, signals: Signals) -> Tensor:
        """Raises ScoreError: one pass is not enough."""
        raise ScoreError(f"{self.name} needs more than one pass per image; score with scores.compute(...)")


class ImageScore(PassScore):
    """Is a score that reads the image itself."""

    extra = "image"

    def combine(self, signals: Signals, image: Tensor) -> Tensor:
        """Returns scores [N] from the plain pass and the image [N,C,H,W]."""
        raise NotImplementedError


class DropoutScore(PassScore):
    """Is a score of T stochastic answers.

    passes: T. rate: dropout put before the last layer of a model that has no dropout of its own.
    """

    extra = "dropout"

    def __init__(self, *, passes: int = 10, rate: float = 0.1) -> None:
        super().__init__()
        if passes < 1 or not 0 < rate < 1:
            raise ScoreError(f"passes is {passes} (at least 1), rate is {rate} (between 0 and 1)")
        self.passes, self.rate = passes, rate

    def combine(self, samples: Tensor) -> Tensor:
        """Returns scores [N] from T answers [T,N,...]."""
        raise NotImplementedError


@contextmanager
def dropout_only(model: nn.Module, *, last: nn.Module | None = None, rate: float = 0.1) -> Iterator[None]:
    """Sets eval mode for everything but dropout. BatchNorm keeps its running statistics, in use and in value.

    A model without dropout layers gets dropout of `rate` on the input of `last`; without `last`, ScoreError.
    """
    modes = [(part, part.training) for part in model.modules()]
    layers = [part for part in model.modules() if isinstance(part, _DROPOUT)]
    if not layers and last is None:
        raise ScoreError("the model has no dropout layer, and no last layer is named to put one before")
    handle = None
    if not layers and last is not None:
        handle = last.register_forward_pre_hook(
            lambda _module, inputs: (functional.dropout(inputs[0], rate, training=True), *inputs[1:])
        )
    try:
        model.eval()
        for layer in layers:
            layer.train()
        yield
    finally:
        if handle is not None:
            handle.remove()
        for part, training in modes:
            part.training = training


def dropout_samples(probe: Probe, image: Tensor, *, passes: int, rate: float = 0.1, seed: int = 0) -> Tensor:
    """Returns T stochastic answers [T,N,...], the same for the same seed; the global random state is kept.

    If dropout is right before the last layer and nowhere else, all passes share the network's trunk: the same
    numbers, bit for bit, for little more than one pass.
    """
    last = probe.model.get_submodule(probe.last_layer)
    with torch.random.fork_rng(devices=[]), dropout_only(probe.model, last=last, rate=rate):
        torch.manual_seed(seed)
        with _tail_of(probe.model, last) as seen:
            first = probe.model(image)
        again = seen.repeat(first)
        rest = [probe.model(image) if again is None else again() for _ in range(passes - 1)]
        return torch.stack([first, *rest])


class _Tail:
    """Holds what was seen of one stochastic pass: calls of dropout layers, and of the last layer."""

    def __init__(self, last: nn.Module) -> None:
        self.last = last
        self.dropped: list[tuple[nn.Module, Tensor, Tensor, int]] = []
        self.entered: list[tuple[Tensor, int]] = []
        self.left: list[Tensor] = []

    def repeat(self, answer: Tensor) -> Callable[[], Tensor] | None:
        """Returns a function that draws another answer from the trunk's.

        None if that would not be the whole pass.
        """
        if len(self.entered) != 1 or len(self.left) != 1 or self.left[0] is not answer:
            return None
        last, (inputs, version) = self.last, self.entered[0]
        if not self.dropped:  # then a hook drops the last layer's input, whenever it is called
            return lambda: last(inputs)
        if len(self.dropped) > 1:
            return None
        layer, before, after, written = self.dropped[0]
        # A changed version means that something wrote into the tensor between dropout and last layer.
        if after is not inputs or written != version:
            return None
        return lambda: last(layer(before))


@contextmanager
def _tail_of(model: nn.Module, last: nn.Module) -> Iterator[_Tail]:
    seen = _Tail(last)
    handles = [
        part.register_forward_hook(
            lambda layer, inputs, output: seen.dropped.append((layer, inputs[0], output, output._version))
        )
        for part in model.modules()
        if isinstance(part, _DROPOUT)
    ]
    handles.append(
        last.register_forward_pre_hook(
            lambda _layer, inputs: seen.entered.append((inputs[0], inputs[0]._version)), prepend=True
        )
    )
    handles.append(last.register_forward_hook(lambda _layer, _inputs, output: seen.left.append(output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
