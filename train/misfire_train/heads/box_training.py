"""Trains the head of a detector on held-out frames, clean and corrupted; the detector is not changed.

frames --probe, match--> BoxSet --leave_out_boxes--> base, strength
                                --cross-entropy of each candidate + objective on frames--> BoxHead --> Fitted
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.matching import label_candidates
from misfire_train.data import Examples
from misfire_train.heads.box_strength import leave_out_boxes
from misfire_train.heads.boxes import BELOW_ROW, KEPT_ROW, LOG_UNSEEN, BoxHead
from misfire_train.heads.data import BoxSet, LabelledSet, checked_losses, on_cpu
from misfire_train.heads.fitted import CHECK_SHARE, Fitted, HeadReport, name_collapse
from misfire_train.heads.leaving_out import LeftOut
from misfire_train.heads.pairs import paired_objective, row_weights
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.metrics import aurc, auroc, pair_accuracy
from misfire_train.objectives import ratio_eps
from misfire_train.progress import Reporter
from misfire_train.scores.boxes.counting import platt
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe
from misfire_train.tasks.detection import Detection

Floats = NDArray[np.float64]
# A frame has a hundred candidates, so that fewer frames make a batch of the same cost.
FRAMES = 48
IMAGES = 32
OBJECTIVE_WEIGHT = 0.3
"""Of the objective on frames, beside the cross-entropy of candidates, which has far more labels."""
UNSEEN_WEIGHT = 0.3
"""Of the likelihood of the unseen objects."""
STEPS_SHARE = 4 / 7
"""Of a recipe's steps: a step sees thousands of candidates, and more steps learn the drives by heart."""


