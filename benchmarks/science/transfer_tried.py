"""What else was tried so that a head holds on the next drive, judged on the groups for tuning.

    python benchmarks/science/transfer_tried.py --work WORK --json

After transfer.py, whose --work it reads: the same losses of the head's groups, the same free scores. Each
variant is fitted on all of the head's groups and judged on each group of `tuning`, at full strength and at
the strength that transfer.py chose: `plain`; `within frame`, columns less their mean over the frame's units
(with one unit, less the mean over all columns); `balanced`, groups equally often in a batch; `dro`,
group DRO (Sagawa et al. 2020), groups weighted up while their loss is high; `mixed`, rows interpolated with
rows of other groups. `fusion` is training-free: the mean of the ranks of the free scores, of all of them and
of the best two. Gains in points of AUROC over the best free score, mean over groups.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run, work_folder
from benchmarks.science.transfer import (
    FRAMES,
    FULL,
    HEAD,
    HEAD_COPIES,
    HEAD_FRAMES,
    TASKS,
    VIEWS,
    Begun,
    Seen,
    area,
    at_network_size,
    group_rows,
    judge_seed,
    shifted,
    thinned,
)
from benchmarks.science.transfer_data import Bench, load_bench, network
from misfire_train.heads import ResidualHead, recipe_named
from misfire_train.heads.data import LossSet, collect
from misfire_train.heads.pairs import row_weights
from misfire_train.heads.training import objective_of
from misfire_train.objectives import ratio_eps
from misfire_train.runs import Run

UNITS = tuple(name for name in TASKS if name != "carla-detection")
"""Sets whose head is a residual on units."""
VARIANTS = ("plain", "within frame", "balanced", "dro", "mixed")
_DRO_RATE = 0.05
"""Of the groups' weights, each step."""


def within_frame(data: LossSet) -> LossSet:
    """The statistics less their mean over the units of the frame."""
    base, x = data.parts
    middle = x.mean(1, keepdim=True) if x.shape[1] > 1 else x.mean(2, keepdim=True)
    return replace(data, parts=(base, x - middle))


