"""Runs a graph over labelled frames and keeps what calibration needs: scores, losses, failures.

graph bytes --session--> ONNX Runtime on the CPU, one thread
Examples --batches--> outputs --task--> Measurement(scores [N], loss [N], failed [N])

All results come from the engine that a vehicle runs, never from torch. Outputs are reduced batch by batch:
label maps of a thousand frames do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from misfire_export.errors import GraphError, OutputError
from misfire_export.graph.rename import own_name
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.tasks import Task

BATCH = 32
FAILED_SHARE = 0.2
"""Share of frames that count as failures if a task states no threshold."""


@dataclass(frozen=True)
class Measurement:
    """Holds one graph over N frames.

    Attributes:
        threshold: loss above which a frame failed, None if the task decides.
        labelled: without labels losses and accuracy are NaN, and no frame counts as failed.
    """

    scores: Mapping[str, NDArray[np.float64]]
    loss: NDArray[np.float64]
    failed: NDArray[np.bool_]
    groups: tuple[str, ...]
    ids: tuple[str, ...]
    accuracy: float
    threshold: float | None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.ids)


def open_session(graph: onnx.ModelProto | bytes, *, threads: int = 1) -> ort.InferenceSession:
    """Returns a CPU session. Raises GraphError with ONNX Runtime's own reason, which names the node."""
    options = ort.SessionOptions()
    # One thread by default: sums then have one order, so the same frames give the same values.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, too, with a message of our own
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GraphError(
            f"ONNX Runtime refuses the graph: {str(error).strip().splitlines()[0][:400]}"
        ) from error


def answers(
    session: ort.InferenceSession,
    examples: Examples,
    *,
    contract: InputContract,
    names: Sequence[str] | None = None,
    batch: int = BATCH,
) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
    """Yields (positions, {output: array}) by batch, in the batch size that the graph is fixed to if it is.

    Raises OutputError on NaN or infinity, naming the image; GraphError if rows and frames differ in number.
    """
    wanted = list(names) if names is not None else [output.name for output in session.get_outputs()]
    # An input's dynamic dimension is a name or None in ONNX Runtime, a fixed one is a number.
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else batch
    for start in range(0, len(examples), batch):
        part = slice(start, min(start + batch, len(examples)))
        images = examples.batch(np.arange(part.start, part.stop), contract).numpy()
        values = run(session, images, contract=contract, names=wanted)
        for name, value in values.items():
            require_rows(name, value, part.stop - part.start)
            require_finite(name, value, examples.ids[part])
        yield part, values


def run(
    session: ort.InferenceSession, images: NDArray[Any], *, contract: InputContract, names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Returns the outputs of one batch. Raises GraphError if the graph does not take it."""
    try:
        values = session.run(list(names), {contract.name: images})
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:400]
        raise GraphError(
            f"the graph does not run on {contract.name} {list(images.shape)}: {reason}"
        ) from error
    return dict(zip(names, values, strict=True))


def require_rows(name: str, value: NDArray[Any], frames: int) -> None:
    """Raises GraphError if an output has not one row for each frame: its first axis is not the batch."""
    rows = value.shape[0] if value.ndim else 0
    if rows != frames:
        raise GraphError(
            f"output {own_name(name)} has shape {list(value.shape)} for {frames} "
            f"frame{'' if frames == 1 else 's'}: its first axis must be the batch, one row for each frame"
        )


def require_finite(name: str, value: NDArray[Any], ids: Sequence[str]) -> None:
    """Raises OutputError that names the output and the first images whose values are NaN or infinite."""
    # Integers cannot be NaN.
    if not np.issubdtype(value.dtype, np.floating):
        return
    rows = np.isfinite(value.reshape(len(value), -1)).all(axis=1)
    if rows.all():
        return
    wrong = [ids[i] for i in np.flatnonzero(~rows)]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise OutputError(f"output {name} is NaN or infinite for image {', '.join(wrong[:3])}{more}")


def measure(
    session: ort.InferenceSession,
    examples: Examples,
    *,
    contract: InputContract,
    task: Task,
    output: str,
    scores: Sequence[str],
    threshold: float | None = None,
    labelled: bool = True,
) -> Measurement:
    """Returns scores, losses and failures of frames through the graph.

    Args:
        session: of the graph.
        examples: frames.
        contract: the graph's input.
        task: computes losses and failures.
        output: the task's output in the graph.
        scores: names without "score.".
        threshold: the loss above which a frame failed. Default: the task's, else the worst fifth of the
            frames.
        labelled: the frames have labels; if not, only scores are read.
    """
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in scores}
    losses, failures, right = [], [], 0.0
    wanted = [*([output] if labelled else ()), *(f"score.{name}" for name in scores)]
    for part, values in answers(session, examples, contract=contract, names=wanted):
        for name in scores:
            columns[name].append(values[f"score.{name}"].astype(np.float64))
        if not labelled:
            continue
        outputs, targets = torch.from_numpy(values[output]).float(), task.collate(examples.targets[part])
        losses.append(task.sample_loss(outputs, targets).numpy().astype(np.float64))
        # Weighted by frames, because the last batch may be smaller.
        right += float(task.accuracy(outputs, targets)) * len(targets)
        if task.knows_failures and threshold is None:
            failures.append(task.failed(outputs, targets).numpy())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not labelled:
        return _without_labels(joined, examples)
    loss = np.concatenate(losses)
    used = threshold if threshold is not None else task.failure_threshold
    if failures:
        failed = np.concatenate(failures)
    else:
        used = used if used is not None else float(np.quantile(loss, 1 - FAILED_SHARE))
        failed = loss > used
    return Measurement(
        scores=joined,
        loss=loss,
        failed=failed.astype(bool),
        groups=examples.groups,
        ids=examples.ids,
        accuracy=right / len(examples),
        threshold=used,
    )


def _without_labels(scores: Mapping[str, NDArray[np.float64]], examples: Examples) -> Measurement:
    count = len(examples)
    return Measurement(
        scores=scores,
        loss=np.full(count, np.nan),
        failed=np.zeros(count, bool),
        groups=examples.groups,
        ids=examples.ids,
        accuracy=float("nan"),
        threshold=None,
        labelled=False,
    )
