"""Loads a bundle into a warm engine: bundle --load_engine--> Engine --infer--> {output name: array}

Every engine is warmed up before it is handed out, so that a swap never shows the first frame's
compilation.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.base import Engine, EngineOptions
from misfire_runtime.engines.onnx import OnnxRuntimeEngine
from misfire_runtime.errors import EngineError
from misfire_runtime.preprocess import InputContract

WARM_UP_RUNS = 2


def load_engine(bundle: Bundle, *, options: EngineOptions | None = None) -> Engine:
    """Loads, verifies and warms up an engine for a bundle.

    Args:
        bundle: an opened bundle.
        options: provider, threads and device; None takes the fastest provider that works.

    Raises:
        EngineError: the wanted provider does not work here, or the graph does not fit the manifest.
    """
    wanted = options or EngineOptions()
    if wanted.provider == "tensorrt":
        engine = _native_tensorrt(bundle, wanted)
    else:
        engine = OnnxRuntimeEngine(bundle, options=wanted)
    warm_up(engine, bundle.manifest.input)
    return engine


def warm_up(engine: Engine, contract: InputContract, *, runs: int = WARM_UP_RUNS) -> None:
    """Runs blank frames through, so that lazy initialisation is over before the first real one."""
    dtype = np.uint8 if contract.dtype == "uint8" else np.float32
    blank = np.zeros((1, contract.channels, contract.height, contract.width), dtype)
    for _ in range(runs):
        engine.infer(blank)


def _native_tensorrt(bundle: Bundle, options: EngineOptions) -> Engine:
    """Loads TensorRT without ONNX Runtime. It has its own module, so that nothing here imports it."""
    try:
        module = import_module("misfire_runtime.engines.tensorrt")
    except ImportError as error:
        raise EngineError(
            f"native TensorRT is not available: {error}; pip install 'misfire[tensorrt]'"
        ) from error
    engine: Engine = module.TensorRTEngine(bundle, options=options)
    return engine
