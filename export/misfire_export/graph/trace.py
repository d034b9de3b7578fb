"""Traces a scored torch model to one self-contained ONNX graph.

ScoredModel --torch.onnx (dynamo, opset 18)--> graph --tidy--> onnx.ModelProto

The batch dimension is dynamic, the input is `image`, the outputs keep the names that the model gives them.
What the exporter writes beside the graph (stack traces with paths, parameter tables) is left out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import NameFixPass
from torch import Tensor, nn

from misfire_export.errors import TraceError
from misfire_export.graph.tidy import tidy
from misfire_export.graph.tunable import BASE, STATISTICS, TENSORS, TunableHead, initialiser_of, settle
from misfire_runtime.preprocess import InputContract

# The oldest that torch's dynamo exporter writes, so that older engines can read it.
OPSET = 18
# torch.export needs a range for a dynamic dimension.
MAX_BATCH = 1024
_TRACE_BATCH = 2
"""Two: a batch of one would be taken for a constant."""


class PixelInput(nn.Module):
    """Normalises uint8 pixels inside the graph: (x / 255 - mean) / std as one multiply-add."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, *, contract: InputContract) -> None:
        super().__init__()
        self.model = model
        mean = torch.tensor(contract.mean).expand(contract.channels).reshape(1, -1, 1, 1)
        std = torch.tensor(contract.std).expand(contract.channels).reshape(1, -1, 1, 1)
        self.register_buffer("scale", (1 / 255) / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the model's outputs for uint8 images [N,C,H,W]."""
        result: dict[str, Tensor] = self.model(image.float() * self.scale + self.shift)
        return result


def trace(model: nn.Module, *, contract: InputContract) -> onnx.ModelProto:
    """Returns the graph of a module that maps image [N,C,H,W] to {name: tensor}.

    Raises TraceError that names what torch could not export.
    """
    module = PixelInput(model, contract=contract) if contract.dtype == "uint8" else model
    module.eval()
    example = example_input(contract, batch=_TRACE_BATCH)
    names = _output_names(module, example, contract)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
    return export_module(
        module, (example,), input_names=[contract.name], output_names=names, dynamic_shapes=dynamic
    )


def export_module(
    module: nn.Module,
    inputs: tuple[Tensor | list[Tensor], ...],
    *,
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...],
) -> onnx.ModelProto:
    """Returns the tidied graph of any module with tensor inputs. Raises TraceError.

    The tensors of a residual head are initialisers of their own (graph/tunable.py).
    """
    given: tuple[Any, ...] = inputs
    tunable = TunableHead.of(module)
    if tunable is not None:
        tensors = tunable.tensors
        given = (tensors, *inputs)
        dynamic_shapes = ([None] * len(tensors), tuple(dynamic_shapes))
        input_names = [*map(initialiser_of, TENSORS), *input_names]
        output_names = [*output_names, BASE, STATISTICS]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module if tunable is None else tunable,
                given,
                dynamo=True,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        raise TraceError(f"torch cannot export this model: {cause(error)}") from error
    assert program is not None
    # The exporter names values after operators: an `embedding` inside would shadow the output of that name.
    NameFixPass()(program.model)
    proto: onnx.ModelProto = program.model_proto
    if tunable is not None:
        settle(proto, tensors)
    return tidy(proto)


def example_input(contract: InputContract, *, batch: int) -> Tensor:
    """Returns random pixels in the contract's form; seeded, and no other generator is changed."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, contract.channels, contract.height, contract.width)
    if contract.dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def _output_names(module: nn.Module, example: Tensor, contract: InputContract) -> list[str]:
    try:
        with torch.no_grad():
            outputs = module(example)
    except Exception as error:
        shape = f"[N,{contract.channels},{contract.height},{contract.width}]"
        raise TraceError(f"the model does not take {contract.name} {shape}: {cause(error)}") from error
    return list(outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which logs its own internals on every path; none of it concerns the model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def cause(error: BaseException) -> str:
    """Returns the first informative line of the innermost error: exporters wrap it in pages of advice."""
    seen: BaseException = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    text = lines[0] if lines else type(seen).__name__
    return f"{type(seen).__name__}: {text[:300]}"
