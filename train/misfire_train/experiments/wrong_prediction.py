"""Measures what share of the samples that a score picks the model gets wrong (Aljundi et al. 2022, Table 1).

    per method and seed:  50 labelled -> train -> score the pool -> take 50, count the wrong -> label -> on

A two-layer network on balanced MNIST starts from 5 samples per class, with 5 more per class held out, fixed.
The holdout is both the early-stopping set (accuracy) and the V of S and S_a. Training goes on from the
previous weights with a fresh optimiser. The paper leaves hidden width, learning rate, dropout and patience
open; `Protocol` states ours. Entropy, margin and EGL, which the paper's table omits, are included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.data import Dataset
from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.gradient.egl import Egl
from misfire_train.scores.gradient.wrong_prediction import WrongPrediction, WrongPredictionApprox
from misfire_train.scores.output_only import Entropy, Margin
from misfire_train.scores.sampling import Bald, McDropout
from misfire_train.signals import Signals
from misfire_train.tasks.classification import Classification

METHODS = (
    "wrong_prediction",
    "wrong_prediction_approx",
    "bald",
    "mc_dropout",
    "entropy",
    "margin",
    "egl",
    "random",
)
STOCHASTIC = ("bald", "mc_dropout")
"""Trained and scored with dropout; the others without."""
PUBLISHED = {
    "wrong_prediction": {"1": 90.0, "5": 74.0, "10": 70.0},
    "wrong_prediction_approx": {"1": 91.8, "5": 67.2, "10": 62.0},
    "bald": {"1": 72.2, "5": 57.6, "10": 56.6},
    "mc_dropout": {"1": 70.4, "5": 62.2, "10": 60.6},
}
"""Aljundi et al., Table 1: % wrong among the selected, at steps 1, 5 and 10."""


@dataclass(frozen=True)
class Protocol:
    """Holds everything that the outcome depends on."""

    seeds: int = 10
    steps: int = 10
    per_class: int = 5
    holdout_per_class: int = 5
    query: int = 50
    pool: int = 20_000
    hidden: int = 256
    learning_rate: float = 1e-3
    batch: int = 32
    epochs: int = 60
    patience: int = 10
    dropout: float = 0.5
    passes: int = 20
    eta: float = 1e-3
    sgd_steps: int = 3


@dataclass(frozen=True)
class Pixels:
    """Holds flat images [N,D] and labels of one split."""

    inputs: Tensor
    labels: Tensor

    def take(self, index: NDArray[np.int64]) -> Pixels:
        """Returns the samples at these positions."""
        chosen = torch.from_numpy(index)
        return Pixels(self.inputs[chosen], self.labels[chosen])


@dataclass
class Trace:
    """Holds one method, one seed: wrong % of each selection.

    Test accuracy % before each step and at the end.
    """

    wrong: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


def load_pixels(dataset: Dataset) -> tuple[Pixels, Pixels]:
    """Returns train and test as flat float32 in 0..1.

    Raises ScoreError if the data set is not for classification.
    """
    if dataset.task != Classification.name:
        raise ScoreError(f"{dataset.name} is {dataset.task}; this experiment classifies")

    plain = dataset.contract.model_copy(update={"mean": (0.0,), "std": (1.0,)})

    def flat(examples: Any) -> Pixels:
        inputs = examples.batch(np.arange(len(examples)), plain).flatten(1).float()
        return Pixels(inputs, torch.from_numpy(np.asarray(examples.targets, np.int64)))

    return flat(dataset.train), flat(dataset.test)


def network(inputs: int, classes: int, protocol: Protocol, *, dropout: bool) -> nn.Sequential:
    """Returns inputs-hidden-classes with ReLU; `[:3]` is phi, `[3]` the last layer."""
    drop: nn.Module = nn.Dropout(protocol.dropout) if dropout else nn.Identity()
    hidden = nn.Linear(inputs, protocol.hidden)
    return nn.Sequential(hidden, nn.ReLU(), drop, nn.Linear(protocol.hidden, classes))


def train(
    model: nn.Module, data: Pixels, holdout: Pixels, protocol: Protocol, generator: torch.Generator
) -> None:
    """Trains by Adam from a fresh state.

    Stops after `patience` epochs without a better accuracy on the holdout.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=protocol.learning_rate, fused=True)
    best, waited = -1, 0
    for _ in range(protocol.epochs):
        model.train()
        order = torch.randperm(len(data.labels), generator=generator)
        for start in range(0, len(order), protocol.batch):
            chosen = order[start : start + protocol.batch]
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(data.inputs[chosen]), data.labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        model.eval()
        with torch.no_grad():
            right = int((model(holdout.inputs).argmax(1) == holdout.labels).sum())
        waited = 0 if right > best else waited + 1
        best = max(best, right)
        if waited >= protocol.patience:
            break
    model.eval()


