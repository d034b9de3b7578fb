"""Measures the cost of a bundle's scores against the same model without them, for `misfire bench`.

One graph runs in two sessions: with all outputs, and with only the task's output, for which ONNX Runtime runs
only the necessary nodes. Both run in one process and on the same provider, interleaved frame by frame in
random order, so that clock speed and load affect both equally. The result has percentiles of each and the
ratio of the medians.
"""

from __future__ import annotations

import gc
import platform
import random
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import Bundle, Manifest
from misfire_runtime.engines.base import EngineOptions, all_inputs
from misfire_runtime.engines.load import load_engine
from misfire_runtime.errors import ConfigError, EngineError
from misfire_runtime.preprocess import decode_image, to_tensor

Run = Callable[[NDArray[Any]], object]


def measure(
    bundle: Bundle,
    *,
    options: EngineOptions,
    frames: Sequence[NDArray[Any]],
    batch: int = 1,
    rounds: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures latency and memory of a bundle with and without its scores.

    Args:
        bundle: the bundle.
        options: provider and threads.
        frames: inputs of the graph, [1,C,H,W] each.
        batch: frames per call.
        rounds: measured calls of each variant.
        seed: random seed of the order.

    Returns:
        The object that `misfire bench --json` prints: latencies in milliseconds, memory in bytes.
    """
    if options.provider != "tensorrt":
        import onnxruntime  # noqa: F401  (loaded before: the library's memory is not the bundle's)
    before = resident_bytes()
    engine = load_engine(bundle, options=options)
    with_scores = resident_bytes()
    bare, note = bare_runner(bundle, engine, options)
    without = resident_bytes()
    inputs = [
        np.concatenate([frames[(i + j) % len(frames)] for j in range(batch)]) for i in range(len(frames))
    ]
    runs: dict[str, Run] = {"bundle": engine.infer}
    if bare is not None:
        runs["bare"] = bare
    times = interleave(runs, inputs, rounds=rounds, seed=seed)
    result: dict[str, Any] = {
        "bundle": bundle.manifest.label,
        "provider": engine.provider,
        "precision": bundle.manifest.precision,
        "threads": options.threads,
        "batch": batch,
        "rounds": rounds,
        "machine": f"{platform.machine()} {platform.system()}",
        "scores": [score.name for score in bundle.manifest.scores],
        "latency_ms": {name: percentiles(values) for name, values in times.items()},
        "memory_bytes": {
            "bundle": with_scores - before,
            "bare": without - with_scores if bare is not None else None,
            "peak_process": peak_bytes(),
        },
        "note": note,
    }
    if bare is not None:
        result["ratio"] = result["latency_ms"]["bundle"]["p50"] / result["latency_ms"]["bare"]["p50"]
    engine.close()
    return result


def bare_runner(bundle: Bundle, engine: Any, options: EngineOptions) -> tuple[Run | None, str]:
    """Returns a function that computes only the task's output, in its own session; or None and the reason."""
    if options.provider == "tensorrt":
        return None, "a native TensorRT engine computes all outputs; compare with a bundle without scores"
    import onnxruntime as ort

    output, contract = task_output(bundle.manifest), bundle.manifest.input
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = options.threads, 1
    session_options.log_severity_level = 3
    # Threads that spin while they wait would take the processor from the other session.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = list(dict.fromkeys([engine.provider, "CPUExecutionProvider"]))
    try:
        session = ort.InferenceSession(str(bundle.model_path), session_options, providers=providers)
    except Exception as error:
        raise EngineError(f"{bundle.model_path}: {str(error).strip().splitlines()[0][:300]}") from error
    return lambda image: session.run([output], all_inputs(contract, image, None)), ""


def interleave(
    runs: dict[str, Run], inputs: Sequence[NDArray[Any]], *, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Times all functions alternately, in random order, after a tenth of the rounds to warm up.

    Args:
        runs: functions by name.
        inputs: their inputs, used in turn.
        rounds: number of measured calls of each.
        seed: random seed of the order.

    Returns:
        Seconds per call by name.
    """
    order, draw = list(runs), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    # At least three: the first calls allocate memory and choose kernels.
    warm_up = max(3, rounds // 10)
    collecting = gc.isenabled()
    gc.disable()  # a collection within a call would be counted as its latency
    try:
        for i in range(rounds + warm_up):
            # Shuffled each time: the second of two calls finds warm caches.
            draw.shuffle(order)
            for name in order:
                started = time.perf_counter()
                runs[name](inputs[i % len(inputs)])
                if i >= warm_up:
                    times[name].append(time.perf_counter() - started)
    finally:
        if collecting:
            gc.enable()
    return times


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns p50, p95 and p99 in milliseconds."""
    values = np.quantile(np.asarray(seconds) * 1000.0, [0.5, 0.95, 0.99])
    return {name: float(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def load_frames(bundle: Bundle, source: Path | None) -> list[NDArray[Any]]:
    """Returns inputs of the graph, [1,C,H,W] each.

    Args:
        bundle: the bundle.
        source: a folder with pictures, of which the first 64 are used; None uses the bundle's golden inputs.

    Raises:
        ConfigError: there are no pictures or golden inputs.
    """
    contract = bundle.manifest.input
    if source is not None:
        files = (
            sorted(p for p in source.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
            if source.is_dir()
            else []
        )
        if not files:
            raise ConfigError(f"{source}: a folder with .jpg or .png pictures is needed")
        wanted = max(3, contract.channels)
        return [
            to_tensor(decode_image(p.read_bytes(), name=p.name, channels=wanted), contract)
            for p in files[:64]
        ]
    golden = bundle.path / "golden.npz"
    if "golden.npz" not in bundle.manifest.files:
        raise ConfigError(f"{bundle.path} has no golden inputs; give pictures with --source")
    with np.load(golden, allow_pickle=False) as archive:
        images = archive["image"]
    return [images[i : i + 1] for i in range(len(images))]


def task_output(manifest: Manifest) -> str:
    """Returns the name of the task's output."""
    for output in manifest.outputs:
        if output.kind not in ("score", "embedding", "box", "other"):
            return output.name
    return manifest.outputs[0].name


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """Returns the largest resident memory of this process so far; Linux reports it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
