"""Scores a set of images: one forward pass per batch, for any number of scores.

    images --batches--> probe --> Signals --> every score --> dict of float32 [N]

Scores of several passes (dropout, flip, image) name the kind in `extra`; the extra passes are shared.
Nothing is trained or changed: it runs in eval mode and restores every module's own mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.preprocess import InputContract
from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import ImageSet, batches, evaluating
from misfire_train.scores.flip import FlipConsistency
from misfire_train.scores.passes import DropoutScore, ImageScore, dropout_samples
from misfire_train.scores.registry import build
from misfire_train.signals import Probe, Score, Signals
from misfire_train.tasks import Task


def compute(
    run_or_probe: Any,
    images: Tensor | ImageSet,
    scores: Sequence[str | Score],
    *,
    task: str | Task | None = None,
    contract: InputContract | None = None,
    batch: int = 256,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Returns each score of each image, {name: float32 [N]}, in one pass over the images.

    Args:
        run_or_probe: a Probe, or a Run (its probe, task, contract and head are used).
        images: [N,C,H,W], or Examples.
        scores: Score objects, or names of scores that need no fitting (and "learning_loss_pp", the run's own
            head).
        task: of a Probe. Default: classification.
        contract: the model's input; a Probe needs it for Examples.
        batch: images at a time.
        ids: names of samples in errors.
        seed: of the dropout passes; two calls with one seed agree.

    Raises:
        ScoreError: the set is empty, a name occurs twice, or a score is NaN or infinite; names the samples.

    >>> from torch import nn
    >>> from misfire_train.signals import Probe
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> result = compute(Probe(model, last_layer="1"), torch.randn(5, 1, 2, 2), ["entropy", "msp"])
    >>> sorted(result), result["msp"].shape, result["msp"].dtype
    (['entropy', 'msp'], (5,), dtype('float32'))
    """
    probe, task, contract = _resolve(run_or_probe, task, contract)
    modules = _modules(run_or_probe, scores, task)
    columns: dict[str, list[Tensor]] = {score.name: [] for score in modules}
    if len(columns) != len(modules):
        raise ScoreError(f"a score is asked for twice: {[score.name for score in modules]}")
    # Examples have names; tensors are named by position.
    if ids is None and not isinstance(images, Tensor):
        ids = images.ids
    with evaluating(probe, *modules), torch.no_grad():
        for part, image in batches(images, contract=contract, size=batch):
            # A seed per batch: the same dropout masks in all batches would correlate their scores.
            for name, value in score_batch(probe, image, modules, seed=seed + part.start).items():
                _check(name, value, part.start, ids)
                columns[name].append(value.cpu())
    return {name: torch.cat(values).numpy().astype(np.float32) for name, values in columns.items()}


def score_batch(probe: Probe, image: Tensor, scores: Sequence[Score], *, seed: int = 0) -> dict[str, Tensor]:
    """Returns all scores of a batch [N,C,H,W], each kind of extra pass made once; modules keep their mode."""
    signals: Signals = probe(image)
    mirrored: Signals | None = None
    stochastic: dict[tuple[int, float], Tensor] = {}
    result = {}
    for score in scores:
        if isinstance(score, FlipConsistency):
            mirrored = mirrored if mirrored is not None else probe(image.flip(3))
            value = score.combine(signals, mirrored)
        elif isinstance(score, DropoutScore):
            key = (score.passes, score.rate)
            if key not in stochastic:
                stochastic[key] = dropout_samples(probe, image, passes=key[0], rate=key[1], seed=seed)
            value = score.combine(stochastic[key])
        elif isinstance(score, ImageScore):
            value = score.combine(signals, image)
        else:
            value = score(signals)
        if value.shape != (len(image),):
            shape = tuple(value.shape)
            raise ScoreError(f"{score.name} gave {shape} for {len(image)} images")
        result[score.name] = value.float()
    return result


def _resolve(
    source: Any, task: str | Task | None, contract: InputContract | None
) -> tuple[Probe, str | Task, InputContract | None]:
    if isinstance(source, Probe):
        return source, task or "classification", contract
    probe, record = getattr(source, "probe", None), getattr(source, "record", None)
    if not isinstance(probe, Probe) or record is None:
        raise ScoreError(f"expected a Probe or a Run, got {type(source).__name__}")
    return probe, task or str(record.task), contract or record.contract


def _modules(source: Any, scores: Sequence[str | Score], task: str | Task) -> list[Score]:
    if not scores:
        raise ScoreError("no score is asked for")
    head = getattr(source, "head", None)
    modules = []
    for score in scores:
        if isinstance(score, Score):
            modules.append(score)
        elif isinstance(head, Score) and head.name == score:
            modules.append(head)
        else:
            modules.extend(build([score], task=task))
    return modules


def _check(name: str, value: Tensor, start: int, ids: Sequence[str] | None) -> None:
    """Raises ScoreError that names the samples whose score is not finite."""
    wrong = (~torch.isfinite(value)).nonzero().flatten().tolist()
    if wrong:
        shown = ", ".join(ids[start + i] if ids is not None else f"#{start + i}" for i in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ScoreError(f"score {name} is not finite for {shown}{more}")
