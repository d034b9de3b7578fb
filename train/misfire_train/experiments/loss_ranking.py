"""Compares which objective ranks losses best: the same head, inputs, batches and steps, another objective.

    per data set and seed:  small network on half the training images, frozen -> signals of held-out images
        -> one head per objective on (signals, held-out loss) -> judged on the test set, clean and shifted

The head is an MLP on pooled features and output statistics. It is trained on held-out images and one
corrupted copy of each; the shifts that it is judged on are other families. Weights are not decayed, so that
their growth shows. Entropy and MSP are listed too: a head that does not beat them is not worth its cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from misfire_train import metrics
from misfire_train.data import Dataset, Examples, split
from misfire_train.data.corruptions import corrupt
from misfire_train.errors import ScoreError
from misfire_train.models import build_model
from misfire_train.objectives import learning_loss, learning_loss_pp, log_loss_regression, rank_bce, ratio_eps
from misfire_train.scores.fitting import FitSet, gather
from misfire_train.scores.output_only import Energy, Entropy, Msp
from misfire_train.signals import Probe, Signals
from misfire_train.tasks.classification import Classification

OBJECTIVES = ("learning-loss", "learning-loss-pp", "rank-bce", "log-loss-regression")
FREE = ("entropy", "msp")
SEEN = ("shot", "motion", "jpeg", "glare")
UNSEEN = ("noise", "blur", "night", "fog")
CONDITIONS = ("clean", "shifted")


@dataclass(frozen=True)
class Protocol:
    """Holds everything that the outcome depends on.

    train: maximum number of images, half of them for the network.
    """

    seeds: int = 5
    train: int = 4000
    test: int = 2000
    epochs: int = 6
    width: int = 8
    severity: int = 3
    steps: int = 500
    long_steps: int = 1000
    batch: int = 256
    hidden: int = 64
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Judged:
    """Holds head inputs [N,D], the network's signals, losses [N] and failures [N] of one set."""

    inputs: Tensor
    signals: Signals
    loss: Tensor
    failed: NDArray[np.bool_]


def shifted(examples: Examples, families: Sequence[str], *, severity: int, seed: int) -> Examples:
    """Returns each image under one of the families, in turn."""
    images = [
        corrupt(image, families[i % len(families)], severity=severity, seed=seed + i)
        for i, image in enumerate(examples.images)
    ]
    return Examples(images, examples.targets, examples.ids, examples.groups)


def head_inputs(signals: Signals) -> Tensor:
    """Returns the inputs of a head, [N,D].

    They are pooled features, sorted top-5 log-softmax, entropy, MSP log-odds, energy and log feature norm.
    """
    log_p = torch.log_softmax(signals.outputs, 1)
    top = log_p.topk(min(5, log_p.shape[1]), dim=1).values
    rest = Msp()(signals).clamp_min(1e-12)
    norm = signals.last_input.square().sum(1).clamp_min(1e-12).log()
    columns = [Entropy()(signals), torch.log(rest), Energy()(signals), norm]
    return torch.cat([signals.last_input, top, torch.stack(columns, 1)], 1)


