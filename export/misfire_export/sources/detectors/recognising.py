"""Recognises the layout of a detector's graph by its tensors and their values on real pictures.

graph --cut--> tail --a few pictures--> values of its tensors --every layout reads--> claims --judge--> one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from misfire_export.errors import GraphError, OutputError
from misfire_export.graph.rename import own_name
from misfire_export.measure.run import open_session
from misfire_export.sources.detectors.base import LAYOUTS, Seen
from misfire_export.sources.detectors.cutting import Tail, find_tail, keep_outputs
from misfire_export.sources.detectors.judging import Fit, choose, decode, judge
from misfire_export.sources.detectors.registry import layout_named
from misfire_export.sources.frames import laid_over
from misfire_export.sources.onnx.importing import adapt
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread

PICTURES = 8
"""Pictures that claims are judged on: eight with thousands of boxes each."""


@dataclass(frozen=True)
class Recognised:
    """Holds what a graph is.

    Attributes:
        fit: the reading that fits.
        tail: the post-processing part.
        graph: computes all tensors of the part, with the input of a bundle.
        said: what to print.
    """

    fit: Fit
    tail: Tail
    graph: onnx.ModelProto
    said: str

    @property
    def contract(self) -> InputContract:
        """Returns the input contract: the layout's, with what the user stated laid over it."""
        return self.fit.contract


def recognise(
    given: onnx.ModelProto,
    frames: Examples,
    image: Mapping[str, Any],
    *,
    layout: str = "",
    classes: int = 0,
    at_least: int = 0,
) -> Recognised:
    """Returns the layout that fits the graph on these pictures.

    Args:
        given: the graph.
        frames: pictures; labels are not read.
        image: fields of the input contract that the user stated; they win.
        layout: that the user named, "" for any.
        classes: number of classes that the user or the file states, 0 if unknown.
        at_least: classes of the data, for answers that name classes without saying how many there are.

    Raises:
        GraphError: no layout fits, or two do; says which and what to do.
        OutputError: no layout fits, and an answer is not finite.
    """
    layouts = {layout: layout_named(layout)} if layout else dict(LAYOUTS)
    height, width = _size(given, image)
    tail = find_tail(given, width=width, height=height)
    viewer = _Viewer(tail, spread(frames, PICTURES))
    fits, seen = [], None
    for kind in layouts.values():
        contract = _laid_over(kind.contract(width, height), image, given)
        seen = viewer.look(contract, classes, at_least)
        for reading in kind.read(seen):
            dense = decode(reading, seen)
            fits.append(judge(reading, contract, dense))
    assert seen is not None
    if viewer.broken and all(fit.problem for fit in fits):
        raise OutputError(viewer.broken)
    if not fits and viewer.odd:
        raise GraphError(viewer.odd)
    best = choose(fits, seen, wanted=layout)
    return Recognised(best, tail, viewer.graph, _said(best, tail))


