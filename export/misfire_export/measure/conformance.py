"""Checks whether TensorRT accepts a graph, by its parser and builder, on a machine without a GPU.

graph --OnnxParser (TensorRT-RTX)--> network --Builder, ahead of time for a compute capability--> engine bytes

The engine is thrown away: it cannot run here, and a Jetson builds its own (misfire_runtime.engines.tensorrt).
The check proves that every node is parsed and that a whole engine can be built from them. TensorRT works in a
process of its own: on some graphs (long unrolled loops) its builder never ends, and only the end of the
process stops it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from misfire_export.errors import ConformanceError
from misfire_runtime.errors import MissingExtraError

# As in the vehicle's own TensorRT engine: one frame at a time there, small batches in `misfire bench`.
MAX_BATCH = 8
# Ampere, the generation of Jetson Orin (SM87), for which TensorRT-RTX has no target of its own.
CAPABILITY = "SM86"
TIME_LIMIT_S = 300.0
"""A network of full size takes seconds."""
# An upper limit; the builder takes what it needs.
_WORKSPACE_BYTES = 2 << 30


def check_conformance(
    model: onnx.ModelProto,
    *,
    max_batch: int = MAX_BATCH,
    capability: str = CAPABILITY,
    time_limit_s: float = TIME_LIMIT_S,
) -> dict[str, Any]:
    """Parses and builds the graph for batches 1..max_batch; returns a report for the manifest.

    Raises ConformanceError that names the refused nodes, or after `time_limit_s`, and MissingExtraError
    without TensorRT-RTX.
    """
    require_tensorrt()
    with tempfile.TemporaryDirectory() as folder:
        graph, answer = Path(folder) / "model.onnx", Path(folder) / "answer.json"
        graph.write_bytes(model.SerializeToString())
        # In a process of its own: a crash, or a build without end, must not end the export.
        command = [sys.executable, "-m", __name__, str(graph), str(answer), str(max_batch), capability]
        try:
            done = subprocess.run(
                command, timeout=time_limit_s, capture_output=True, check=False, env=_environment()
            )
        except subprocess.TimeoutExpired:
            raise ConformanceError(
                f"TensorRT did not parse and build the graph of {len(model.graph.node)} nodes within "
                f"{time_limit_s:g} s; leave out scores with long chains of operations"
            ) from None
        if not answer.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ConformanceError(
                f"TensorRT ended without an answer (exit status {done.returncode}): "
                f"{said[-1][:300] if said else 'no output'}"
            )
        report: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "refusal" in report:
        raise ConformanceError(report["refusal"])
    return report


def require_tensorrt() -> None:
    """Raises MissingExtraError without TensorRT-RTX; it is not loaded."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingExtraError(
            "--target tensorrt checks the graph with TensorRT-RTX, which is not installed: "
            "pip install 'misfire[tensorrt-check]' -c constraints.txt"
        )


def parse_and_build(graph: bytes, *, max_batch: int, capability: str) -> dict[str, Any]:
    """Returns the report of `check_conformance`, or {"refusal": why}; runs in a process of its own."""
    import tensorrt_rtx as trt

    logger = _Log(trt)
    builder = trt.Builder(logger)
    # Strongly typed: the precisions are the graph's own, and the builder does not choose others.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        return {"refusal": f"TensorRT's parser refuses the graph: {_parse_errors(parser)}"}
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    # Whether it can be built is the question, not how fast the engine would be.
    config.builder_optimization_level = 0
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    _add_profile(builder, network, config, max_batch=max_batch)
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"refusal": f"TensorRT's builder refuses the graph: {logger.last or 'no reason given'}"}
    return {
        "checked_with": f"tensorrt-rtx {trt.__version__}",
        "capability": capability,
        "max_batch": max_batch,
        "layers": network.num_layers,
        "engine_bytes": engine.nbytes,
        "build_s": round(time.monotonic() - started, 2),
        "executed": False,
    }


def main(arguments: Sequence[str]) -> None:
    """Writes the answer as JSON. arguments: GRAPH ANSWER MAX_BATCH CAPABILITY."""
    graph, answer, max_batch, capability = arguments
    report = parse_and_build(Path(graph).read_bytes(), max_batch=int(max_batch), capability=capability)
    Path(answer).write_text(json.dumps(report), encoding="utf-8")


def _environment() -> dict[str, str]:
    """Returns this process's environment, with its import path.

    A run from a source tree may have put the units on it.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _Log(trt: Any) -> Any:  # noqa: N802  (a class made at run time: its base is in an optional package)
    """Returns a logger that keeps the last error and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message.strip().splitlines()[0][:300] if message.strip() else ""

    return Log()


def _parse_errors(parser: Any) -> str:
    """Returns each refused node with its operator and the parser's reason, at most three."""
    texts = []
    for i in range(min(parser.num_errors, 3)):
        error = parser.get_error(i)
        texts.append(f"{error.node_operator()} (node {error.node_name()}): {error.desc()[:200]}")
    more = f" and {parser.num_errors - 3} more" if parser.num_errors > 3 else ""
    return "; ".join(texts) + more


def _add_profile(builder: Any, network: Any, config: Any, *, max_batch: int) -> None:
    """Adds a profile for batches 1 to max_batch if the batch is dynamic."""
    profile, dynamic = builder.create_optimization_profile(), False
    # TensorRT refuses a dynamic dimension without a range for it.
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        dynamic = True
        # Tuned for one frame, which is what a vehicle scores at a time.
        low, best, high = (tuple(size if d < 0 else d for d in shape) for size in (1, 1, max_batch))
        profile.set_shape(tensor.name, low, best, high)
    if dynamic:
        config.add_optimization_profile(profile)


if __name__ == "__main__":
    main(sys.argv[1:])
