"""Runs a graph with ONNX Runtime, on the CPU, CUDA or TensorRT provider.

A provider that a package lists is not a provider that works: after creation the session is asked what it
really runs on, and a provider that was asked for and does not work is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from numpy.typing import NDArray

from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.base import EngineOptions, all_inputs, engine_cache
from misfire_runtime.errors import EngineError
from misfire_runtime.preprocess import InputContract

_ORT_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-provider": "TensorrtExecutionProvider",
}
# Not TensorRT's provider: it first compiles an engine, which takes minutes.
_AUTO_ORDER = ("cuda", "cpu")


class OnnxRuntimeEngine:
    """Runs a session of ONNX Runtime on the CPU, CUDA or TensorRT provider."""

    def __init__(self, bundle: Bundle, *, options: EngineOptions | None = None) -> None:
        """Raises EngineError where ONNX Runtime is missing, or refuses the graph or the provider."""
        self._options = options or EngineOptions()
        self._bundle = bundle
        self._session = self._create()
        self.provider = str(self._session.get_providers()[0])
        self.name = "onnxruntime-" + _short_name(self.provider)
        self._contract = bundle.manifest.input
        _check_inputs(self._session, self._contract)
        self._outputs = _check_outputs(self._session, [output.name for output in bundle.manifest.outputs])

    def infer(
        self, image: NDArray[Any], *, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See Engine."""
        try:
            values = self._session.run(self._outputs, all_inputs(self._contract, image, inputs))
        except Exception as error:
            raise EngineError(
                f"{self._bundle.manifest.label} on {self.provider}: {_first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Frees the session."""
        # The session has no close method: its memory goes with the last reference.
        self._session = None

    def _create(self) -> Any:
        if find_spec("onnxruntime") is None:
            raise EngineError("ONNX Runtime is not installed: pip install 'misfire[cpu]' or 'misfire[gpu]'")
        import onnxruntime as ort

        # What is left of the shared folder after one of the two was uninstalled.
        if not hasattr(ort, "InferenceSession"):
            raise EngineError(
                "onnxruntime is broken: onnxruntime and onnxruntime-gpu overwrite each other; keep one"
            )
        listed = ort.get_available_providers()
        auto = self._options.provider == "auto"
        wanted = [p for p in _AUTO_ORDER if _ORT_PROVIDERS[p] in listed] if auto else [self._options.provider]
        problem = "no provider is installed"
        for name in wanted:
            provider = _ORT_PROVIDERS[name]
            if provider not in listed:
                raise EngineError(f"provider {name} is not in this ONNX Runtime; it has {', '.join(listed)}")
            session, problem = self._try(ort, provider)
            if session is not None:
                return session
        raise EngineError(f"{self._bundle.model_path}: {problem}")

    def _try(self, ort: Any, provider: str) -> tuple[Any, str]:
        """Returns a session that verifiably runs on `provider`, or None and why not."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._options.threads
        # The graph runs node by node; `threads` are for the inside of a node.
        options.inter_op_num_threads = 1
        # 3 is errors only: warnings about the graph would fill a vehicle's log.
        options.log_severity_level = 3
        # Threads that spin while they wait would take the processor from decoding and the uplink.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chain: list[Any] = [(provider, self._provider_options(ort, provider))]
        if provider != "CPUExecutionProvider":
            # For nodes that the GPU's provider lacks; ONNX Runtime would add it anyway.
            chain.append("CPUExecutionProvider")
        try:
            session = ort.InferenceSession(str(self._bundle.model_path), options, providers=chain)
        except Exception as error:  # noqa: BLE001  (a provider raises types of its own)
            return None, _first_line(error)
        running = session.get_providers()
        # ONNX Runtime falls back to the CPU with no more than a warning.
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


def _short_name(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _check_inputs(session: Any, contract: InputContract) -> None:
    inputs = {item.name: item for item in session.get_inputs()}
    image = "tensor(uint8)" if contract.dtype == "uint8" else "tensor(float)"
    for name, expected in {contract.name: image, **dict.fromkeys(contract.inputs, "tensor(int64)")}.items():
        if name not in inputs:
            raise EngineError(f"the graph has no input {name!r}; it has {', '.join(inputs)}")
        found = inputs[name].type
        if found != expected:
            raise EngineError(f"input {name!r} is {found}; the manifest says {expected}")
    unknown = [name for name in inputs if name != contract.name and name not in contract.inputs]
    if unknown:
        raise EngineError(f"the graph needs {', '.join(unknown)}, too, which the manifest does not name")


def _check_outputs(session: Any, wanted: Sequence[str]) -> list[str]:
    present = {item.name for item in session.get_outputs()}
    missing = [name for name in wanted if name not in present]
    if missing:
        raise EngineError(
            f"the graph has no output {', '.join(missing)}; it has {', '.join(sorted(present))}"
        )
    return list(wanted)


def _first_line(error: Exception) -> str:
    # Some errors of ONNX Runtime have hundreds of lines.
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