def _size(given: onnx.ModelProto, image: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of the network's input. Raises ConfigError if nobody states them."""
    own = picture_size(given)
    try:
        height = int(image.get("height", own[0] if own else 0))
        width = int(image.get("width", own[1] if own else 0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--image: height and width must be numbers ({error})") from error
    if min(height, width) < 1:
        raise ConfigError(
            'the graph leaves its input\'s size open: state it with --image \'{"height": 640, "width": 640}\''
        )
    return height, width


def picture_size(model: onnx.ModelProto) -> tuple[int, int] | None:
    """Returns height and width of the graph's picture, None if it has none or leaves them open."""
    held = {item.name for item in model.graph.initializer}
    for value in model.graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.name in held or len(dims) != 4:
            continue
        last = dims[3] in (1, 3) and dims[1] not in (1, 3)
        height, width = dims[1:3] if last else dims[2:4]
        return (height, width) if height > 0 and width > 0 else None
    return None


def own_picture(model: onnx.ModelProto) -> tuple[int, int, int] | None:
    """Returns channels, height and width of a detector's picture, None if the graph leaves them open."""
    size = picture_size(model)
    return None if size is None else (3, *size)


def _laid_over(contract: InputContract, image: Mapping[str, Any], given: onnx.ModelProto) -> InputContract:
    """Returns the layout's contract with what the user stated; a graph of bytes normalises by itself."""
    stated = dict(image)
    held = {item.name for item in given.graph.initializer}
    pixels = any(
        value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        for value in given.graph.input
        if value.name not in held
    )
    if pixels:
        stated = {"dtype": "uint8", "mean": (0.0,), "std": (1.0,), **stated}
    return laid_over(contract, stated)


class _Viewer:
    """Runs the tail on pictures, once for each input contract."""

    def __init__(self, tail: Tail, frames: Examples) -> None:
        self.tail, self.frames = tail, frames
        self.odd = self.broken = ""
        self._graph: onnx.ModelProto | None = None
        self._session: ort.InferenceSession | None = None
        self._seen: dict[str, dict[str, NDArray[np.float32]]] = {}

    @property
    def graph(self) -> onnx.ModelProto:
        """Returns the graph that computes all tensors of the tail."""
        assert self._graph is not None
        return self._graph

    def look(self, contract: InputContract, classes: int, at_least: int) -> Seen:
        """Returns the tail with its values on the pictures."""
        if self._graph is None:
            self._graph, _ = adapt(keep_outputs(self.tail.model, self.tail.tensors), contract)
            self._session = open_session(self._graph)
        key = contract.model_dump_json()
        if key not in self._seen:
            self._seen[key] = self._run(contract)
        return Seen(
            outputs=self.tail.outputs,
            values=self._seen[key],
            before=self.tail.before,
            makers=self.tail.makers,
            width=contract.width,
            height=contract.height,
            classes=classes,
            at_least=at_least,
            cut=self.tail.cut,
            inputs=self.tail.inputs,
        )

    def _run(self, contract: InputContract) -> dict[str, NDArray[np.float32]]:
        assert self._session is not None
        numeric = [
            value.name
            for value in self._session.get_outputs()
            if value.type.startswith("tensor(") and "string" not in value.type and "bool" not in value.type
        ]
        rows: dict[str, list[NDArray[Any]]] = {name: [] for name in self.tail.tensors if name in numeric}
        for position in range(len(self.frames)):
            picture = self.frames.batch([position], contract).numpy()
            for name, value in zip(rows, self._answer(list(rows), contract, picture), strict=True):
                rows[name].append(value)
        return {
            name: values for name, parts in rows.items() if (values := self._joined(name, parts)) is not None
        }

    def _answer(
        self, names: Sequence[str], contract: InputContract, picture: NDArray[Any]
    ) -> list[NDArray[Any]]:
        assert self._session is not None
        try:
            return list(self._session.run(names, {contract.name: picture}))
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise GraphError(
                f"the graph does not run on {contract.name} {list(picture.shape)}: {reason}"
            ) from error

    def _joined(self, name: str, parts: Sequence[NDArray[Any]]) -> NDArray[np.float32] | None:
        """Returns the values of all pictures; None of a tensor that has not one row for each picture."""
        shapes = {part.shape for part in parts}
        if len(shapes) != 1 or parts[0].ndim < 1 or parts[0].shape[0] != 1:
            if name in self.tail.outputs and parts[0].ndim >= 2:
                self.odd = (
                    f"output {own_name(name)} has shape {list(parts[0].shape)} for 1 frame: its first axis "
                    "must be the batch, one row for each frame; export the model without its suppression, or "
                    "with a fixed number of boxes"
                )
            return None
        values = np.asarray(np.concatenate(parts), np.float32)
        if name in self.tail.outputs and not np.isfinite(values).all():
            # Perhaps only with pixels of 0..255, which another layout has: a network in halves overflows.
            wrong = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0])
            self.broken = f"output {own_name(name)} is NaN or infinite for image {self.frames.ids[wrong]}"
            return None
        return values


def _said(fit: Fit, tail: Tail) -> str:
    """Returns what was recognised, and why, for people."""
    reading, contract = fit.reading, fit.contract
    where = "" if not tail.cut else f", before {tail.cut}" if not reading.final else f", after {tail.cut}"
    near = "" if np.isnan(fit.near) else f", {fit.near:.1f} cells from their own (median)"
    image = f"{contract.color}, {contract.resize}"
    if contract.resize.startswith("letterbox"):
        image += f" with {contract.pad}"
    numbers = f"mean {_short(contract.mean)}, std {_short(contract.std)}"
    numbers = "bytes" if contract.dtype == "uint8" else numbers
    return (
        f"layout {reading.layout}: {reading.why}{where}; on {PICTURES} pictures {fit.inside:.0%} of the "
        f"boxes lie inside{near}; input {contract.width}x{contract.height} {image}, {numbers}"
    )


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