def fit_box_head(
    probe: Probe,
    *,
    task: Detection,
    recipe: HeadRecipe,
    holdout: LabelledSet,
    copies: Sequence[LabelledSet],
    contract: InputContract,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Fitted:
    """Fits the head of a frozen detector.

    Args:
        probe: the detector.
        task: detection, with its rule.
        recipe: how the head is trained.
        holdout: labelled frames that the detector never saw.
        copies: other versions of them.
        contract: the detector's input.
        seed: of weights and batches.
        reporter: shows progress.

    Raises:
        ConfigError: a loss is NaN, or the training diverges.
    """
    reporter = reporter or Reporter(quiet=True)
    head = new_box_head(probe, task=task, recipe=recipe, contract=contract)
    sets = []
    with reporter.steps("gathering losses", 1 + len(copies)) as steps:
        for number, version in enumerate((holdout, *copies)):
            sets.append(collect_boxes(probe, head, version, task=task, contract=contract, clean=number == 0))
            steps.advance()
    return fit_on_boxes(head, BoxSet.join(sets), task=task, recipe=recipe, seed=seed, reporter=reporter)


def new_box_head(probe: Probe, *, task: Detection, recipe: HeadRecipe, contract: InputContract) -> BoxHead:
    """Returns a head of the right shapes for a detector, with random weights."""
    blank = torch.zeros(1, contract.channels, contract.height, contract.width)
    weight = next(probe.parameters())
    with evaluating(probe), torch.no_grad():
        signals = on_cpu(probe(blank.to(weight.device, weight.dtype)))
    sees_features = signals.last_input.ndim == 4 and (
        signals.last_input.shape[2] * signals.last_input.shape[3] == signals.outputs.shape[1]
    )

    def made(columns: int, frame_columns: int) -> BoxHead:
        return BoxHead(
            rule=task.rule,
            width=contract.width,
            height=contract.height,
            columns=columns,
            frame_columns=frame_columns,
            sees_features=sees_features,
            hidden=recipe.hidden,
            members=recipe.members,
        )

    with torch.no_grad():
        x, *_, frame = made(1, 1).extract(signals)
        return made(x.shape[2], frame.shape[1])


@torch.no_grad()
def collect_boxes(
    probe: Probe,
    head: BoxHead,
    examples: LabelledSet,
    *,
    task: Detection,
    contract: InputContract,
    clean: bool,
) -> BoxSet:
    """Returns what the head learns from, of one pass over the frames. Raises ConfigError on bad losses."""
    device = next(probe.parameters()).device
    sets = []
    groups = np.array(examples.groups, np.str_) if isinstance(examples, Examples) else None
    with evaluating(probe, head):
        for rows in _blocks(len(examples)):
            signals = on_cpu(probe(examples.batch(rows, contract).to(device)))
            targets = task.collate(examples.targets[rows])
            final = task.final(signals)[0]
            ids = [examples.ids[i] for i in rows]
            labels = label_candidates(task.candidates(signals), targets, task.rule)
            missed = task.counts(final, targets)["missed"].to(labels.uncovered.dtype)
            sets.append(
                BoxSet(
                    head.extract(signals),
                    labels.right,
                    labels.overlap,
                    labels.uncovered,
                    (missed - labels.uncovered.nansum(1)).clamp_min(0),
                    checked_losses(task, final, targets, ids=ids),
                    task.failed(final, targets),
                    torch.from_numpy(rows),
                    torch.full((len(rows),), clean),
                    None if groups is None else groups[rows],
                )
            )
    return BoxSet.join(sets)


def _blocks(count: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for start in range(0, count, IMAGES):
        yield np.arange(start, min(start + IMAGES, count))


def fit_on_boxes(
    head: BoxHead,
    data: BoxSet,
    *,
    task: Detection,
    recipe: HeadRecipe,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Fitted:
    """Optimises a head; one whose strength the recipe leaves open gets what holds on groups left out.

    Then it is fitted on all rows, and the report shows what heads did on groups that they never saw. If the
    recipe states the strength, the head is checked on images set aside (all copies of an image on one side).
    """
    if recipe.strength is None:
        return _fit_chosen(head, data, task=task, recipe=recipe, seed=seed, reporter=reporter)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = int(data.image.max()) + 1
    checked = torch.randperm(images, generator=generator)[: max(2, int(CHECK_SHARE * images))]
    aside = torch.isin(data.image, checked)
    fitting, check = data.take((~aside).nonzero().flatten()), data.take(aside.nonzero().flatten())
    standardise(head, fitting)
    if recipe.strength:
        optimise_boxes(head, fitting, task=task, recipe=recipe, generator=generator, reporter=reporter)
    head.base = recipe.base or head.base
    head.weaken(recipe.strength)
    head.eval().requires_grad_(False)
    head.recipe = recipe.name
    free = copy.deepcopy(head)
    free.weaken(0.0)
    scores = (_frame_scores(head, check), _frame_scores(free, check))
    return Fitted(head, _report(*scores, check, recipe, of=data, base=head.base))


def _fit_chosen(
    head: BoxHead,
    data: BoxSet,
    *,
    task: Detection,
    recipe: HeadRecipe,
    seed: int,
    reporter: Reporter | None,
) -> Fitted:
    """Chooses base and strength, then fits on all rows."""

    def fit(own: BoxHead, rows: BoxSet) -> None:
        standardise(own, rows)
        generator = torch.Generator().manual_seed(seed)
        optimise_boxes(own, rows, task=task, recipe=recipe, generator=generator, reporter=reporter)
        own.eval().requires_grad_(False)

    found = leave_out_boxes(head, data, standardise=standardise, fit=fit, seed=seed)
    torch.manual_seed(seed)
    if found.choice.strength:
        fit(head, data)
    else:
        standardise(head, data)
        head.eval().requires_grad_(False)
    head.base = found.choice.columns
    head.weaken(found.choice.strength)
    head.recipe = recipe.name
    return Fitted(head, _report_left_out(head, data, found, recipe))


@torch.no_grad()
def standardise(head: BoxHead, data: BoxSet) -> None:
    """Sets mean and deviation of the statistics, and Platt's lines on the clean rows."""
    x, kept, below, frame = data.parts
    logit = x[..., 0]
    for rows, center, spread in (
        (x[(kept + below) > 0], head.center, head.spread),
        (frame, head.frame_center, head.frame_spread),
    ):
        center.copy_(rows.mean(0))
        deviation = rows.std(0)
        # A column that never varied has no information: its first other value must not become a huge one.
        spread.copy_(torch.where(deviation > 1e-5, deviation, torch.full_like(deviation, 1e3)))
    clean = data.clean.nonzero().flatten()
    head.lines[KEPT_ROW] = torch.tensor(platt(logit[clean], data.right[clean]))
    head.lines[BELOW_ROW] = torch.tensor(platt(logit[clean], data.uncovered[clean]))
    # A hundredth of an object stands for none at all, whose logarithm would be infinite.
    head.log_unseen.copy_(torch.log(data.unseen[clean].mean().clamp_min(0.01)))
    fit = head.task.rule.matching
    found = data.overlap[(data.right == 1) & (data.overlap >= fit)]
    if len(found) and fit < 1:
        share = ((found - fit) / (1 - fit)).mean().clamp(0.01, 0.99)
        head.typical_overlap.copy_(torch.logit(share))


def optimise_boxes(
    head: BoxHead,
    data: BoxSet,
    *,
    task: Detection,
    recipe: HeadRecipe,
    generator: torch.Generator,
    reporter: Reporter | None = None,
) -> None:
    """Runs AdamW with a cosine to zero over random frames; clean ones are drawn in the recipe's share."""
    eps = ratio_eps(data.losses) or 1e-12
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    count = max(1, round(STEPS_SHARE * recipe.steps))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    weights = row_weights(data.clean, share=recipe.clean_share)
    head.train()
    with (reporter or Reporter(quiet=True)).steps("training the head", count) as steps:
        for _ in range(count):
            rows = torch.multinomial(weights, FRAMES, replacement=True, generator=generator)
            batch = data.take(rows)
            loss = box_objective(head, batch, task=task, recipe=recipe, eps=eps, generator=generator)
            if not bool(torch.isfinite(loss)):
                raise ConfigError("the head's loss is not finite; lower head.learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            steps.advance()


def box_objective(
    head: BoxHead,
    batch: BoxSet,
    *,
    task: Detection,
    recipe: HeadRecipe,
    eps: float,
    generator: torch.Generator,
) -> Tensor:
    """Returns cross-entropies, the likelihood of unseen objects, and the recipe's objective on frames."""
    both, log_unseen = head.member_answers(batch.parts)
    log_odds, overlap = both.unbind(-1)
    score = head.score_of(batch.parts, both, log_unseen)
    label = torch.where(batch.right.isnan(), batch.uncovered, batch.right)
    loss = _cross_entropy(log_odds, label)
    tau = task.rule.matching
    place = torch.where(batch.right == 1, (batch.overlap - tau) / max(1 - tau, 1e-9), torch.nan)
    loss = loss + _cross_entropy(overlap, place.clamp(0, 1))
    # Poisson's likelihood of a count, without its constant.
    unseen = (torch.exp(log_unseen.clamp(*LOG_UNSEEN)) - batch.unseen * log_unseen).mean()
    paired = paired_objective(recipe.objective, score, batch.losses, eps=eps, generator=generator)
    return loss + UNSEEN_WEIGHT * unseen + OBJECTIVE_WEIGHT * paired


def _cross_entropy(log_odds: Tensor, label: Tensor) -> Tensor:
    """Returns the mean cross-entropy of [members,R,K] against [R,K] with NaN where there is no label."""
    there = ~label.isnan()
    if not bool(there.any()):
        return log_odds.sum() * 0.0
    wanted = label[there].expand(len(log_odds), -1)
    return functional.binary_cross_entropy_with_logits(log_odds[:, there], wanted)


@torch.no_grad()
def _frame_scores(head: BoxHead, data: BoxSet) -> Floats:
    values: Floats = head.predict(data.parts)[:, 0].double().numpy()
    return values


def _report(
    score: Floats, free: Floats, check: BoxSet, recipe: HeadRecipe, *, of: BoxSet, base: str
) -> HeadReport:
    """Returns what scores [R] showed on the rows of a check. of: all rows that there are."""
    loss, failed = check.losses.double().numpy(), check.failed.numpy()
    accuracy = float(pair_accuracy(score, loss)) if len(np.unique(loss)) > 1 else math.nan
    deviation = float(score.std())
    one_kind = "no failures, or nothing else, among the check images: judged on losses alone"
    both = 0 < int(failed.sum()) < len(failed)
    return HeadReport(
        recipe=recipe.name,
        samples=len(of),
        units=int(of.right.shape[1]),
        steps=max(1, round(STEPS_SHARE * recipe.steps)),
        base=base,
        pair_accuracy=accuracy,
        deviation=deviation,
        collapsed=name_collapse(deviation, accuracy),
        loss_scale=float(loss.mean() / max(float(np.exp(np.clip(score, -50, 50)).mean()), 1e-30)),
        aurc=float(aurc(score, loss)),
        aurc_base=float(aurc(free, loss)),
        auroc=float(auroc(score, failed)) if both else None,
        auroc_base=float(auroc(free, failed)) if both else None,
        notes=() if both else (one_kind,),
    )


def _report_left_out(head: BoxHead, data: BoxSet, found: LeftOut, recipe: HeadRecipe) -> HeadReport:
    """Returns what heads that never saw a group showed on it: on clean frames, AUROC as means over folds."""
    rows = data.clean.nonzero().flatten() if bool(data.clean.any()) else torch.arange(len(data))
    report = _report(
        found.scores[rows.numpy()], found.free[rows.numpy()], data.take(rows), recipe, of=data, base=head.base
    )
    choice = found.choice
    gain = 0.0 if choice.gain is None or choice.gain.clean is None else choice.gain.clean
    free = choice.free
    return replace(
        report,
        auroc=None if free is None else free + gain,
        auroc_base=free,
        choice=choice.to_dict(),
    )
