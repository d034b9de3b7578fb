"""Builds a TensorRT engine from a bundle's graph once, caches it under its key, and runs it.

model.onnx --parser, builder, timing cache--> engine/<key>/model.plan --runtime--> context --infer--> outputs

The key is (sha256 of the graph, TensorRT version, GPU, precision): a stale engine cannot serve a new graph.
Written against the Python API of TensorRT 10. Networks are strongly typed if TensorRT can: fp16 and int8
are then exactly what the exporter put into the graph, and scores stay fp32. This class was never executed
by the project, which has no GPU to test on; its graphs are parsed and built in CI (docs/export.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.base import EngineOptions, all_inputs, engine_cache
from misfire_runtime.engines.cuda import Cuda, host_buffer
from misfire_runtime.errors import EngineError
from misfire_runtime.files import write_durably

PLAN, TIMING = "model.plan", "timing.cache"
MAX_BATCH = 8
"""A vehicle scores one frame at a time; `misfire bench` and calibration use batches."""
WORKSPACE_BYTES = 1 << 30
"""Memory that TensorRT may use while it tries kernels; an Orin Nano has 8 GB for all."""


class TensorRTEngine:
    """Runs a bundle on TensorRT, in fixed memory: buffers for the largest batch are allocated once."""

    name = "tensorrt"

    def __init__(
        self, bundle: Bundle, *, options: EngineOptions | None = None, max_batch: int = MAX_BATCH
    ) -> None:
        """Builds the engine, or loads it from the bundle's cache.

        Args:
            bundle: an opened bundle.
            options: names the device.
            max_batch: largest batch.

        Raises:
            EngineError: TensorRT, CUDA or the graph do not work.
        """
        wanted = options or EngineOptions()
        self._bundle, self._max_batch = bundle, max_batch
        self._trt = load_tensorrt()
        self._cuda = Cuda(device=wanted.device)
        self._logger = make_logger(self._trt)
        self.provider = f"TensorRT {self._trt.__version__}"
        plan = self._plan(wanted)
        runtime = self._trt.Runtime(self._logger)
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{bundle.manifest.label}: TensorRT cannot load its engine: {self._logger.last}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{bundle.manifest.label}: no memory for a TensorRT context")
        self._buffers = self._allocate()

    def infer(
        self, image: NDArray[Any], *, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See Engine. Batches above max_batch are refused."""
        if len(image) > self._max_batch:
            raise EngineError(f"a batch of {len(image)} is above this engine's largest, {self._max_batch}")
        held = []
        for name, value in all_inputs(self._bundle.manifest.input, image, inputs).items():
            # The engine's own type: TensorRT may have read int64 as int32.
            array = np.ascontiguousarray(value, self._dtype(name))
            # Until the copies are done: they are asynchronous.
            held.append(array)
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(
                    f"{self._bundle.manifest.label}: {name} {list(array.shape)} does not fit the engine"
                )
            self._cuda.upload(self._buffers[name], array)
        for tensor, pointer in self._buffers.items():
            self._context.set_tensor_address(tensor, pointer)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"{self._bundle.manifest.label} on {self.provider}: {self._logger.last}")
        results = {}
        for output in self._bundle.manifest.outputs:
            shape = tuple(self._context.get_tensor_shape(output.name))
            results[output.name] = host_buffer(shape, self._dtype(output.name))
            self._cuda.download(results[output.name], self._buffers[output.name])
        # The copies are asynchronous: before this, the results are not filled.
        self._cuda.wait()
        return results

    def close(self) -> None:
        """Frees device memory."""
        # The context before the engine, and both before the memory that they use.
        self._context = self._engine = None
        for pointer in self._buffers.values():
            self._cuda.free(pointer)
        self._buffers = {}
        self._cuda.close()

    def _plan(self, options: EngineOptions) -> bytes:
        folder = engine_cache(
            self._bundle, runtime=f"tensorrt-{self._trt.__version__}", device=device_key(options.device)
        )
        plan = folder / PLAN
        # Complete if it is there: `keep` writes it durably.
        if plan.is_file():
            return plan.read_bytes()
        data = build_plan(
            self._trt,
            self._bundle,
            logger=self._logger,
            timing=folder / TIMING,
            max_batch=self._max_batch,
        )
        keep(plan, data)
        return data

    def _allocate(self) -> dict[str, int]:
        """Reserves device memory for every input and output at the largest batch."""
        buffers = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            # -1 is a dimension that depends on the batch.
            shape = [self._max_batch if size < 0 else size for size in self._engine.get_tensor_shape(name)]
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(self._dtype(name)).itemsize
            buffers[name] = self._cuda.allocate(size)
        missing = [o.name for o in self._bundle.manifest.outputs if o.name not in buffers]
        if missing:
            raise EngineError(f"the engine has no output {', '.join(missing)}")
        return buffers

    def _dtype(self, name: str) -> Any:
        return self._trt.nptype(self._engine.get_tensor_dtype(name))


