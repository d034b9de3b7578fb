"""Judges a trained run's failure scores on your own labelled folder.

    misfire train --dataset digits --out run
    python examples/scores_on_a_folder.py run image-folder:/path/to/images

The folder has one sub-folder per class, named as the run's classes; its test half is judged. The output shows
how well each score finds the failures, which score the release gate would trigger on, and which failures msp
is most confident about.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from misfire_runtime.errors import MisfireError
from misfire_train.data import Examples, load_dataset
from misfire_train.judge import Evidence, GateRules, evaluate
from misfire_train.metrics import aurc, auroc
from misfire_train.runs import Run, load_run
from misfire_train.scores import compute
from misfire_train.tasks import get_task

FREE = ("msp", "entropy", "margin", "energy")


def labelled_as(run: Run, name: str) -> Examples:
    """Returns the folder's test half, with the class numbers of the run.

    Raises:
        MisfireError: the folder has a class that the run does not have.
    """
    dataset = load_dataset(name)
    unknown = sorted(set(dataset.classes) - set(run.record.classes))
    if unknown:
        raise MisfireError(
            f"{name} has the class {unknown[0]!r}; the run knows {', '.join(run.record.classes)}"
        )
    number = np.array([run.record.classes.index(label) for label in dataset.classes], np.int64)
    half = dataset.test
    return Examples(half.images, number[half.targets], half.ids, half.groups)


def main() -> None:
    """Scores every image once, then judges the scores."""
    parser = argparse.ArgumentParser(description="Judge a run's scores on a folder.")
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", help="image-folder:PATH, or any data set with the run's classes")
    options = parser.parse_args()

    run = load_run(options.run)
    examples = labelled_as(run, options.dataset)
    task = get_task(run.record.task)
    with torch.no_grad():
        outputs = run.probe(examples.batch(range(len(examples)), run.record.contract)).outputs
    labels = torch.as_tensor(examples.targets)
    failed, loss = task.failed(outputs, labels).numpy(), task.sample_loss(outputs, labels).numpy()
    print(f"{len(examples)} images, {int(failed.sum())} failures")

    learned = (run.head.name,) if run.head is not None else ()
    scores = compute(run, examples, [*FREE, *learned])
    for name, value in scores.items():
        print(f"{name:18} AUROC {auroc(value, failed):.3f}  AURC {aurc(value, loss):.4f}")
    evidence = Evidence.of(scores, failed=failed, loss=loss, groups=np.array(examples.groups))
    report = evaluate(evidence, GateRules(free=set(FREE)))
    print(f"the gate triggers on: {report.gate.winner}")
    surest = scores["msp"].argsort()
    print("failures that msp is surest about:", ", ".join(examples.ids[i] for i in surest if failed[i])[:200])


if __name__ == "__main__":
    main()
