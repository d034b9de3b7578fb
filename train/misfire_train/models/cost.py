"""Measures what a network costs by running it: the proof that a head stays below its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_flops(call: Callable[..., Any], *inputs: Tensor | Sequence[int]) -> int:
    """Returns the floating-point operations of `call(*inputs)`: two per multiply-add.

    Convolutions and matrix products are counted. Element-wise operations, normalisation and pooling are not:
    beside the products they are few. A module runs in eval mode and its mode is restored.

    Args:
        call: a module or function.
        inputs: tensors or shapes.

    >>> count_flops(nn.Linear(10, 4), (1, 10))
    80
    """
    tensors = [given if isinstance(given, Tensor) else torch.zeros(tuple(given)) for given in inputs]
    training = isinstance(call, nn.Module) and call.training
    if isinstance(call, nn.Module):
        call.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            call(*tensors)
    finally:
        if isinstance(call, nn.Module):
            call.train(training)
    return int(counter.get_total_flops())


def count_parameters(module: nn.Module) -> int:
    """Returns the number of values that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
