"""Trains a loss-predicting head on losses that the task network never fitted; the network stays as it is.

held-out images + corrupted copies --probe, eval, no grad--> parts, losses per unit, failures
parts --objective over all pairs of a batch (+ was it wrong?)--> head --checked on a fifth set aside--> Fitted

The signals are gathered once; after that a step touches only the head, so a thousand take seconds on one core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, corrupt, image_seed
from misfire_train.data.images import DecodedImages
from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.memory import Memory
from misfire_train.heads.published import ConvHead, GapHead
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.heads.residual import BASES, ResidualHead, unit_statistics
from misfire_train.judge.correlation import pair_accuracy
from misfire_train.judge.metrics import aurc, auroc
from misfire_train.objectives import OBJECTIVES, check_losses, ratio_eps
from misfire_train.progress import Reporter
from misfire_train.scores.fitting import FitSet, evaluating, gather
from misfire_train.signals import Probe
from misfire_train.tasks import Task

MIN_HELD_OUT = 20
CHECK_SHARE = 0.2


@dataclass(frozen=True)
class HeadReport:
    """What training a head showed on the fifth of its data that it was not fitted on.

    pair_accuracy: of random held-out pairs.  deviation: of the scores; 0 is a constant.
    collapsed: why the head is of no use, or None.  loss_scale: c of predicted loss = c * exp(score).
    aurc, aurc_base: area under the risk-coverage curve of the head and of the free score it stands on.
    """

    recipe: str
    samples: int
    units: int
    steps: int
    base: str | None
    pair_accuracy: float
    deviation: float
    collapsed: str | None
    loss_scale: float
    auroc: float | None = None
    auroc_base: float | None = None
    aurc: float | None = None
    aurc_base: float | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """A trained head, in eval mode, and its report."""

    head: LossHead
    report: HeadReport


@dataclass(frozen=True)
class LossSet:
    """What a head is trained on. parts: [R,...] each; losses: [R,U], NaN where a unit is missing.

    failed: [R] bool, None where the task has no failure.  image: [R] which image a row is a copy of.
    """

    parts: Parts
    losses: Tensor
    frame_losses: Tensor
    failed: Tensor | None
    image: Tensor

    def __len__(self) -> int:
        return len(self.losses)

    def take(self, rows: Tensor) -> LossSet:
        """Some rows."""
        failed = None if self.failed is None else self.failed[rows]
        parts = tuple(part[rows] for part in self.parts)
        return LossSet(parts, self.losses[rows], self.frame_losses[rows], failed, self.image[rows])


def join_sets(sets: Sequence[LossSet]) -> LossSet:
    """All rows of several."""
    failed = [s.failed for s in sets]
    return LossSet(
        parts=tuple(torch.cat(column) for column in zip(*(s.parts for s in sets), strict=True)),
        losses=torch.cat([s.losses for s in sets]),
        frame_losses=torch.cat([s.frame_losses for s in sets]),
        failed=None if any(f is None for f in failed) else torch.cat([f for f in failed if f is not None]),
        image=torch.cat([s.image for s in sets]),
    )


def fit_head(
    probe: Probe,
    *,
    task: Task,
    recipe: HeadRecipe,
    train: Examples,
    holdout: Examples,
    contract: InputContract,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Fitted:
    """A head for a frozen network. train: what the network was fitted on (the head's memory of it).

    holdout: labelled images that it never saw. Nothing of `probe` changes, not even batch-norm statistics.
    Raises ConfigError on too few held-out images, or losses that are NaN or negative, naming the samples.
    """
    reporter = reporter or Reporter(quiet=True)
    if len(holdout) < MIN_HELD_OUT:
        raise ConfigError(
            f"a head needs at least {MIN_HELD_OUT} held-out images to learn from (a thousand are better), "
            f"got {len(holdout)}"
        )
    torch.manual_seed(seed)
    fit = gather_train(probe, train, task=task, contract=contract, seed=seed)
    versions = [holdout, *corrupted_copies(holdout, recipe, seed=seed)]
    with evaluating(probe), torch.no_grad():
        heads = candidate_heads(probe, recipe, contract=contract, task=task, fit=fit)
        head = heads[0]
        if len(heads) > 1:
            clean = collect(probe, heads[0], holdout, task=task, contract=contract)
            head = heads[best_base(probe, heads, holdout, clean, contract=contract)]
        with reporter.steps("gathering losses", len(versions)) as steps:
            sets = []
            for version in versions:
                sets.append(collect(probe, head, version, task=task, contract=contract))
                steps.advance()
    fitted = fit_on_losses(head, join_sets(sets), recipe=recipe, seed=seed, reporter=reporter)
    return fitted


def gather_train(probe: Probe, train: Examples, *, task: Task, contract: InputContract, seed: int) -> FitSet:
    """Signals of at most 8,192 training images: plenty for a memory of 2,048."""
    if len(train) > 8192:
        train = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[:8192]))
    targets = torch.as_tensor(train.targets)
    return gather(probe, train, targets, contract=contract)


@torch.no_grad()
def candidate_heads(
    probe: Probe,
    recipe: HeadRecipe,
    *,
    contract: InputContract,
    task: Task | None = None,
    fit: FitSet | None = None,
) -> list[LossHead]:
    """One head, or one per free score that the residual may stand on; random weights.

    task, fit: for a residual head only, which remembers the training set.
    """
    blank = torch.zeros(1, contract.channels, contract.height, contract.width)
    with evaluating(probe):
        signals = probe(blank.to(next(probe.parameters()).device))
    channels = {name: int(signals.features[name].shape[1]) for name in probe.feature_names}
    if recipe.kind != "residual" and not channels:
        raise ConfigError(f"{recipe.name} reads feature maps: name the layers to attach to")
    if recipe.kind == "gap":
        return [GapHead(channels=channels)]
    if recipe.kind == "conv":
        return [ConvHead(channels=channels)]
    if task is None or fit is None:
        raise ConfigError(f"{recipe.name} stands on a task and on signals of the training set")
    classes = task.name == "classification"
    memory = Memory.fit(fit.signals.embedding, fit.targets if classes else None, classes=fit.classes)
    # Pooled features overfit where units are many and frames are few; there the output map tells enough.
    maps = tuple(channels) if task.name in ("classification", "regression", "custom") else ()
    sees_embedding = bool(maps) or classes
    width = unit_statistics(task.name, signals, memory, maps=maps, sees_embedding=sees_embedding).shape[2]
    heads: list[LossHead] = []
    for base in BASES[task.name]:
        head = ResidualHead(
            task=task.name, outputs=int(signals.outputs.shape[1]), base=base, embedding=memory.width, maps=maps,
            width=int(width), rows=memory.rows, sees_embedding=sees_embedding,
        )  # fmt: skip
        head.memory.load_state_dict(memory.state_dict())
        heads.append(head)
    return heads


def best_base(
    probe: Probe, heads: Sequence[LossHead], holdout: Examples, clean: LossSet, *, contract: InputContract
) -> int:
    """Which free score ranks the held-out losses best (area under the risk-coverage curve)."""
    areas = []
    loss = clean.frame_losses if clean.failed is None else clean.failed.float()
    outputs = torch.cat([probe(images).outputs for images in image_batches(holdout, contract)])
    for head in heads:
        assert isinstance(head, ResidualHead)
        units = BASES[head.task][head.base](outputs)
        areas.append(aurc(head.pool(units).numpy(), loss.numpy()))
    return int(np.argmin(areas))


def image_batches(examples: Examples, contract: InputContract, *, size: int = 256) -> list[Tensor]:
    """Network input, batch by batch (lazily)."""
    starts = range(0, len(examples), size)
    return _Lazy(examples, contract, starts, size)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Lazy:
    examples: Examples
    contract: InputContract
    starts: range
    size: int

    def __iter__(self) -> Any:
        for start in self.starts:
            positions = np.arange(start, min(start + self.size, len(self.examples)))
            yield self.examples.batch(positions, self.contract)


@torch.no_grad()
def collect(
    probe: Probe, head: LossHead, examples: Examples, *, task: Task, contract: InputContract
) -> LossSet:
    """One pass over the images: the head's parts and the losses. Raises ConfigError naming bad losses."""
    device = next(probe.parameters()).device
    parts: list[Parts] = []
    outputs: list[Tensor] = []
    with evaluating(probe):
        for images in image_batches(examples, contract):
            signals = probe(images.to(device))
            parts.append(tuple(part.cpu() for part in head.extract(signals)))
            outputs.append(signals.outputs.cpu())
    joined, targets = torch.cat(outputs), torch.as_tensor(examples.targets)
    frame = checked_losses(task, joined, targets, ids=examples.ids)
    # A head that answers for the frame learns the frame's loss; one that answers for units, theirs.
    columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    per_unit = isinstance(head, ResidualHead)
    losses = task.unit_losses(joined, targets) if per_unit else frame[:, None]
    knows_failure = task.failed_function is not None or task.failure_threshold is not None
    failed = task.failed(joined, targets) if knows_failure else None
    return LossSet(columns, losses, frame, failed, torch.arange(len(examples)))


def checked_losses(task: Task, outputs: Tensor, targets: Tensor, *, ids: Sequence[str]) -> Tensor:
    """[N] sample losses. Raises ConfigError naming samples whose loss is NaN, infinite or negative."""
    try:
        return check_losses(task.sample_loss(outputs, targets).float(), ids=ids)
    except ValueError as error:
        raise ConfigError(f"{task.name}: {error}") from error


def corrupted_copies(examples: Examples, recipe: HeadRecipe, *, seed: int) -> list[Examples]:
    """`recipe.copies` versions, each image by a family and severity of its own, some by two after another.

    Raises ConfigError on an unknown family.
    """
    names = tuple(FAMILIES) if recipe.families is None else recipe.families
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(
                f"head.families: there is no corruption {name!r}; there are {', '.join(FAMILIES)}"
            )
    if not names:
        return []
    return [
        _copy(examples, names, recipe.mixed, seed=seed * 1009 + number) for number in range(recipe.copies)
    ]


def _copy(examples: Examples, families: Sequence[str], mixed: float, *, seed: int) -> Examples:
    def decode(index: int) -> Image:
        own = image_seed(seed, examples.ids[index])
        generator = np.random.default_rng(own)
        count = 2 if generator.random() < mixed and len(families) > 1 else 1
        image = examples.images[index]
        for family in generator.choice(len(families), count, replace=False):
            image = corrupt(image, families[family], severity=int(generator.integers(1, 6)), seed=own)
        return image

    lazy = DecodedImages(decode, count=len(examples), max_cache_bytes=0)
    return Examples(lazy, examples.targets, examples.ids, examples.groups)


def fit_on_losses(
    head: LossHead, data: LossSet, *, recipe: HeadRecipe, seed: int = 0, reporter: Reporter | None = None
) -> Fitted:
    """The optimiser's part, and the check on a fifth of the images (all copies of an image on one side)."""
    images = int(data.image.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    checked = torch.randperm(images, generator=generator)[: max(2, int(CHECK_SHARE * images))]
    aside = torch.isin(data.image, checked)
    fitting, check = data.take((~aside).nonzero().flatten()), data.take(aside.nonzero().flatten())
    eps = ratio_eps(data.losses[~data.losses.isnan()]) or 1e-12
    if isinstance(head, ResidualHead):
        head.standardise(fitting.parts, fitting.losses, eps=eps)
    _optimise(
        head, fitting, recipe=recipe, eps=eps, generator=generator, reporter=reporter or Reporter(quiet=True)
    )
    head.eval().requires_grad_(False)
    return Fitted(head, check_head(head, check, recipe, samples=len(data), steps=recipe.steps))


def _optimise(
    head: LossHead,
    data: LossSet,
    *,
    recipe: HeadRecipe,
    eps: float,
    generator: torch.Generator,
    reporter: Reporter,
) -> None:
    line = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(
        [{"params": head.parameters()}, {"params": [line], "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    head.train()
    with reporter.steps("training the head", recipe.steps) as steps:
        for _ in range(recipe.steps):
            rows = torch.randint(len(data), (min(recipe.batch, len(data)),), generator=generator)
            batch = data.take(rows)
            members = head.predict_members(batch.parts) if isinstance(head, ResidualHead) else None
            answers = members if members is not None else head.predict(batch.parts)[None]
            loss = sum(
                (_objective(answer, batch, head, line, recipe=recipe, eps=eps) for answer in answers),
                start=torch.zeros(()),
            )
            if not bool(torch.isfinite(loss)):
                raise ConfigError("the head's loss is not finite; lower head.learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            steps.advance()


def _objective(
    answer: Tensor, batch: LossSet, head: LossHead, line: Tensor, *, recipe: HeadRecipe, eps: float
) -> Tensor:
    """The named objective over all units of a batch, and a cross-entropy on whether the frame had failed."""
    there = ~batch.losses.isnan()
    predicted, true = answer[there], batch.losses[there]
    options: dict[str, Any] = {}
    if recipe.objective != "log-loss-regression":
        if len(predicted) > 512:
            chosen = torch.randperm(len(predicted))[:512]
            predicted, true = predicted[chosen], true[chosen]
        options["pairs"] = "all"
    if recipe.objective in ("learning-loss-pp", "log-loss-regression"):
        options["eps"] = eps
    loss = OBJECTIVES[recipe.objective](predicted, true, **options)
    if recipe.wrong_weight and batch.failed is not None:
        logit = head.pool(answer) * torch.exp(line[0]) + line[1]
        wrong = functional.binary_cross_entropy_with_logits(logit, batch.failed.to(logit.dtype))
        loss = loss + recipe.wrong_weight * wrong
    return loss


@torch.no_grad()
def check_head(head: LossHead, check: LossSet, recipe: HeadRecipe, *, samples: int, steps: int) -> HeadReport:
    """What a trained head shows on a set that it was not fitted on."""
    notes: list[str] = []
    score = head.pool(head.predict(check.parts)).numpy().astype(np.float64)
    loss = check.frame_losses.numpy().astype(np.float64)
    accuracy = float(pair_accuracy(score, loss)) if len(np.unique(loss)) > 1 else math.nan
    deviation = float(score.std())
    collapsed = name_collapse(deviation, accuracy)
    scale = float(loss.mean() / max(np.exp(np.clip(score, -50, 50)).mean(), 1e-30))
    values: dict[str, float | None] = {}
    base: NDArray[np.float64] | None = None
    if isinstance(head, ResidualHead):
        base = head.pool(check.parts[0]).numpy().astype(np.float64)
    risk = loss if check.failed is None else check.failed.numpy().astype(np.float64)
    values["aurc"] = float(aurc(score, risk))
    values["aurc_base"] = None if base is None else float(aurc(base, risk))
    if check.failed is not None and 0 < int(check.failed.sum()) < len(check.failed):
        failed = check.failed.numpy()
        values["auroc"] = float(auroc(score, failed))
        values["auroc_base"] = None if base is None else float(auroc(base, failed))
    else:
        notes.append(
            "no failures (or nothing else) among the head's check images: it was judged on losses only"
        )
    return HeadReport(
        recipe=recipe.name, samples=samples, units=int(check.losses.shape[1]), steps=steps,
        base=head.base if isinstance(head, ResidualHead) else None, pair_accuracy=accuracy, deviation=deviation,
        collapsed=collapsed, loss_scale=scale, notes=tuple(notes), **values,
    )  # fmt: skip


def name_collapse(deviation: float, accuracy: float) -> str | None:
    """Why a head has learned nothing, from held-out scores and pairs; None where it has learned something.

    >>> name_collapse(0.0, 0.5)
    'collapsed: the score is a constant'
    >>> name_collapse(1.0, 0.8) is None
    True
    """
    if not math.isfinite(deviation) or deviation < 1e-6:
        return "collapsed: the score is a constant"
    if math.isfinite(accuracy) and accuracy <= 0.5:
        return f"collapsed: pair accuracy {accuracy:.3f} on held-out pairs is no better than chance"
    return None