def load_tensorrt() -> Any:
    """Returns TensorRT's Python package.

    Raises:
        EngineError: it is missing, or older than version 10.
    """
    try:
        trt = import_module("tensorrt")
    except ImportError as error:
        raise EngineError(f"TensorRT is not installed ({error}): pip install 'misfire[tensorrt]'") from error
    if int(str(trt.__version__).split(".")[0]) < 10:
        raise EngineError(
            f"TensorRT {trt.__version__} is too old; version 10 is needed (JetPack 6.1 or later)"
        )
    return trt


def build_plan(trt: Any, bundle: Bundle, *, logger: Any, timing: Path, max_batch: int = MAX_BATCH) -> bytes:
    """Builds the engine of a bundle's graph for batches 1..max_batch, and returns it serialised.

    Args:
        trt: TensorRT's Python package.
        bundle: whose graph is built.
        logger: keeps the last error.
        timing: file of kernel measurements, read and written, so that a rebuild takes seconds.
        max_batch: largest batch.

    Raises:
        EngineError: the parser or the builder refuses the graph; with its reason.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(bundle.model_path.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, 3)))
        raise EngineError(f"{bundle.model_path}: TensorRT's parser refuses the graph: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    _set_precision(trt, config, bundle.manifest.precision)
    cache = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    # False: a cache of another GPU is refused, not used.
    config.set_timing_cache(cache, False)
    _add_profile(builder, network, config, max_batch=max_batch)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{bundle.model_path}: TensorRT cannot build an engine: {logger.last}")
    measured = config.get_timing_cache()
    if measured is not None:
        keep(timing, bytes(measured.serialize()))
    return bytes(plan)


def make_logger(trt: Any) -> Any:
    """Returns a TensorRT logger that keeps the last error in `last` and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = (message.strip().splitlines() or [""])[0][:300]

    return Log()


def device_key(device: int) -> str:
    """Returns what tells GPUs apart in the cache: the driver's name for it, else the index."""
    folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if device < len(folders):
        for line in folders[device].read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    model = Path("/proc/device-tree/model")
    if model.is_file():
        return model.read_text(encoding="utf-8", errors="replace").strip("\x00 \n")
    return f"gpu{device}"


def keep(path: Path, data: bytes) -> None:
    """Writes a file of the engine cache: a build cut short must not be loaded as an engine.

    Raises EngineError where the disk refuses.
    """
    try:
        write_durably(path, data, mode=0o600)
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}; the engine cache must be writable") from error


def _network_flags(trt: Any) -> int:
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None else 1 << int(strong)


def _set_precision(trt: Any, config: Any, precision: str) -> None:
    """Sets flags for weakly typed networks; a strongly typed one takes its types from the graph."""
    if _network_flags(trt) or precision == "fp32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)


def _add_profile(builder: Any, network: Any, config: Any, *, max_batch: int) -> None:
    """Adds one optimisation profile, best at batch 1, up to max_batch, if the batch is dynamic."""
    profile, dynamic = builder.create_optimization_profile(), False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            dynamic = True
            low, best, high = (tuple(size if d < 0 else d for d in shape) for size in (1, 1, max_batch))
            profile.set_shape(tensor.name, low, best, high)
    if dynamic:
        config.add_optimization_profile(profile)
