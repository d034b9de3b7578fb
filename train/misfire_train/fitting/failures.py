"""Settles what counts as a failure if the loss is a number, once per run and before anything is judged.

    a threshold in the config -------------------------------+
    clean held-out losses of the network --quantile(1-share)-+--> Task that fails above it, FailureRecord

The record is in run.json. The was-it-wrong term of the head, `misfire evaluate`, `misfire export` and
retraining all read it (`Run.task`), so that they mean the same failures. Test losses have no influence on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_runtime.preprocess import InputContract
from misfire_train.heads.data import LabelledSet, checked_losses, image_batches, on_cpu
from misfire_train.runs import FailureRecord
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe
from misfire_train.tasks import Task
from misfire_train.train_config import FailureTable


def settle_failures(
    probe: Probe,
    task: Task,
    held_out: LabelledSet,
    *,
    contract: InputContract,
    table: FailureTable,
    part: str = "holdout",
) -> tuple[Task, FailureRecord | None]:
    """Returns the task with its failures defined, and the record for run.json.

    Args:
        probe: the network.
        task: what it does.
        held_out: clean images that the network never fitted.
        contract: the network's input.
        table: the configured threshold or share.
        part: name of the held-out images in the record.

    Returns:
        The task, and the record; None if the task itself defines failures.

    Raises:
        ConfigError: there is no held-out image, or a loss is NaN or negative; names the samples.
    """
    if table.threshold is not None:
        # A stated threshold overrides even a task's own rule.
        settled = task.with_threshold(table.threshold)
        return settled, FailureRecord(threshold=table.threshold, source="stated in the configuration")
    if task.knows_failures:
        return task, None
    losses = clean_losses(probe, task, held_out, contract=contract)
    settled = task.with_worst(losses, share=table.share)
    assert settled.failure_threshold is not None
    source = f"the worst {100 * table.share:g} % of {len(losses)} clean {part} images"
    return settled, FailureRecord(threshold=settled.failure_threshold, source=source)


@torch.no_grad()
def clean_losses(probe: Probe, task: Task, examples: LabelledSet, *, contract: InputContract) -> Tensor:
    """Returns sample losses [N] in eval mode.

    Raises ConfigError that names samples with a NaN or negative loss.
    """
    device = next(probe.parameters()).device
    with evaluating(probe):
        outputs = [
            task.condense(on_cpu(probe(images.to(device))).outputs)
            for images in image_batches(examples, contract)
        ]
    if not outputs:
        return torch.empty(0)
    return checked_losses(task, torch.cat(outputs), task.collate(examples.targets), ids=examples.ids)
