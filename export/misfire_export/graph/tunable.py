"""Keeps the tensors of a learned head apart in a graph, so that a delta can replace them and nothing else.

module with a residual head --its tensors as inputs of the trace--> graph --inputs become initialisers-->

A tracer that saw the tensors' values would fold them into products and drop zeros and ones, so a head with
other values would be another graph. As inputs they are traced by their shapes alone. What the head computes
on (its free score, its statistics) gets names, too, by which it can be read from a graph later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
from onnx import numpy_helper
from torch import Tensor, nn
from torch.func import functional_call

from misfire_runtime.bundle import HeadPlace
from misfire_train.heads.residual import ResidualHead
from misfire_train.signals import Score, Signals

BASE, STATISTICS = "head/base", "head/statistics"
TENSORS = (
    "center",
    "spread",
    "committee.first",
    "committee.first_bias",
    "committee.second",
    "committee.second_bias",
    "committee.last",
    "scale",
    "bias",
)
"""What training a residual head changes after its memory and its second opinions are fitted."""


def initialiser_of(tensor: str) -> str:
    """Returns the name of a head's tensor in a graph that was traced here.

    >>> initialiser_of("committee.first")
    'head/committee.first'
    """
    return f"head/{tensor}"


def open_head(head: Score, *, refittable: bool) -> Score:
    """Returns the head; with `refittable`, one that goes on computing its correction at strength 0."""
    if refittable and isinstance(head, ResidualHead) and head.strength == 0:
        head.refittable = True
    return head


class TunableHead(nn.Module):
    """Runs a module with a residual head whose tensors are arguments.

    Args:
        module: the module to trace.
        place: name of the head in it, as in `named_modules()`.
        head: the head.
    """

    def __init__(self, module: nn.Module, *, place: str, head: ResidualHead) -> None:
        super().__init__()
        self.module, self.place = module, place
        self._head = [head]  # in a list: else its tensors would be this module's a second time

    @classmethod
    def of(cls, module: nn.Module) -> TunableHead | None:
        """Returns the module with its first residual head tunable; None if there is none that corrects."""
        for place, part in module.named_modules():
            if isinstance(part, ResidualHead):
                # What is not computed cannot be replaced.
                return cls(module, place=place, head=part) if part.corrects else None
        return None

    @property
    def tensors(self) -> list[Tensor]:
        """Returns the head's tensors, in the order of TENSORS."""
        state = self._head[0].state_dict()
        return [state[name].detach().clone() for name in TENSORS]

    def forward(self, tensors: list[Tensor], *inputs: Any) -> dict[str, Tensor]:
        """Returns the module's outputs, the head's free score [N,U] and its statistics [N,U,D]."""
        given = {f"{self.place}.{name}": value for name, value in zip(TENSORS, tensors, strict=True)}
        with _recording(self._head[0]) as seen:
            made: dict[str, Tensor] = functional_call(self.module, given, inputs)
        base, statistics = seen
        return {**made, BASE: base, STATISTICS: statistics}


@contextmanager
def _recording(head: ResidualHead) -> Iterator[list[Tensor]]:
    """Keeps what the head extracts while the block runs."""
    seen: list[Tensor] = []

    def extract(signals: Signals) -> tuple[Tensor, ...]:
        seen[:] = ResidualHead.extract(head, signals)
        return tuple(seen)

    head.__dict__["extract"] = extract
    try:
        yield seen
    finally:
        del head.__dict__["extract"]


def settle(model: onnx.ModelProto, tensors: Sequence[Tensor]) -> None:
    """Makes initialisers of the inputs that stand for a head's tensors, and hides what it computes on."""
    graph = model.graph
    values = {initialiser_of(name): value for name, value in zip(TENSORS, tensors, strict=True)}
    inputs = [value for value in graph.input if value.name not in values]
    outputs = [value for value in graph.output if value.name not in (BASE, STATISTICS)]
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in values.items())


def place_of(graph: onnx.GraphProto, head: ResidualHead, *, score: str) -> HeadPlace | None:
    """Returns where a head is in a finished graph; None if its tensors are not all there."""
    names = {item.name for item in graph.initializer}
    made = {tensor for node in graph.node for tensor in node.output}

    def found(plain: str, among: set[str]) -> str | None:
        # A graft puts a prefix before the names; a further answer of the same file another one.
        fitting = sorted((name for name in among if name == plain or name.endswith(f"/{plain}")), key=len)
        return fitting[0] if fitting else None

    tensors = {name: found(initialiser_of(name), names) for name in TENSORS}
    base, statistics = found(BASE, made), found(STATISTICS, made)
    if base is None or statistics is None or not all(tensors.values()):
        return None
    return HeadPlace(
        score=score,
        recipe=head.recipe,
        options=head.options,
        base=base,
        statistics=statistics,
        tensors={name: tensor for name, tensor in tensors.items() if tensor is not None},
    )
