"""Trains a loss-predicting head on losses that the task network never fitted; the network is not changed.

LossSet --leave_out (residual heads)--> strength, columns --objective over random pairs--> head --> Fitted
        --groups set aside (the others)--> objective over random pairs --> head, checked on them --> Fitted

The signals are gathered once; after that a step touches only the head, so hundreds take seconds on one core.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.heads.base import LossHead
from misfire_train.heads.box_training import fit_box_head
from misfire_train.heads.data import (
    LabelledSet,
    LossSet,
    TensorSet,
    collect_each,
    corrupted_copies,
    image_batches,
    join_sets,
    on_cpu,
)
from misfire_train.heads.fitted import CHECK_SHARE, Fitted, HeadReport, name_collapse
from misfire_train.heads.leaving_out import LeftOut, leave_out, narrowed_set
from misfire_train.heads.memory import Memory
from misfire_train.heads.pairs import paired_objective, row_weights, top_objective
from misfire_train.heads.published import ConvHead, GapHead
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.heads.residual import DEVIATION, ResidualHead, remembers_classes, statistics_blocks
from misfire_train.heads.reversal import LEARNING_RATE, GroupClassifier, read_groups
from misfire_train.heads.second_opinion import SecondOpinion
from misfire_train.metrics import aurc, auroc, pair_accuracy
from misfire_train.objectives import ratio_eps
from misfire_train.progress import Reporter
from misfire_train.scores.fitting import evaluating
from misfire_train.scores.output_only import OutputDeviation
from misfire_train.signals import Probe
from misfire_train.tasks import Task
from misfire_train.tasks.answers.statistics import map_statistics
from misfire_train.tasks.detection import Detection

# With fewer, the check (CHECK_SHARE) would be left with less than three images.
MIN_HELD_OUT = 20
# Of ResNet-18 at 224 x 224 only the last stage (25,088 numbers) is below.
MAP_NUMBERS = 32_768
_FOLD_ROWS, _LEAST_FRAMES = 1024, 48
"""Units in a batch of a fold's fit, and frames if a frame has many."""