def signals_of(model: nn.Sequential, inputs: Tensor) -> Signals:
    """Returns the signals of the plain forward."""
    hidden = model[:2](inputs)
    last = model[3]
    assert isinstance(last, nn.Linear)
    return Signals(last(hidden), hidden, {}, last.weight, last.bias)


def score_pool(
    method: str, model: nn.Sequential, pool: Signals, *, holdout: Pixels, protocol: Protocol, seed: int
) -> Tensor:
    """Returns scores [N] of the pool by the project's own modules; the highest are picked."""
    if method == "random":
        return torch.rand(len(pool.outputs), generator=torch.Generator().manual_seed(seed))
    if method in STOCHASTIC:
        samples = hidden_dropout(pool, protocol, seed=seed)
        return (Bald() if method == "bald" else McDropout()).combine(samples)
    if method in ("wrong_prediction", "wrong_prediction_approx"):
        held = FitSet(signals_of(model, holdout.inputs), holdout.labels, pool.outputs.shape[1])
        if method == "wrong_prediction_approx":
            return _in_chunks(WrongPredictionApprox.fit(held), pool)
        return _in_chunks(WrongPrediction.fit(held, eta=protocol.eta, steps=protocol.sgd_steps), pool)
    plain = {"entropy": Entropy(), "margin": Margin(), "egl": Egl()}[method]
    return _in_chunks(plain, pool)


def _in_chunks(score: Callable[[Signals], Tensor], pool: Signals, size: int = 4000) -> Tensor:
    parts = [
        score(Signals(pool.outputs[i : i + size], pool.last_input[i : i + size]))
        for i in range(0, len(pool.outputs), size)
    ]
    return torch.cat(parts)


def hidden_dropout(pool: Signals, protocol: Protocol, *, seed: int) -> Tensor:
    """Returns T answers [T,N,K] with dropout on the hidden layer, computed from phi.

    A pass drops the same units for all samples (consistent dropout, as BatchBALD draws its networks).
    """
    assert pool.weight is not None
    generator = torch.Generator().manual_seed(seed)
    kept = 1 - protocol.dropout
    # Dividing by the kept share keeps the expected activation, as nn.Dropout does.
    masks = (torch.rand(protocol.passes, pool.last_input.shape[1], generator=generator) < kept) / kept
    return torch.stack([functional.linear(pool.last_input, pool.weight * mask, pool.bias) for mask in masks])


