"""Chooses the severity at which a corruption is worth judging: where a tenth to a half of the frames fail.

Under a shift in which all frames fail, or none, no score can be told from another. The share is measured on
held-out frames of the run, so that no judged frame decides how it is judged.
"""

from __future__ import annotations

import numpy as np
import torch

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import SEVERITIES, corrupt_all
from misfire_train.heads.data import image_batches, on_cpu
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe
from misfire_train.tasks import Task

LEAST_FAILED, MOST_FAILED = 0.1, 0.5
FRAMES = 200
"""Frames that show the share to three points."""


def adapt_severity(
    probe: Probe, task: Task, examples: Examples, family: str, *, contract: InputContract, seed: int = 0
) -> int:
    """Returns the mildest severity at which a tenth to a half of the frames fail, else the nearest to that.

    Args:
        probe: the network.
        task: that knows failures.
        examples: labelled frames that are not judged; FRAMES of them are used.
        family: the corruption.
        contract: the network's input.
        seed: of frames and corruption.
    """
    chosen = np.sort(np.random.default_rng([seed, 13]).permutation(len(examples))[:FRAMES])
    some, shares = examples.take(chosen), []
    for severity in SEVERITIES:
        worse = corrupt_all(some, family, severity=severity, seed=seed)
        shares.append(failed_share(probe, task, worse, contract=contract))
        # Harder ones only fail more.
        if shares[-1] >= LEAST_FAILED:
            break
    distance = [max(LEAST_FAILED - share, share - MOST_FAILED, 0.0) for share in shares]
    return SEVERITIES[int(np.argmin(distance))]


@torch.no_grad()
def failed_share(probe: Probe, task: Task, examples: Examples, *, contract: InputContract) -> float:
    """Returns the share of frames that fail."""
    device = next(probe.parameters()).device
    with evaluating(probe):
        outputs = [
            task.condense(on_cpu(probe(images.to(device))).outputs)
            for images in image_batches(examples, contract)
        ]
    return float(task.failed(torch.cat(outputs), task.collate(examples.targets)).double().mean())