def train(head: ResidualHead, data: LossSet, variant: str, *, steps: int, seed: int) -> None:
    """Fits a head as misfire does, but for the variant."""
    recipe = recipe_named("learning-loss-pp")
    eps = ratio_eps(data.losses[~data.losses.isnan()]) or 1e-12
    head.standardise(data.parts, data.losses, eps=eps)
    generator = torch.Generator().manual_seed(seed)
    line = nn.Parameter(torch.zeros(2))
    groups = [{"params": list(head.parameters())}, {"params": [line], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    names, member = np.unique(np.array(data.group), return_inverse=True)
    member = torch.from_numpy(member)
    weights = row_weights(data.clean, share=recipe.clean_share)
    if variant == "balanced":
        weights = weights / torch.bincount(member, weights=weights)[member]
    shares = torch.full((len(names),), 1 / len(names))
    units = data.losses.shape[1]
    batch = max(48, min(recipe.batch, 1024 // units))
    for _ in range(steps):
        if variant == "dro":
            rows = _rows_of_groups(weights, member, shares, batch, generator)
        else:
            rows = torch.multinomial(weights, batch, replacement=True, generator=generator)
        drawn = data.take(rows)
        if variant == "mixed":
            drawn = _mixed(drawn, data.take(rows[torch.randperm(batch, generator=generator)]), generator)
        answers = head.predict_members(drawn.parts)
        loss = objective_of(head, answers, drawn, line, recipe=recipe, eps=eps, generator=generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if variant == "dro":
            shares = _raised(shares, head, drawn, member[rows], line)
    head.eval().requires_grad_(False)


def _rows_of_groups(
    weights: Tensor, member: Tensor, shares: Tensor, batch: int, generator: torch.Generator
) -> Tensor:
    """Rows of groups that are drawn by their shares."""
    own = weights / torch.bincount(member, weights=weights)[member]
    return torch.multinomial(own * shares[member], batch, replacement=True, generator=generator)


@torch.no_grad()
def _raised(shares: Tensor, head: ResidualHead, drawn: LossSet, member: Tensor, line: Tensor) -> Tensor:
    """The groups' shares after a step: those whose failures are predicted worst gain."""
    assert drawn.failed is not None
    logit = head.pool(head.predict(drawn.parts)) * torch.exp(line[0]) + line[1]
    losses = nn.functional.binary_cross_entropy_with_logits(
        logit, drawn.failed.to(logit.dtype), reduction="none"
    )
    count = torch.bincount(member, minlength=len(shares)).clamp_min(1)
    mean = torch.bincount(member, weights=losses, minlength=len(shares)) / count
    raised = shares * torch.exp(_DRO_RATE * mean)
    return raised / raised.sum()


def _mixed(first: LossSet, second: LossSet, generator: torch.Generator) -> LossSet:
    """Statistics and losses between those of two rows, nearer to the first; failures are of the first."""
    share = 0.5 + 0.5 * torch.rand(len(first), 1, generator=generator)
    parts = tuple(
        share.view(-1, *[1] * (a.ndim - 1)) * a + (1 - share.view(-1, *[1] * (a.ndim - 1))) * b
        for a, b in zip(first.parts, second.parts, strict=True)
    )
    logs = share * torch.log(first.losses + 1e-9) + (1 - share) * torch.log(second.losses + 1e-9)
    return replace(first, parts=parts, losses=torch.exp(logs))


@torch.no_grad()
def with_heads(seen: Seen, data: LossSet, heads: dict[str, ResidualHead]) -> Seen:
    """What was seen of the tuning groups, with the scores of other heads on the same frames."""
    scores = {
        name: head.pool(head.predict((within_frame(data) if "within" in name else data).parts))
        for name, head in heads.items()
    }
    return replace(seen, scores={**seen.scores, **{n: v.double().numpy() for n, v in scores.items()}})


def fused(seen: Seen, names: Sequence[str]) -> Seen:
    """The free scores' mean ranks, of all and of the best two."""
    ranks = {name: np.argsort(np.argsort(seen.scores[name])) / len(seen.failed) for name in names}
    means = {name: mean_area(seen, name) for name in names}
    two = sorted(names, key=lambda name: -means[name])[:2]
    both = {
        "fusion of all": np.mean([ranks[name] for name in names], 0),
        "fusion of two": np.mean([ranks[name] for name in two], 0),
    }
    return replace(seen, scores={**seen.scores, **both})


def mean_area(seen: Seen, name: str) -> float:
    """AUROC, mean over groups."""
    return float(np.nanmean([area(seen, name, rows) for rows in group_rows(seen).values()]))


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{variant: {view: gain in points}} of a data set and seed."""
    judged, choice = judge_seed(name, seed, options)
    begun = Begun(*torch.load(options.work / f"{name}-{seed}-begun.pt", weights_only=False))
    assert isinstance(begun.head, ResidualHead) and isinstance(begun.data, LossSet)
    most = 60 if options.quick else None
    bench = load_bench(name, data=options.data, most=most)
    own = network(bench, seed, work=options.work)
    views = tuning_sets(bench, own, begun.head, seed=seed)
    strength = choice["strength"] or 0.25
    heads: dict[str, ResidualHead] = {}
    for variant in VARIANTS:
        data = within_frame(begun.data) if variant == "within frame" else begun.data
        torch.manual_seed(seed)
        head = begun.head.narrowed("all")
        train(head, data, variant, steps=options.steps, seed=seed)
        weak = copy.deepcopy(head)
        weak.weaken(strength, weak.free_line(data.parts, data.losses, eps=1e-6))
        heads |= {variant: head, f"{variant}, strength {strength:g}": weak}
    result: dict[str, dict[str, float]] = {}
    for view in VIEWS:
        seen = judged[view]
        free = [each for each in seen.scores if each not in (HEAD, FULL)]
        seen = fused(with_heads(seen, views[view], heads), free)
        best = max(mean_area(seen, each) for each in free)
        for each in seen.scores:
            if each not in free:
                result.setdefault(each, {})[view] = 100 * (mean_area(seen, each) - best)
    return result


def tuning_sets(bench: Bench, own: Run, head: ResidualHead, *, seed: int) -> dict[str, LossSet]:
    """The parts of the tuning groups in both views, of the frames that transfer.py judged."""
    examples = at_network_size(thinned(bench.parts["tuning"], FRAMES["tuning"]), own.contract)
    sets = {"clean": examples, "shifted": shifted(examples, seed=seed)}
    task = own.task
    if not task.knows_failures:
        task = task.with_threshold(1.0)
    return {
        view: collect(own.probe, head, each, task=task, contract=own.contract) for view, each in sets.items()
    }


def markdown(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row per variant, two columns per data set."""
    names = list(found)
    variants = list(dict.fromkeys(v for each in found.values() for v in each))
    lines = ["| variant | " + " | ".join(f"{n} {v}" for n in names for v in VIEWS) + " |"]
    lines.append("|---" * (1 + len(names) * len(VIEWS)) + "|")
    for variant in variants:
        cells = [f"{found[n][variant][v]:+.1f}" if variant in found[n] else "" for n in names for v in VIEWS]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = command_line(__doc__ or "", seeds=(0,))
    parser.add_argument("--data", type=Path, help="Folder of the published sets.")
    parser.add_argument("--work", type=Path, help="Where transfer.py kept what it judged.")
    parser.add_argument("--tasks", nargs="+", default=list(UNITS), choices=UNITS, help="Data sets.")
    parser.add_argument("--steps", type=int, default=700, help="Of each fit.")
    options = parser.parse_args()
    options.work = work_folder(options)
    options.frames, options.copies, options.tuning = HEAD_FRAMES, HEAD_COPIES, True
    if options.quick:
        options.tasks, options.steps = ["drive-lights"], 20
    found: dict[str, Any] = {}
    for name in options.tasks:
        seeds = [measure(name, seed, options) for seed in options.seeds]
        found[name] = {
            variant: {view: float(np.mean([each[variant][view] for each in seeds])) for view in VIEWS}
            for variant in seeds[0]
        }
        print(markdown({name: found[name]}), file=sys.stderr, flush=True)
    return finish(__file__, {"tasks": found}, options, summary=markdown(found))


if __name__ == "__main__":
    run(main)
