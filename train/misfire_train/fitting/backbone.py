"""Fits the task network: batches -> forward -> task loss -> AdamW, by epoch; it can be killed at any time.

Everything random in an epoch (order, shifts, corruptions, dropout) depends only on (seed, epoch). So one file
written after each epoch (weights, optimiser, best weights so far, history) is all that a resumed run needs to
end as an uninterrupted one does, bit for bit on one machine. accelerate picks the hardware.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.augment import Augmentation
from misfire_train.data import Examples
from misfire_train.fitting.averaging import AveragedWeights
from misfire_train.progress import Reporter
from misfire_train.runs import write_tensors
from misfire_train.signals import Probe, Signals
from misfire_train.tasks import Task
from misfire_train.train_config import TrainingTable

CHECKPOINT = "checkpoint.safetensors"


class JointObjective(Protocol):
    """Is a head that trains along with the network and may send gradients into it."""

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the optimiser takes over."""
        ...

    def loss(self, signals: Signals, losses: Tensor, *, epoch: int) -> Tensor:
        """Returns a scalar from a batch's signals and its [N] task losses."""
        ...


@dataclass(frozen=True)
class FitData:
    """Holds what a network is fitted on. repeats: [N], how often an epoch shows each training example.

    Of a count of floats, the part behind the point is the probability of one more time.
    """

    train: Examples
    validation: Examples
    contract: InputContract
    repeats: NDArray[np.int64] | NDArray[np.float64] | None = None

    def order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Returns the positions of one epoch, shuffled."""
        positions = np.arange(len(self.train))
        if self.repeats is not None:
            positions = np.repeat(positions, _whole(self.repeats, generator))
        return generator.permutation(positions)


def _whole(
    counts: NDArray[np.int64] | NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Returns whole counts that are right on average over epochs."""
    if counts.dtype.kind == "i":
        return np.asarray(counts, np.int64)
    whole = np.floor(counts)
    return np.asarray(whole + (generator.random(len(counts)) < counts - whole), np.int64)


@dataclass(frozen=True)
class Saving:
    """Specifies how a fit is saved after every epoch.

    resume: start from the file, if there is one. key: identifies what is trained; a checkpoint of something
    else is refused.
    """

    path: Path
    resume: bool = False
    key: str = ""


@dataclass
class Progressed:
    """Holds the progress of a fit. best: validation loss and its epoch (from 0). steps: in the average."""

    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False
    steps: int = 0


def fit_network(
    probe: Probe,
    data: FitData,
    *,
    task: Task,
    table: TrainingTable,
    seed: int,
    saving: Saving | None = None,
    joint: JointObjective | None = None,
    reporter: Reporter | None = None,
) -> Progressed:
    """Trains `probe.model` in place and leaves it in eval mode with the weights of its best epoch.

    Those are averaged over steps if the table says so; what is averaged is what is validated.

    Raises ConfigError if the loss becomes NaN (the learning rate is too high), or if `saving` has a
    checkpoint of something else.
    """
    reporter = reporter or Reporter(quiet=True)
    accelerator = Accelerator()
    parameters = [*probe.model.parameters(), *(joint.parameters() if joint else [])]
    optimizer = torch.optim.AdamW(parameters, lr=table.learning_rate, weight_decay=table.weight_decay)
    probe, optimizer = accelerator.prepare(probe, optimizer)
    model = accelerator.unwrap_model(probe).model
    state = Progressed()
    best = _snapshot(model)
    average = AveragedWeights(model, decay=table.ema) if table.ema else None
    if saving is not None and saving.resume and saving.path.is_file():
        state, best = _restore(saving, model, optimizer, joint, average)
        reporter.line(f"resumed after epoch {state.epoch} of {table.epochs}")
    augmentation = Augmentation.of(table, task=task, contract=data.contract)
    loop = _Loop(accelerator, probe, optimizer, data, task, table, augmentation, joint, average, seed)
    with reporter.steps("training", table.epochs - state.epoch) as steps:
        while state.epoch < table.epochs and not state.stopped:
            train_loss = loop.epoch(state.epoch)
            with average.in_use() if average else nullcontext():
                loss, accuracy = evaluate(model, data.validation, task=task, contract=data.contract)
                weights = _snapshot(model) if loss < state.best_loss else best
            if not (math.isfinite(train_loss) and math.isfinite(loss)):
                raise ConfigError(
                    f"the loss is not finite after epoch {state.epoch + 1}; lower training.learning_rate "
                    f"(now {table.learning_rate})"
                )
            state.history.append({"train_loss": train_loss, "validation_loss": loss, "accuracy": accuracy})
            if loss < state.best_loss:
                state.best_loss, state.best_epoch, best = loss, state.epoch, weights
            state.epoch += 1
            state.steps = average.steps if average else 0
            state.stopped = state.epoch - 1 - state.best_epoch >= table.patience
            steps.advance()
            reporter.line(
                f"epoch {state.epoch}/{table.epochs}  loss {train_loss:.4f}  validation {loss:.4f}  "
                f"accuracy {100 * accuracy:.2f} %"
                + ("  (stops: no better for a while)" if state.stopped else "")
            )
            if saving is not None and accelerator.is_main_process:
                _save(saving, model, optimizer, joint=joint, average=average, state=state, best=best)
    # The best epoch, not the last one: the last ones are those that brought nothing.
    model.load_state_dict(best)
    model.eval()
    return state


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, *, task: Task, contract: InputContract, batch: int = 256
) -> tuple[float, float]:
    """Returns mean sample loss and accuracy in eval mode; the previous mode is restored."""
    device = next(model.parameters()).device
    outputs = []
    # Maps and boxes of so many frames may not fit into memory.
    batch = min(batch, task.score_batch)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(examples), batch):
            positions = np.arange(start, min(start + batch, len(examples)))
            answer = model(examples.batch(positions, contract).to(device))
            outputs.append(task.condense(answer.float().cpu()))
    finally:
        model.train(training)
    joined, truth = torch.cat(outputs), task.collate(examples.targets)
    return float(task.sample_loss(joined, truth).mean()), float(task.accuracy(joined, truth))


