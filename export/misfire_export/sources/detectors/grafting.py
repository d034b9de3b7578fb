"""Appends decoding, candidates, boxes and scores to a foreign detector's network.

raw tensors --decoder--> best K rows of the dense answer --candidates--> detections, score.*, box.*

All of it is one torch module, traced with the raw tensors as inputs and joined to the foreign graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper, version_converter
from torch import Tensor, nn

from misfire_export.errors import ParityError
from misfire_export.graph.check import opset_of
from misfire_export.graph.tidy import tidy
from misfire_export.graph.trace import MAX_BATCH, OPSET, export_module
from misfire_export.measure.run import open_session
from misfire_export.sources.detectors.decoding import Decoder
from misfire_export.sources.onnx.graft import graft
from misfire_train.signals import Score, Signals
from misfire_train.tasks.detection import Detection

RAW = "misfire/raw"
"""Prefix of the tensors that the decoder reads."""
# torch and ONNX Runtime round differently; a wrong operator differs by far more.
_ROUNDING = 1e-3
_CHANGE, _DRAWS = 1e-6, 24
"""Relative change of raw tensors, by which rounding could change them, and how often it is tried."""


class DetectorHead(nn.Module):
    """Computes detections and scores of the raw tensors of a network.

    Args:
        decoder: reads the first tensors.
        scores: of signals whose last input is the mean of the feature maps.
        task: has the rule.
        maps: number of feature maps among the tensors; they come last.
    """

    def __init__(self, decoder: Decoder, scores: Sequence[Score], *, task: Detection, maps: int = 0) -> None:
        super().__init__()
        self.decoder = decoder
        self.maps = maps
        # More candidates than the rule has are never looked at.
        self.decoder.keep = task.rule.candidates
        self.scores = nn.ModuleList(scores)
        self.task = task

    def signals(self, raw: Sequence[Tensor]) -> Signals:
        """Returns what scores read: the K best rows of the dense answer, and the mean features [N,C]."""
        read = len(raw) - self.maps
        dense = self.decoder(*raw[:read])
        if not self.maps:
            return Signals(dense, dense)
        # Channels of a map come first, those of a transformer's rows last.
        means = [part.mean((2, 3)) if part.ndim == 4 else part.mean(1) for part in raw[read:]]
        return Signals(dense, torch.cat(means, 1))

    def forward(self, raw: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns detections, scores and their details."""
        signals = self.signals(raw)
        result = {self.task.output_name: self.task.answer(signals)}
        for score in self.scores:
            assert isinstance(score, Score)
            result[f"score.{score.name}"] = score(signals).float()
            for name, value in score.details(signals).items():
                result.setdefault(name, value.float())
        if self.maps:
            result["embedding"] = signals.embedding.float()
        return result


def expose_raw(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy whose outputs are these tensors in fp32, named `misfire/raw0` and so on."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [f"{RAW}{place}" for place in range(len(tensors))]
    for tensor, name in zip(tensors, names, strict=True):
        # Labels are integers, and a half network answers in halves: scores compute in fp32.
        copy.graph.node.append(helper.make_node("Cast", [tensor], [name], name, to=onnx.TensorProto.FLOAT))
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return copy


def trace_head(head: DetectorHead, raw: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """Returns the head as a graph of its own. raw: tensors of a frame, for their shapes."""
    # Two frames: torch would take a batch of one for a constant.
    inputs = [torch.from_numpy(np.repeat(value[:1], 2, axis=0)) for value in raw]
    with torch.no_grad():
        outputs = list(head(inputs))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return export_module(
        head.eval(),
        (inputs,),
        input_names=[f"{RAW}{place}" for place in range(len(raw))],
        output_names=outputs,
        dynamic_shapes=([{0: batch} for _ in inputs],),
    )


def append_head(network: onnx.ModelProto, small: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the network and the head as one graph. network: with raw tensors as outputs."""
    joined = onnx.ModelProto()
    joined.CopyFrom(network)
    # All operators of one graph must be of one version.
    if opset_of(joined) > OPSET:
        small = version_converter.convert_version(small, opset_of(joined))
    raw = [value.name for value in joined.graph.output]
    fixed = joined.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    del joined.graph.output[:]
    graft(joined, small, shared=raw)
    if fixed:
        for value in joined.graph.output:
            value.type.tensor_type.shape.dim[0].dim_value = fixed
    return tidy(joined)


class DetectorReference(nn.Module):
    """Runs the network and the head in sessions of their own, frame by frame, as before they were joined."""

    def __init__(self, network: ort.InferenceSession, head: ort.InferenceSession, *, image: str) -> None:
        super().__init__()
        self.network, self.head, self.image = network, head, image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns {output: tensor} of a batch."""
        raw = [value.name for value in self.network.get_outputs()]
        names = [value.name for value in self.head.get_outputs()]
        rows: list[list[Any]] = []
        for part in image:
            tensors = self.network.run(raw, {self.image: part[None].numpy()})
            rows.append(self.head.run(names, dict(zip(raw, tensors, strict=True))))
        return {
            name: torch.from_numpy(np.concatenate(values))
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
        }


def require_same(head: DetectorHead, small: onnx.ModelProto, raw: Sequence[NDArray[np.float32]]) -> None:
    """Raises ParityError if the traced head's scores are not torch's on these frames.

    Only scores are compared: of candidates with one score, torch and ONNX Runtime may pick another order. Of
    two nearly equal ones, rounding decides which is the last candidate: so a frame may have the scores that
    torch gives if the tensors change by as little.
    """
    session = open_session(small)
    names = [value.name for value in session.get_outputs() if value.name.startswith("score.")]
    inputs = {value.name: tensor for value, tensor in zip(session.get_inputs(), raw, strict=True)}
    found = dict(zip(names, session.run(names, inputs), strict=True))
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in raw]
    generator = torch.Generator().manual_seed(0)
    for frame in range(len(tensors[0])):
        own = [value[frame : frame + 1] for value in tensors]
        answer = {name: value[frame : frame + 1] for name, value in found.items()}
        name, gap = first = _worst(head, own, answer)
        for _ in range(_DRAWS):
            if not name:
                break
            changed = [v * (1 + _CHANGE * torch.randn(v.shape, generator=generator)) for v in own]
            name, gap = _worst(head, changed, answer)
        if name:
            name, gap = first
            raise ParityError(f"output {name} differs between torch and ONNX Runtime by {gap:.2e}")


def _worst(
    head: DetectorHead, tensors: Sequence[Tensor], answer: Mapping[str, NDArray[np.float32]]
) -> tuple[str, float]:
    """Returns the score of a frame that differs most from torch's, and by how much; "" if none differs."""
    with torch.no_grad():
        truth = {name: value.numpy() for name, value in head(tensors).items()}
    wrong = {
        name: float(np.abs(value - truth[name]).max())
        for name, value in answer.items()
        if not np.allclose(value, truth[name], rtol=_ROUNDING, atol=_ROUNDING)
    }
    name = max(wrong, key=wrong.__getitem__, default="")
    return name, wrong.get(name, 0.0)