def draw(
    labels: Tensor, protocol: Protocol, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns balanced, disjoint positions of initial set, holdout, pool.

    ScoreError if a class is too small.
    """
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    classes = int(values.max()) + 1
    each = max(protocol.pool // classes, 1)
    initial, holdout, pool = [], [], []
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(values == label))
        used = protocol.per_class + protocol.holdout_per_class
        if len(members) <= used:
            raise ScoreError(f"class {label} has {len(members)} samples; the protocol needs more than {used}")
        initial.append(members[: protocol.per_class])
        holdout.append(members[protocol.per_class : used])
        pool.append(members[used : used + each])
    return np.concatenate(initial), np.concatenate(holdout), rng.permutation(np.concatenate(pool))


def run_seed(method: str, data: Pixels, test: Pixels, protocol: Protocol, seed: int) -> Trace:
    """Runs one method over all steps. Nothing is picked twice."""
    if method not in METHODS:
        raise ScoreError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    initial, holdout_index, pool_index = draw(data.labels, protocol, seed)
    if protocol.query * protocol.steps > len(pool_index):
        raise ScoreError(f"{protocol.steps} steps of {protocol.query} exceed the pool of {len(pool_index)}")
    holdout = data.take(holdout_index)
    classes = int(data.labels.max()) + 1
    # The caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(data.inputs.shape[1], classes, protocol, dropout=method in STOCHASTIC)
        generator = torch.Generator().manual_seed(seed)
        labelled, trace = initial, Trace()
        train(model, data.take(labelled), holdout, protocol, generator)
        for step in range(protocol.steps):
            with torch.no_grad():
                trace.accuracy.append(accuracy(model, test))
                pool = data.take(pool_index)
                signals = signals_of(model, pool.inputs)
                # No two steps or seeds share random numbers, as a run has fewer than 1,000 steps.
                seed_now = seed * 1000 + step
                score = score_pool(method, model, signals, holdout=holdout, protocol=protocol, seed=seed_now)
                if not bool(torch.isfinite(score).all()):
                    raise ScoreError(
                        f"{method} gave scores that are not finite at step {step + 1}, seed {seed}"
                    )
                chosen = score.topk(protocol.query).indices
                wrong = signals.outputs[chosen].argmax(1) != pool.labels[chosen]
            trace.wrong.append(100 * float(wrong.float().mean()))
            labelled = np.concatenate([labelled, pool_index[chosen.numpy()]])
            pool_index = np.delete(pool_index, chosen.numpy())
            train(model, data.take(labelled), holdout, protocol, generator)
        with torch.no_grad():
            trace.accuracy.append(accuracy(model, test))
    return trace


def accuracy(model: nn.Module, data: Pixels) -> float:
    """Returns the percentage of right answers."""
    return 100 * float((model(data.inputs).argmax(1) == data.labels).float().mean())


def run(
    dataset: Dataset,
    *,
    protocol: Protocol | None = None,
    methods: Sequence[str] = METHODS,
    done: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
    finished: Callable[[dict[str, Any]], None] = lambda _result: None,
) -> dict[str, Any]:
    """Returns the whole table: per method, wrong % and accuracy % per step.

    Args:
        dataset: of classification.
        protocol: Default: the paper's, as far as it is stated.
        methods: of METHODS.
        done: rows of an earlier run of the same protocol, taken as they are.
        progress: called with a line after each method.
        finished: called with the result so far after each method, so that a long run that is stopped loses
            one method at most.

    Returns:
        protocol, methods (name -> wrong_mean, wrong_std, accuracy_mean, accuracy_std, wrong; means and
        deviations over seeds), published, gate (see `gate`).
    """
    protocol = protocol or Protocol()
    data, test = load_pixels(dataset)
    table: dict[str, Any] = {name: row for name, row in (done or {}).items() if name in methods}
    result: dict[str, Any] = {
        "protocol": asdict(protocol),
        "methods": table,
        "published": PUBLISHED,
        "gate": {},
    }
    for method in methods:
        if method not in table:
            table[method] = _row(
                [run_seed(method, data, test, protocol, seed) for seed in range(protocol.seeds)]
            )
            finished(result)
        progress(f"{method:<24} wrong % by step: {table[method]['wrong_mean']}")
    result["methods"] = {name: table[name] for name in methods}
    result["gate"] = gate(table)
    return result


def _row(traces: Sequence[Trace]) -> dict[str, Any]:
    """Returns mean and standard deviation over seeds, and every seed's wrong %."""
    wrong = np.array([trace.wrong for trace in traces])
    right = np.array([trace.accuracy for trace in traces])
    # The sample deviation of a single run is undefined.
    freedom = 1 if len(traces) > 1 else 0
    return {
        "wrong_mean": _rounded(wrong.mean(0)),
        "wrong_std": _rounded(wrong.std(0, ddof=freedom)),
        "accuracy_mean": _rounded(right.mean(0)),
        "accuracy_std": _rounded(right.std(0, ddof=freedom)),
        "wrong": [_rounded(row) for row in wrong],
    }


def gate(table: dict[str, Any]) -> dict[str, bool]:
    """Returns what a reproduction must show; empty if a method or step 5 is missing.

    Step 1: S and S_a at least 80 % wrong, each above BALD and MC-dropout. Step 5: S 5 points above BALD.
    """
    # The four methods of the paper's table.
    needed = METHODS[:4]
    if not all(name in table and len(table[name]["wrong_mean"]) >= 5 for name in needed):
        return {}
    first = {name: table[name]["wrong_mean"][0] for name in needed}
    fifth = {name: table[name]["wrong_mean"][4] for name in needed}
    stochastic = max(first["bald"], first["mc_dropout"])
    return {
        "step1_s_at_least_80": first["wrong_prediction"] >= 80,
        "step1_s_a_at_least_80": first["wrong_prediction_approx"] >= 80,
        "step1_s_above_bald_and_mc_dropout": first["wrong_prediction"] > stochastic,
        "step1_s_a_above_bald_and_mc_dropout": first["wrong_prediction_approx"] > stochastic,
        "step5_s_5_points_above_bald": fifth["wrong_prediction"] >= fifth["bald"] + 5,
    }


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 2) for value in values]