def fit_head(
    probe: Probe,
    *,
    task: Task,
    recipe: HeadRecipe,
    train: LabelledSet,
    holdout: LabelledSet,
    contract: InputContract,
    copies: Sequence[LabelledSet] | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Fitted:
    """Fits a head for a frozen network. Nothing of `probe` changes, not even batch-norm statistics.

    Args:
        probe: the network.
        task: what it does.
        recipe: how the head is built and trained.
        train: what the network was fitted on (the head's memory of it).
        holdout: labelled images that it never saw.
        contract: the network's input.
        copies: other versions of the holdout. Default: Examples are corrupted as the recipe specifies.
        seed: of weights, copies and batches.
        reporter: shows progress.

    Raises:
        ConfigError: there are too few held-out images, or losses are NaN or negative; names the samples.
    """
    reporter = reporter or Reporter(quiet=True)
    require_enough(holdout)
    torch.manual_seed(seed)
    if copies is None:
        copies = corrupted_copies(holdout, recipe, seed=seed) if isinstance(holdout, Examples) else ()
    if isinstance(task, Detection) and recipe.kind == "residual":
        if recipe.protect is not None:
            raise ConfigError("head.protect: the head of a detector has no score of the frame to protect")
        return fit_box_head(
            probe,
            task=task,
            recipe=recipe,
            holdout=holdout,
            copies=copies,
            contract=contract,
            seed=seed,
            reporter=reporter,
        )
    heads = candidate_heads(probe, recipe, contract=contract, task=task, train=train, seed=seed)
    given: dict[str, Any] = {"task": task, "contract": contract}
    sets = [collect_each(probe, heads, holdout, **given)]
    with reporter.steps("gathering losses", len(copies)) as steps:
        for version in copies:
            sets.append(collect_each(probe, heads, version, **given, clean=False))
            steps.advance()
    chosen = choose_base(heads, sets)
    own = join_sets([version[chosen] for version in sets])
    if recipe.protect is not None:
        groups = read_groups(Path(recipe.protect), holdout.ids)
        own = replace(own, protected=groups[own.image])
    return fit_on_losses(heads[chosen], own, recipe=recipe, seed=seed, reporter=reporter)


def require_enough(holdout: LabelledSet) -> None:
    """Raises ConfigError on fewer than 20 held-out images."""
    if len(holdout) < MIN_HELD_OUT:
        raise ConfigError(
            f"a head needs at least {MIN_HELD_OUT} held-out images to learn from (a thousand are better), "
            f"got {len(holdout)}"
        )


@dataclass(frozen=True)
class TrainFacts:
    """Holds what a head may know of the training set.

    outputs: [N,J], of tasks that deviate; embeddings: [N,C]; statistics: [N,D] of feature maps.
    """

    outputs: Tensor
    embeddings: Tensor
    statistics: Tensor | None
    targets: Tensor


@torch.no_grad()
def gather_train(
    probe: Probe,
    train: LabelledSet,
    *,
    task: Task,
    contract: InputContract,
    maps: tuple[str, ...],
    seed: int,
) -> TrainFacts:
    """Returns the facts of at most 8,192 training images, plenty for a memory of 2,048.

    Raises ConfigError that names images whose features are not finite: one in the memory would make every
    frame's score NaN.
    """
    if len(train) > 8192:
        train = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[:8192]))
    device = next(probe.parameters()).device
    outputs, embeddings, statistics = [], [], []
    with evaluating(probe):
        for images in image_batches(train, contract):
            signals = probe(images.to(device)).float()
            embeddings.append(signals.embedding.cpu())
            # Maps of thousands of images would not fit into memory, and only answers of values are needed.
            outputs.append(signals.outputs.cpu() if task.deviates else torch.empty(0))
            if maps:
                statistics.append(map_statistics({name: signals.features[name] for name in maps}).cpu())
    facts = TrainFacts(
        torch.cat(outputs),
        torch.cat(embeddings),
        torch.cat(statistics) if maps else None,
        task.collate(train.targets),
    )
    seen = (
        facts.embeddings if facts.statistics is None else torch.cat((facts.embeddings, facts.statistics), 1)
    )
    bad = (~seen.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(train.ids[i] for i in bad[:5])
        raise ConfigError(f"the network's features of {len(bad)} training images are not finite: {names}")
    return facts


@torch.no_grad()
def candidate_heads(
    probe: Probe,
    recipe: HeadRecipe,
    *,
    contract: InputContract,
    task: Task | None = None,
    train: LabelledSet | None = None,
    seed: int = 0,
) -> list[LossHead]:
    """Returns one head, or one per free score that the residual may correct, with random weights.

    task, train: for a residual head only, which remembers the training set.
    """
    # Only shapes are read from this pass.
    blank = torch.zeros(1, contract.channels, contract.height, contract.width)
    if isinstance(train, TensorSet):
        # Tensors may have channels that no contract names, such as depth.
        blank = torch.zeros_like(train.images[:1])
    weight = next(probe.parameters())
    with evaluating(probe):
        signals = on_cpu(probe(blank.to(weight.device, weight.dtype)))
    channels = {name: int(signals.features[name].shape[1]) for name in probe.feature_names}
    if recipe.kind != "residual" and not channels:
        raise ConfigError(f"{recipe.name} reads feature maps: name the layers to attach to")
    if recipe.kind == "gap":
        return [GapHead(channels=channels)]
    if recipe.kind == "conv":
        return [ConvHead(channels=channels)]
    if task is None or train is None:
        raise ConfigError(f"{recipe.name} needs a task and the training set")
    # With many units and few frames, pooled features overfit; the output map is informative enough.
    maps = affordable_maps(signals.features) if recipe.sees_features and task.by_frame else ()
    facts = gather_train(probe, train, task=task, contract=contract, maps=maps, seed=seed)
    classes = int(signals.outputs.shape[1]) if remembers_classes(task) else 0
    memory = Memory.fit(facts.embeddings, facts.targets if classes else None, classes=classes, seed=seed)
    opinions: list[SecondOpinion] = []
    if classes and facts.statistics is not None:
        widths = [2 * channels[name] for name in maps]
        # One opinion of all layers but the last, one of all; a single layer gives one opinion.
        for width in sorted({sum(widths[:-1]) or sum(widths), sum(widths)}):
            opinions.append(SecondOpinion(width, classes).fit(facts.statistics, facts.targets, seed=seed))
    blocks = statistics_blocks(task, signals, memory, maps=maps, sees_embedding=bool(maps), opinions=opinions)
    columns = tuple((name, int(block.shape[-1])) for name, block in blocks)
    heads: list[LossHead] = []
    for base in (*task.bases(), *([DEVIATION] if task.deviates else [])):
        head = ResidualHead(
            task=task,
            outputs=int(signals.outputs.shape[1]),
            base=base,
            embedding=memory.width,
            maps=maps,
            width=sum(width for _, width in columns),
            rows=memory.rows,
            kept=memory.kept,
            sees_embedding=bool(maps),
            opinions=tuple(opinion.width for opinion in opinions),
            hidden=recipe.hidden,
            members=recipe.members,
        )
        head.blocks = columns
        assert head.memory is not None
        head.memory.load_state_dict(memory.state_dict())
        if head.deviation is not None:
            head.deviation.load_state_dict(OutputDeviation.of_answers(facts.outputs).state_dict())
        head.opinions.load_state_dict(nn.ModuleList(opinions).state_dict())
        head.opinions.requires_grad_(False)
        heads.append(head)
    return heads


def affordable_maps(features: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns those of feature maps [1,C,H,W] with at most MAP_NUMBERS numbers, at least the smallest.

    Statistics cost by the number: those of a ResNet-18's first two stages at 224 x 224 cost as much as all
    other scores together.
    """
    sizes = {name: maps[0].numel() for name, maps in features.items()}
    few = tuple(name for name, size in sizes.items() if size <= MAP_NUMBERS)
    return few or ((min(sizes, key=lambda name: sizes[name]),) if sizes else ())


@torch.no_grad()
def choose_base(heads: Sequence[LossHead], sets: Sequence[Sequence[LossSet]]) -> int:
    """Returns the position of the head whose free score ranks the held-out losses best.

    That is the lowest area under the risk-coverage curve, as a share of the mean risk, in the mean of clean
    images and corrupted copies: the best on clean ones alone may be the worst under a shift.

    Args:
        heads: as of `candidate_heads`.
        sets: for each version of the held-out images, what `collect_each` returns.
    """
    if len(heads) == 1:
        return 0
    versions = [join_sets(kind) for kind in _kinds([version[0] for version in sets])]
    areas = []
    for number, head in enumerate(heads):
        assert isinstance(head, ResidualHead)
        shares = []
        for rows, truth in zip(_kinds([version[number] for version in sets]), versions, strict=True):
            risk = (truth.frame_losses if truth.failed is None else truth.failed).double().numpy()
            frames = torch.cat([head.free_frames(one.parts[0]) for one in rows])
            if risk.mean() > 0:
                shares.append(aurc(frames.double().numpy(), risk) / risk.mean())
        areas.append(np.mean(shares) if shares else 0.0)
    return int(np.argmin(areas))


def _kinds(sets: Sequence[LossSet]) -> list[list[LossSet]]:
    """Returns the clean sets and the corrupted ones, those that there are."""
    kinds = ([one for one in sets if bool(one.clean.all()) == clean] for clean in (True, False))
    return [kind for kind in kinds if kind]


@torch.no_grad()
def best_base(
    probe: Probe, heads: Sequence[LossHead], holdout: LabelledSet, clean: LossSet, *, contract: InputContract
) -> int:
    """Returns the position of the free score with the lowest AURC on the clean held-out losses."""
    if len(heads) == 1:
        return 0
    with evaluating(probe):
        outputs = torch.cat([on_cpu(probe(images)).outputs for images in image_batches(holdout, contract)])
    risk = (clean.frame_losses if clean.failed is None else clean.failed).double().numpy()
    areas = []
    for head in heads:
        assert isinstance(head, ResidualHead)
        areas.append(aurc(head.free_frames(head.free_units(outputs)).double().numpy(), risk))
    return int(np.argmin(areas))


def fit_on_losses(
    head: LossHead, data: LossSet, *, recipe: HeadRecipe, seed: int = 0, reporter: Reporter | None = None
) -> Fitted:
    """Optimises a head on losses that its network never fitted.

    A residual head gets the strength and the columns that hold on groups left out, is fitted on all rows, and
    its report shows what it did on those groups. Other heads, and those whose strength the recipe states, are
    checked on groups that are set aside.
    """
    known = data.losses[~data.losses.isnan()]
    if not len(known):
        raise ConfigError("no unit of any held-out image has a loss (nothing visible, nothing labelled)")
    # A median of zero gives no scale; a tiny eps still keeps log(0) out.
    eps = ratio_eps(known) or 1e-12
    if isinstance(head, ResidualHead) and recipe.strength is None:
        return _fit_residual(head, data, recipe=recipe, eps=eps, seed=seed, reporter=reporter)
    generator = torch.Generator().manual_seed(seed)
    aside = set_aside(data, generator=generator)
    fitting, check = data.take((~aside).nonzero().flatten()), data.take(aside.nonzero().flatten())
    if isinstance(head, ResidualHead):
        # The caller's head is trained in place only if it keeps all of its columns.
        if recipe.columns not in (None, head.columns):
            check = narrowed_set(head, check, recipe.columns)[1]
            head, fitting = narrowed_set(head, fitting, recipe.columns)
        head.standardise(fitting.parts, fitting.losses, eps=eps)
    if recipe.strength != 0:
        optimise(head, fitting, recipe=recipe, eps=eps, generator=generator, reporter=reporter)
    head.eval().requires_grad_(False)
    if isinstance(head, ResidualHead) and recipe.strength != 1:
        head.weaken(recipe.strength or 0.0, head.free_line(fitting.parts, fitting.losses, eps=eps))
    head.recipe = recipe.name
    return Fitted(head, check_head(head, check, recipe, samples=len(data), steps=recipe.steps))


def set_aside(data: LossSet, *, generator: torch.Generator) -> Tensor:
    """Returns bool [R]: rows to check a head on, with whole groups on one side.

    A corrupted copy of a fitted image is not unseen, and neither is another frame of a fitted drive.
    """
    groups = data.groups_of_images()
    names = sorted(set(groups))
    # One drive is no more than its images.
    owner = groups if len(names) > 1 else [str(number) for number in range(len(groups))]
    names = sorted(set(owner))
    order = torch.randperm(len(names), generator=generator).tolist()
    # At least two images: pair accuracy compares them.
    wanted, chosen, count = max(2, int(CHECK_SHARE * len(groups))), set(), 0
    sizes = Counter(owner)
    for place in order[:-1] if len(names) > 1 else order:
        if count >= wanted:
            break
        chosen.add(names[place])
        count += sizes[names[place]]
    checked = torch.tensor([name in chosen for name in owner])
    return checked[data.image]


def _fit_residual(
    head: ResidualHead,
    data: LossSet,
    *,
    recipe: HeadRecipe,
    eps: float,
    seed: int,
    reporter: Reporter | None,
) -> Fitted:
    """Chooses strength and columns, then fits on all rows."""

    # Half a batch, and fewer frames if each has many units: a fold's fit only has to be alike.
    frames = max(_LEAST_FRAMES, min(recipe.batch // 2, _FOLD_ROWS // int(data.losses.shape[1])))

    def fit(own: ResidualHead, rows: LossSet, batch: int = frames) -> None:
        own.standardise(rows.parts, rows.losses, eps=eps)
        generator = torch.Generator().manual_seed(seed)
        used = replace(recipe, batch=batch)
        optimise(own, rows, recipe=used, eps=eps, generator=generator, reporter=reporter)
        own.eval().requires_grad_(False)

    found = leave_out(head, data, recipe=recipe, fit=fit, eps=eps, seed=seed)
    choice = found.choice
    torch.manual_seed(seed)
    # A head without a correction needs no statistics: those with the fewest columns are the cheapest.
    columns = choice.columns if choice.strength else head.column_sets()[-1]
    own, rows = narrowed_set(head, data, columns)
    if choice.strength:
        fit(own, rows, recipe.batch)
    else:
        own.standardise(rows.parts, rows.losses, eps=eps)
        own.eval().requires_grad_(False)
    own.weaken(choice.strength, own.free_line(rows.parts, rows.losses, eps=eps))
    own.recipe = recipe.name
    return Fitted(own, report_left_out(own, data, found, recipe))


def optimise(
    head: LossHead,
    data: LossSet,
    *,
    recipe: HeadRecipe,
    eps: float,
    generator: torch.Generator,
    reporter: Reporter | None = None,
) -> None:
    """Runs AdamW with a cosine to zero over random batches; clean rows are drawn in the recipe's share."""
    # Scale and offset from the score to the log-odds of a failure, for the cross-entropy only; dropped after.
    line = nn.Parameter(torch.zeros(2))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in head.parameters() if p.requires_grad]},
        # Decay would pull the scale towards 1 and the offset towards even odds.
        {"params": [line], "weight_decay": 0.0},
    ]
    classifier = None
    if data.protected is not None:
        classifier = GroupClassifier(int(data.protected.max()) + 1, weight=recipe.protect_weight)
        own = {"params": list(classifier.parameters()), "lr": LEARNING_RATE, "weight_decay": 0.0}
        groups.append(own)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    # Copies outnumber clean images eightfold by default; unweighted, the head would learn mostly corruptions.
    weights = row_weights(data.clean, share=recipe.clean_share)
    head.train()
    with (reporter or Reporter(quiet=True)).steps("training the head", recipe.steps) as steps:
        for _ in range(recipe.steps):
            rows = torch.multinomial(weights, recipe.batch, replacement=True, generator=generator)
            batch = data.take(rows)
            answers = head.predict_members(batch.parts)
            loss = objective_of(head, answers, batch, line, recipe=recipe, eps=eps, generator=generator)
            if classifier is not None and batch.protected is not None:
                scores = torch.stack([head.pool(answer) for answer in answers]).mean(0)
                loss = loss + classifier(scores, batch.protected)
            if not bool(torch.isfinite(loss)):
                raise ConfigError("the head's loss is not finite; lower head.learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            steps.advance()


def objective_of(
    head: LossHead,
    answers: Tensor,
    batch: LossSet,
    line: Tensor,
    *,
    recipe: HeadRecipe,
    eps: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns the named objective over random pairs of all units, plus a cross-entropy on failures.

    answers: [members,N,U]; every member sees the same pairs.
    """
    there = ~batch.losses.isnan()
    predicted, true = answers[:, there], batch.losses[there]
    loss = paired_objective(recipe.objective, predicted, true, eps=eps, generator=generator)
    if recipe.wrong_weight and batch.failed is not None:
        logit = torch.stack([head.pool(answer) for answer in answers]) * torch.exp(line[0]) + line[1]
        failed = batch.failed.to(logit.dtype).expand_as(logit)
        loss = loss + recipe.wrong_weight * functional.binary_cross_entropy_with_logits(logit, failed)
    if recipe.top and batch.failed is not None:
        scores = torch.stack([head.pool(answer) for answer in answers])
        loss = loss + recipe.top_weight * top_objective(recipe.top, scores, batch.failed, batch.clean)
    return loss


def report_left_out(head: ResidualHead, data: LossSet, found: LeftOut, recipe: HeadRecipe) -> HeadReport:
    """Returns what heads that never saw a group showed on it: on clean frames, as means over folds."""
    clean = data.clean.numpy() if bool(data.clean.any()) else np.ones(len(data), bool)
    score, free = found.scores[clean], found.free[clean]
    loss = data.frame_losses.double().numpy()[clean]
    risk = loss if data.failed is None else found.failed[clean].astype(np.float64)
    choice = found.choice
    gain = 0.0 if choice.gain is None or choice.gain.clean is None else choice.gain.clean
    accuracy = float(pair_accuracy(score, loss)) if len(np.unique(loss)) > 1 else math.nan
    area = area_free = None
    notes = []
    if choice.free is None:
        notes.append("too few failures, or successes, among clean images left out: judged on losses alone")
    else:
        area, area_free = choice.free + gain, choice.free
    deviation = float(score.std())
    return HeadReport(
        recipe=recipe.name,
        samples=len(data),
        units=int(data.losses.shape[1]),
        steps=recipe.steps,
        base=head.base,
        pair_accuracy=accuracy,
        deviation=deviation,
        collapsed=name_collapse(deviation, accuracy),
        loss_scale=float(loss.mean() / max(float(np.exp(np.clip(score, -50, 50)).mean()), 1e-30)),
        aurc=float(aurc(score, risk)),
        aurc_base=float(aurc(free, risk)),
        auroc=area,
        auroc_base=area_free,
        notes=tuple(notes),
        choice=choice.to_dict(),
    )


@torch.no_grad()
def check_head(head: LossHead, check: LossSet, recipe: HeadRecipe, *, samples: int, steps: int) -> HeadReport:
    """Returns what a trained head shows on the clean rows of a set that it was not fitted on."""
    if bool(check.clean.any()):
        check = check.take(check.clean.nonzero().flatten())
    score = head.pool(head.predict(check.parts)).double().numpy()
    loss = check.frame_losses.double().numpy()
    accuracy = float(pair_accuracy(score, loss)) if len(np.unique(loss)) > 1 else math.nan
    deviation = float(score.std())
    base = head.pool(check.parts[0]).double().numpy() if isinstance(head, ResidualHead) else None
    risk = loss if check.failed is None else check.failed.double().numpy()
    area = area_base = None
    notes = []
    if check.failed is not None and 0 < int(check.failed.sum()) < len(check.failed):
        area = float(auroc(score, risk > 0))
        if base is not None:
            area_base = float(auroc(base, risk > 0))
    else:
        notes.append("no failures, or nothing else, among the check images: judged on losses alone")
    return HeadReport(
        recipe=recipe.name,
        samples=samples,
        units=int(check.losses.shape[1]),
        steps=steps,
        base=head.base if isinstance(head, ResidualHead) else None,
        pair_accuracy=accuracy,
        deviation=deviation,
        collapsed=name_collapse(deviation, accuracy),
        loss_scale=float(loss.mean() / max(float(np.exp(np.clip(score, -50, 50)).mean()), 1e-30)),
        aurc=float(aurc(score, risk)),
        aurc_base=None if base is None else float(aurc(base, risk)),
        auroc=area,
        auroc_base=area_base,
        notes=tuple(notes),
    )