@dataclass(frozen=True)
class _Loop:
    """Holds what every epoch needs. Everything random in an epoch depends only on (seed, epoch)."""

    accelerator: Accelerator
    probe: nn.Module
    optimizer: Any
    data: FitData
    task: Task
    table: TrainingTable
    augmentation: Augmentation
    joint: JointObjective | None
    average: AveragedWeights | None
    seed: int

    def epoch(self, number: int) -> float:
        """Trains one epoch; returns its mean loss."""
        # A prime above the largest number of epochs: no two (seed, epoch) pairs of small seeds share a
        # generator.
        torch.manual_seed((self.seed * 1_000_003 + number) % 2**63)
        generator = np.random.default_rng([self.seed, number])
        batches = list(_batches(self.data.order(generator), self.table.batch, self.accelerator))
        augmentation = self.augmentation.at(number / self.table.epochs)
        self.probe.train()
        total = torch.zeros((), device=self.accelerator.device)
        for done, positions in enumerate(batches):
            rate = _rate(self.table, (number + done / len(batches)) / self.table.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            images, targets = augmentation.batch(self.data.train, positions, generator)
            total += self._step(images, targets, epoch=number)
        self.probe.eval()
        return float(total / max(1, len(batches)))

    def _step(self, images: Tensor, targets: Tensor, *, epoch: int) -> Tensor:
        device = self.accelerator.device
        images, targets = images.to(device), targets.to(device)
        signals = self._signals(images)
        loss = self.task.training_loss(signals.outputs, targets)
        whole = loss
        if self.joint is not None:
            whole = loss + self.joint.loss(
                signals, self.task.sample_loss(signals.outputs, targets), epoch=epoch
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(whole)
        # A rare large gradient must not undo an epoch.
        self.accelerator.clip_grad_norm_(self.probe.parameters(), 5.0)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return loss.detach()

    def _signals(self, images: Tensor) -> Signals:
        """Returns the forward pass in the configured precision, its results in fp32."""
        if self.table.precision == "fp32":
            found: Signals = self.probe(images)
            return found
        # Half-precision convolutions are fastest with the channels of a pixel side by side.
        ordered = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            found = self.probe(ordered)
        return found.float()


def _batches(order: NDArray[np.int64], size: int, accelerator: Accelerator) -> Iterator[NDArray[np.int64]]:
    """Yields this process's batches; a last one of a single example is left out: batch norm cannot use it."""
    mine = order[accelerator.process_index :: accelerator.num_processes]
    # Every process needs the same number of batches, or the others would wait for its gradients.
    mine = mine[: len(order) // accelerator.num_processes]
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        if len(part) > 1:
            yield part


def _rate(table: TrainingTable, at: float) -> float:
    """Returns the learning rate: a linear warm-up, then half a cosine to zero. at: 0..1 of the run."""
    if at < table.warm_up:
        # From a tenth instead of zero, so that the first steps count.
        return table.learning_rate * (0.1 + 0.9 * at / table.warm_up)
    return table.learning_rate * 0.5 * (1 + math.cos(math.pi * (at - table.warm_up) / (1 - table.warm_up)))


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _save(
    saving: Saving,
    model: nn.Module,
    optimizer: Any,
    *,
    joint: JointObjective | None,
    average: AveragedWeights | None,
    state: Progressed,
    best: Mapping[str, Tensor],
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    # The best weights as well: after a resume, the best epoch may be one from before.
    tensors.update({f"best.{name}": value for name, value in best.items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(v) for name, v in moments.items()})
    if average is not None:
        tensors.update({f"average.{name}": value for name, value in average.state().items()})
    if joint is not None:
        tensors.update({f"joint.{i}": value for i, value in enumerate(joint.parameters())})
    words = json.dumps({**asdict(state), "key": saving.key})
    write_tensors(saving.path, tensors, metadata={"state": words})


def _restore(
    saving: Saving,
    model: nn.Module,
    optimizer: Any,
    joint: JointObjective | None,
    average: AveragedWeights | None,
) -> tuple[Progressed, dict[str, Tensor]]:
    path = saving.path
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a checkpoint: {error}; remove it to start again") from error
    if words.pop("key") != saving.key:
        raise ConfigError(
            f"{path} belongs to another configuration; --resume needs the options of the interrupted run"
        )

    def under(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}

    model.load_state_dict(under("model."))
    state = Progressed(**words)
    if average is not None:
        average.restore(under("average."), steps=state.steps)
    if joint is not None:
        with torch.no_grad():
            for i, parameter in enumerate(joint.parameters()):
                parameter.copy_(tensors[f"joint.{i}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in under("optimizer.").items():
        index, _, which = name.partition(".")
        moments.setdefault(int(index), {})[which] = value
    # Only the moments are restored; the learning rate follows from the epoch.
    held = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": held["param_groups"]})
    return state, under("best.")
