"""Inference engines: one protocol, ONNX Runtime behind it, TensorRT beside it.

bundle --load_engine--> Engine --infer--> {output name: array}

A provider that a package lists is not a provider that works: after creation the session is asked what it
really runs on, and an explicit wish that was not met is an error. Every engine is warmed up before it is
handed out, so that a swap (`misfire_runtime.scoring`) never shows the first frame's compilation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import ENGINE_CACHE, Bundle
from misfire_runtime.errors import EngineError
from misfire_runtime.preprocess import InputContract

Provider = Literal["auto", "cpu", "cuda", "tensorrt-provider", "tensorrt"]
_ORT_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-provider": "TensorrtExecutionProvider",
}
_AUTO_ORDER = ("cuda", "cpu")
WARM_UP_RUNS = 2


class Engine(Protocol):
    """Runs a bundle's graph.

    name: what calibration is keyed by, such as "onnxruntime-cpu".
    provider: what it verifiably runs on, in the engine's own words.
    """

    name: str
    provider: str

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """image [N,C,H,W] as the input contract says; gives every output of the manifest by its name.

        Raises EngineError where the engine fails.
        """
        ...

    def close(self) -> None:
        """Frees the engine's memory; it cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class EngineOptions:
    """provider: "auto" takes the fastest that works. threads: intra-op threads on the CPU."""

    provider: Provider = "auto"
    threads: int = 1
    device: int = 0


def load_engine(bundle: Bundle, *, options: EngineOptions | None = None) -> Engine:
    """Loads, verifies and warms up an engine for a bundle.

    Raises EngineError where the wanted provider does not work here or the graph does not fit the manifest.
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


class OnnxRuntimeEngine:
    """A session of ONNX Runtime on the CPU, CUDA or TensorRT provider."""

    def __init__(self, bundle: Bundle, *, options: EngineOptions | None = None) -> None:
        """Raises EngineError where ONNX Runtime is missing, or refuses the graph or the provider."""
        self._options = options or EngineOptions()
        self._bundle = bundle
        self._session = self._create()
        self.provider = str(self._session.get_providers()[0])
        self.name = "onnxruntime-" + _short_name(self.provider)
        self._input = _check_input(self._session, bundle.manifest.input)
        self._outputs = _check_outputs(self._session, [output.name for output in bundle.manifest.outputs])

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See Engine."""
        try:
            values = self._session.run(self._outputs, {self._input: image})
        except Exception as error:
            raise EngineError(
                f"{self._bundle.manifest.label} on {self.provider}: {_first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drops the session."""
        self._session = None

    def _create(self) -> Any:
        if find_spec("onnxruntime") is None:
            raise EngineError("ONNX Runtime is not installed: pip install 'misfire[cpu]' or 'misfire[gpu]'")
        import onnxruntime as ort

        if not hasattr(ort, "InferenceSession"):
            raise EngineError(
                "onnxruntime is broken: onnxruntime and onnxruntime-gpu overwrite each other; keep one"
            )
        listed = ort.get_available_providers()
        auto = self._options.provider == "auto"
        wishes = [w for w in _AUTO_ORDER if _ORT_PROVIDERS[w] in listed] if auto else [self._options.provider]
        problem = "no provider is installed"
        for wish in wishes:
            provider = _ORT_PROVIDERS[wish]
            if provider not in listed:
                raise EngineError(f"provider {wish} is not in this ONNX Runtime; it has {', '.join(listed)}")
            session, problem = self._try(ort, provider)
            if session is not None:
                return session
        raise EngineError(f"{self._bundle.model_path}: {problem}")

    def _try(self, ort: Any, provider: str) -> tuple[Any, str]:
        """A session that verifiably runs on `provider`, or None and why not."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._options.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chain: list[Any] = [(provider, self._provider_options(ort, provider))]
        if provider != "CPUExecutionProvider":
            chain.append("CPUExecutionProvider")
        try:
            session = ort.InferenceSession(str(self._bundle.model_path), options, providers=chain)
        except Exception as error:  # noqa: BLE001  (a provider raises types of its own)
            return None, _first_line(error)
        running = session.get_providers()
        if not running or running[0] != provider:
            return None, f"{provider} did not load; the session fell back to {', '.join(running)}"
        return session, ""

    def _provider_options(self, ort: Any, provider: str) -> dict[str, Any]:
        if provider == "CPUExecutionProvider":
            return {}
        common = {"device_id": self._options.device}
        if provider == "CUDAExecutionProvider":
            return common
        cache = engine_cache(
            self._bundle, runtime=f"ort-{ort.__version__}", device=f"gpu{self._options.device}"
        )
        return {
            **common,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": True,
            "trt_fp16_enable": self._bundle.manifest.precision == "fp16",
            "trt_int8_enable": self._bundle.manifest.precision == "int8",
        }


def engine_cache(bundle: Bundle, *, runtime: str, device: str) -> Path:
    """The folder for engines compiled from this very graph; another graph, runtime or GPU has another.

    Raises EngineError where it cannot be made.
    """
    manifest = bundle.manifest
    parts = (manifest.files[bundle.model_path.name].sha256, runtime, device, manifest.precision)
    folder = bundle.path / ENGINE_CACHE / hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{folder}: {error.strerror}; the engine cache must be writable") from error
    return folder


def _native_tensorrt(bundle: Bundle, options: EngineOptions) -> Engine:
    """TensorRT without ONNX Runtime; its own module, so that nothing here imports it."""
    try:
        module = import_module("misfire_runtime.tensorrt_engine")
    except ImportError as error:
        raise EngineError(
            f"native TensorRT is not available: {error}; pip install 'misfire[tensorrt]'"
        ) from error
    engine: Engine = module.TensorRTEngine(bundle, options=options)
    return engine


def _short_name(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _check_input(session: Any, contract: InputContract) -> str:
    inputs = {item.name: item for item in session.get_inputs()}
    if contract.name not in inputs:
        raise EngineError(f"the graph has no input {contract.name!r}; it has {', '.join(inputs)}")
    expected = "tensor(uint8)" if contract.dtype == "uint8" else "tensor(float)"
    found = inputs[contract.name].type
    if found != expected:
        raise EngineError(f"input {contract.name!r} is {found}; the manifest says {expected}")
    return contract.name


def _check_outputs(session: Any, wanted: Sequence[str]) -> list[str]:
    present = {item.name for item in session.get_outputs()}
    missing = [name for name in wanted if name not in present]
    if missing:
        raise EngineError(
            f"the graph has no output {', '.join(missing)}; it has {', '.join(sorted(present))}"
        )
    return list(wanted)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
