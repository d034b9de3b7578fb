"""Defines what a layout is: one way in which exporters write a detector's answer.

To add one: subclass `Layout` in a file of this folder, decorate it with `@layout`, and list the file in
`registry.py`. `read` looks at tensors of the post-processing part of the graph with their values on a few
frames, and yields each way in which they could be this layout; `judging.py` decides on real pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from misfire_export.sources.detectors.decoding import Decoder
from misfire_runtime.preprocess import InputContract

Strength = int
"""Of two readings that fit, the stronger wins: FLAT > MAPS > QUERIES > PAIRS > FINAL."""
FLAT, MAPS, QUERIES, PAIRS, FINAL = 5, 4, 3, 2, 1
Image = Mapping[str, Any]
YOLO: Image = {"resize": "letterbox", "pad": 114}
"""Pixels of 0..1, RGB, a centred letterbox on the grey that YOLO networks are trained with."""
IMAGENET: Image = {"resize": "stretch", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Seen:
    """Holds the post-processing part of a graph, with values on a few frames.

    Attributes:
        outputs: names of the file's outputs, in order.
        values: [n,...] of each float tensor, the ones nearest to the outputs first.
        before: names of the tensors that no final TopK or suppression has chosen from.
        makers: operator that makes each tensor.
        width, height: of the network's input.
        classes: number of classes that somebody stated, 0 if nobody did.
        at_least: number of classes of the data.
        cut: the operator that was cut away (NonMaxSuppression, EfficientNMS_TRT, TopK), or "".
        inputs: names of the file's inputs.
    """

    outputs: tuple[str, ...]
    values: Mapping[str, NDArray[np.float32]]
    before: frozenset[str]
    makers: Mapping[str, str]
    width: int
    height: int
    classes: int = 0
    at_least: int = 0
    cut: str = ""
    inputs: tuple[str, ...] = ()

    def tensors(self, rank: int, *, final: bool = False) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yields the tensors of a rank that can be an answer; with `final`, one after a selection too.

        A file that chooses no boxes has its answer among its outputs; in one that does, it is before that.
        """
        for name, value in self.values.items():
            if value.ndim == rank and (final or name in self.before) and (self.cut or self.own(name)):
                yield name, value

    def inside(self, rank: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yields all tensors of a rank, the inner ones too."""
        return ((name, value) for name, value in self.values.items() if value.ndim == rank)

    def own(self, name: str) -> bool:
        """Returns whether a tensor is an output of the file."""
        return name in self.outputs


@dataclass(frozen=True)
class Reading:
    """Holds one way to read a graph.

    Attributes:
        layout: its name.
        tensors: that the decoder takes, in order.
        decoder: makes the dense answer of them.
        strength: see `Strength`.
        why: what was recognised, in a few words.
        final: only boxes that the detector itself chose are there.
    """

    layout: str
    tensors: tuple[str, ...]
    decoder: Decoder
    strength: Strength
    why: str
    final: bool = False
    classes: int = 0
    notes: tuple[str, ...] = field(default=())


class Layout(ABC):
    """Is one way in which exporters write a detector's answer.

    Attributes:
        name: as `--layout` takes it.
        about: for lists of layouts.
        image: fields of the input contract that the layout's exporters train with.
    """

    name: str = ""
    about: str = ""
    image: Image = YOLO

    @abstractmethod
    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields the ways in which the tensors could be this layout."""

    def contract(self, width: int, height: int) -> InputContract:
        """Returns how the network's input is made by default."""
        return InputContract(width=width, height=height, **self.image)


def unit(values: NDArray[np.float32], *, slack: float = 1e-3) -> bool:
    """Returns whether all values are within 0..1."""
    return bool(values.size) and float(values.min()) >= -slack and float(values.max()) <= 1 + slack


L = TypeVar("L", bound=type[Layout])
LAYOUTS: dict[str, Layout] = {}


def layout(kind: L) -> L:
    """Adds a layout to the registry; for use as a decorator."""
    LAYOUTS[kind.name] = kind()
    return kind