def train_network(data: FitData, dataset: Dataset, protocol: Protocol) -> Probe:
    """Trains a small residual network by AdamW with a cosine schedule; returns it frozen and in eval mode."""
    built = build_model(
        "resnet-small",
        task="classification",
        outputs=len(dataset.classes),
        channels=dataset.contract.channels,
        width=protocol.width,
    )
    model = built.module
    total = protocol.epochs * max(1, len(data.labels) // 128)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    model.train()
    step = 0
    while step < total:
        order = torch.randperm(len(data.labels))
        for start in range(0, len(order) - 127, 128):
            chosen = order[start : start + 128]
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(data.images[chosen]), data.labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
    return Probe(model, last_layer=built.last_layer).eval().requires_grad_(False)


@dataclass(frozen=True)
class FitData:
    """Holds images [N,C,H,W] and labels [N] in memory."""

    images: Tensor
    labels: Tensor


def tensors(examples: Examples, dataset: Dataset) -> FitData:
    """Returns all of a set as tensors."""
    images = examples.batch(np.arange(len(examples)), dataset.contract).float()
    return FitData(images, torch.from_numpy(np.asarray(examples.targets, np.int64)))


def judged(probe: Probe, data: FitData) -> Judged:
    """Returns signals, losses and failures of a set under a network."""
    fit: FitSet = gather(probe, data.images, data.labels)
    loss = functional.cross_entropy(fit.signals.outputs, data.labels, reduction="none")
    failed = (fit.signals.outputs.argmax(1) != data.labels).numpy()
    return Judged(head_inputs(fit.signals), fit.signals, loss, failed)


def objective_of(name: str, losses: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the objective with the eps that these losses need. Raises ScoreError on an unknown name."""
    # Keeps ratios and logarithms of losses finite if most of them are zero.
    eps = max(ratio_eps(losses), 1e-6)
    table: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "learning-loss": learning_loss,
        "learning-loss-pp": lambda s, t: learning_loss_pp(s, t, eps=eps),
        "rank-bce": rank_bce,
        "log-loss-regression": lambda s, t: log_loss_regression(s, t, eps=eps),
    }
    if name not in table:
        raise ScoreError(f"unknown objective {name!r}; there are {', '.join(table)}")
    return table[name]


class Head(nn.Module):
    """Standardises its inputs, then applies two hidden layers; [N,D] to [N]."""

    centre: Tensor
    scale: Tensor

    def __init__(self, inputs: Tensor, *, hidden: int) -> None:
        super().__init__()
        self.register_buffer("centre", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0).clamp_min(1e-6))
        self.layers = nn.Sequential(
            nn.Linear(inputs.shape[1], hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns scores [N]."""
        # As in the default head: an unfamiliar shift must not drive the answer without bound.
        value: Tensor = self.layers(((inputs - self.centre) / self.scale).clamp(-6, 6))
        return value.squeeze(1)

    def weight_norm(self) -> float:
        """Returns the L2 norm of all weights and biases."""
        return math.sqrt(sum(float(p.detach().square().sum()) for p in self.parameters()))


def train_head(
    head: Head, name: str, data: Judged, protocol: Protocol, *, steps: int, generator: torch.Generator
) -> None:
    """Trains by Adam without weight decay on random batches of even size."""
    objective = objective_of(name, data.loss)
    optimiser = torch.optim.Adam(head.parameters(), lr=protocol.learning_rate, fused=True)
    # LearningLoss++ pairs the halves of a batch.
    size = min(protocol.batch, len(data.loss)) // 2 * 2
    for _ in range(steps):
        chosen = torch.randperm(len(data.loss), generator=generator)[:size]
        optimiser.zero_grad()
        objective(head(data.inputs[chosen]), data.loss[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def quality(score: Tensor, data: Judged) -> dict[str, float]:
    """Returns Spearman and pair accuracy against the loss, and AURC of failures."""
    values, loss = score.detach().double().numpy(), data.loss.double().numpy()
    return {
        "spearman": float(metrics.spearman(values, loss)),
        "pair_accuracy": float(metrics.pair_accuracy(values, loss)),
        "aurc": float(metrics.aurc(values, data.failed)),
    }


def run_seed(dataset: Dataset, tests: dict[str, FitData], protocol: Protocol, seed: int) -> dict[str, Any]:
    """Returns all objectives on one network: name -> condition -> metrics, and weight norms."""
    chosen = np.random.default_rng(seed).permutation(len(dataset.train))[: protocol.train]
    parts = split(dataset.train.take(chosen), fractions={"train": 0.5, "holdout": 0.5}, seed=seed)
    copies = shifted(parts["holdout"], SEEN, severity=protocol.severity, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = train_network(tensors(parts["train"], dataset), dataset, protocol)
        clean, corrupted = tensors(parts["holdout"], dataset), tensors(copies, dataset)
        both = FitData(
            torch.cat([clean.images, corrupted.images]), torch.cat([clean.labels, corrupted.labels])
        )
        held = judged(probe, both)
        views = {condition: judged(probe, data) for condition, data in tests.items()}
        right = {condition: 1 - float(view.failed.mean()) for condition, view in views.items()}
        result: dict[str, Any] = {"accuracy": right}
        # Every head starts from the same weights and sees the same batches, so only the objective differs.
        for name in OBJECTIVES:
            torch.manual_seed(seed)
            head = Head(held.inputs, hidden=protocol.hidden)
            generator = torch.Generator().manual_seed(seed)
            train_head(head, name, held, protocol, steps=protocol.steps, generator=generator)
            row: dict[str, Any] = {c: quality(head(view.inputs), view) for c, view in views.items()}
            row["weight_norm"] = head.weight_norm()
            more = protocol.long_steps - protocol.steps
            train_head(head, name, held, protocol, steps=more, generator=generator)
            row["weight_norm_long"] = head.weight_norm()
            row["spearman_long"] = {c: quality(head(v.inputs), v)["spearman"] for c, v in views.items()}
            result[name] = row
        for score in (Entropy(), Msp()):
            result[score.name] = {c: quality(score(view.signals), view) for c, view in views.items()}
    return result


def run(
    dataset: Dataset,
    *,
    protocol: Protocol | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Returns mean and standard deviation over seeds of every metric, nested as `run_seed` returns them.

    Raises ScoreError if the data set is not for classification.
    """
    protocol = protocol or Protocol()
    if dataset.task != Classification.name:
        raise ScoreError(f"{dataset.name} is {dataset.task}; this experiment classifies")
    test = dataset.test.take(np.arange(min(protocol.test, len(dataset.test))))
    tests = {
        "clean": tensors(test, dataset),
        # A seed far from those of the training copies.
        "shifted": tensors(shifted(test, UNSEEN, severity=protocol.severity, seed=10_000), dataset),
    }
    rows = []
    for seed in range(protocol.seeds):
        rows.append(run_seed(dataset, tests, protocol, seed))
        found = {name: round(rows[-1][name]["clean"]["spearman"], 3) for name in (*OBJECTIVES, *FREE)}
        progress(f"{dataset.name} seed {seed}: clean Spearman {found}")
    return {"setting": setting(protocol), "table": _merge(rows)}


def setting(protocol: Protocol) -> dict[str, Any]:
    """Returns protocol and shifts as JSON holds them."""
    return {"protocol": asdict(protocol), "seen": list(SEEN), "unseen": list(UNSEEN)}


def _merge(rows: Sequence[Any]) -> Any:
    """Converts nested numbers of several seeds to nested {mean, std}."""
    if isinstance(rows[0], dict):
        return {key: _merge([row[key] for row in rows]) for key in rows[0]}
    values = np.asarray(rows, np.float64)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(values.mean()), 4), "std": round(spread, 4)}


def table_lines(table: dict[str, Any]) -> list[str]:
    """Returns the table as text, one line per objective or free score."""

    def cell(value: dict[str, float]) -> str:
        return f"{value['mean']:.3f} ({value['std']:.3f})"

    lines = [
        f"{'':<20} {'condition':<8} {'Spearman':<15} {'pair accuracy':<15} {'AURC':<15} weight norm, long"
    ]
    for name in (*OBJECTIVES, *FREE):
        for condition in CONDITIONS:
            row = table[name][condition]
            cells = [cell(row[key]) for key in ("spearman", "pair_accuracy", "aurc")]
            norms = [
                cell(table[name][key]) for key in ("weight_norm", "weight_norm_long") if key in table[name]
            ]
            lines.append(
                f"{name:<20} {condition:<8} " + " ".join(f"{c:<15}" for c in (*cells, *norms)).rstrip()
            )
    return lines
