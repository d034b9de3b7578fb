"""Adds a failure score to your own torch model, and compares it with the free scores.

    python examples/own_model.py      # a plain CNN on the digits of scikit-learn; no download

The CNN is an example of a network trained elsewhere: any nn.Module whose layers have names. Its weights, mode
and answers do not change. The head learns from a holdout that the network never saw. It is compared with the
free scores on a test half that neither has seen: clean, and under two corruptions that the head was trained
on. Network and head then become one module, ready for export.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from misfire_runtime.preprocess import InputContract
from misfire_train import attach
from misfire_train.data import Examples, load_dataset, split
from misfire_train.data.corruptions import corrupt_all
from misfire_train.metrics import auroc
from misfire_train.scores import compute
from misfire_train.tasks import get_task


def plain_cnn() -> nn.Sequential:
    """Returns two convolutions and a linear layer; layers are named by position: "0", "2", ..."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, examples: Examples, contract: InputContract, *, steps: int) -> None:
    """Trains the model with cross-entropy on random batches of 64."""
    images = examples.batch(range(len(examples)), contract)
    labels = torch.as_tensor(examples.targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


def main() -> None:
    """Trains the model, attaches a head, and prints the AUROC of each score."""
    parser = argparse.ArgumentParser(description="A failure score for a model of your own.")
    parser.add_argument("--steps", type=int, default=300, help="Training steps of the task model.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = load_dataset("digits")
    parts = split(digits.train, fractions={"train": 0.5, "holdout": 0.5}, seed=options.seed)
    model = plain_cnn()
    train(model, parts["train"], digits.contract, steps=options.steps)
    model.eval()

    attached = attach(model, layers=["1", "3"], task="classification")
    report = attached.fit(
        train=parts["train"], holdout=parts["holdout"], contract=digits.contract, seed=options.seed
    )
    print(f"head fitted on {report.samples} losses: held-out images and corrupted copies of them")
    if report.collapsed:
        print(f"the head learned nothing: {report.collapsed}")

    task = get_task("classification")
    print(f"{'test half':12} {'accuracy':>8}  failure AUROC of each score")
    for weather in ("clean", "fog", "glare"):
        test = digits.test if weather == "clean" else corrupt_all(digits.test, weather, severity=3, seed=1)
        images, labels = test.batch(range(len(test)), digits.contract), torch.as_tensor(test.targets)
        with torch.no_grad():
            failed = task.failed(model(images), labels).numpy()
        scores = compute(attached.probe, images, ["msp", "entropy", attached.score])
        worth = "  ".join(f"{name} {auroc(value, failed):.3f}" for name, value in scores.items())
        print(f"{weather:12} {1 - failed.mean():8.3f}  {worth}")
    outputs = attached.scored_model()(images[:2])
    print("one module for export gives:", ", ".join(f"{k} {tuple(v.shape)}" for k, v in outputs.items()))


if __name__ == "__main__":
    main()
