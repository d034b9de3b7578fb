"""What else could find more at the top of the list: orders made of the head's and the free scores' answers.

    python benchmarks/science/top_ideas.py --json --out benchmarks/results/science/top_ideas.json

A search, so no test half is read: the network and the head are those of detectors.py with other seeds, judged
on training images that neither saw; clean, under six families that the head knows, and under night and fog
that it never saw. Each idea is measured against the head alone: precision at 0.5, 1, 2 and 5 % of uploads and
AUROC. Ideas learn only from the head's own holdout.

rank mean       mean of the ranks of the head and the entropy
disagreement    the committee's mean plus its standard deviation: where members differ, look
local quantile  the score's quantile among holdout frames whose free score is in the same tenth, plus that
                among all: a re-ordering after calibration that knows where a frame comes from
running median  the score minus the median of the 200 frames before, in a stream whose weather changes
conformal       frames whose conformal p-value passes Benjamini-Hochberg at 20 % false discoveries; its own
                number of uploads, so precision and share only
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import finish, run
from benchmarks.science.detectors import fitting_versions as fitting_copies
from benchmarks.science.detectors import (
    fresh_head,
    observe,
    options_of,
    settle,
    sizes,
    train,
    weather,
    without,
)
from benchmarks.science.head_copies import unseen_by
from misfire_train.data import Examples, load_dataset
from misfire_train.heads import LossHead, recipe_named
from misfire_train.heads.data import LossSet, collect
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.metrics import auroc, budget_table
from misfire_train.runs import run_splits
from misfire_train.scores import build

KNOWN = ("noise", "blur", "night", "fog", "rain", "jpeg")
UNSEEN = ("night", "fog")
FREE = ("entropy", "msp", "margin", "energy", "max_logit")
BUDGETS = (0.005, 0.01, 0.02, 0.05)
WINDOW = 200
FALSE_DISCOVERIES = 0.2
FRAMES = 6_000
Floats = NDArray[np.float64]


def gather(own: Any, dataset: Any, *, seed: int, images: Examples, cache: Path) -> dict[str, Any]:
    """All forward passes of one network; kept in `cache`."""
    if cache.is_file():
        loaded: dict[str, Any] = torch.load(cache, weights_only=False)
        return loaded
    parts = run_splits(own, dataset)
    facts = {"contract": own.contract, "task": own.task}
    heads = candidate_heads(
        own.probe, recipe_named("learning-loss-pp"), train=parts["train"], seed=seed, **facts
    )
    clean = collect(own.probe, heads[0], parts["holdout"], **facts)
    head = heads[best_base(own.probe, heads, parts["holdout"], clean, contract=own.contract)]
    scorers = build(FREE, task="classification")
    fitting = {"clean": collect(own.probe, head, parts["holdout"], **facts)}
    for key, copy in fitting_copies(parts["holdout"], seed=seed, versions_per_family=1):
        fitting[key] = observe(own, copy, head, [], clean=False).data
    views = {"clean": observe(own, images, head, scorers, clean=True)}
    for number, family in enumerate(KNOWN):
        copy = weather(images, (family,), seed=7_000_000 + 1000 * seed + number)
        views[family] = observe(own, copy, head, scorers, clean=False)
    result = {
        "fitting": fitting,
        "views": views,
        "options": head.options,
        "memory": head.memory.state_dict(),
        "opinions": head.opinions.state_dict(),
    }
    torch.save(result, cache)
    return result


def fitted(gathered: dict[str, Any], family: str | None, *, seed: int, quick: bool) -> LossHead:
    """A head that knows everything but one family."""
    recipe = recipe_named("learning-loss-pp")
    torch.manual_seed(seed)
    data = without(gathered["fitting"], family)
    recipe = replace(recipe, steps=40) if quick else recipe
    return fit_on_losses(fresh_head(gathered), data, recipe=recipe, seed=seed).head


@torch.no_grad()
def members_of(head: LossHead, data: LossSet) -> Floats:
    """Scores of each member, [members,N]."""
    answers = head.predict_members(data.parts)
    return torch.stack([head.pool(answer) for answer in answers]).double().numpy()


def ranks(values: Floats) -> Floats:
    """Ranks in 0..1."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / len(values)


def tenths(data: LossSet, cuts: Floats) -> NDArray[np.int64]:
    """Which tenth of the holdout each frame's free score falls into."""
    return np.searchsorted(cuts, data.parts[0][:, 0].double().numpy())


def orders(head: LossHead, view: Any, holdout: LossSet) -> dict[str, Floats]:
    """{idea: scores [N]}."""
    members = members_of(head, view.data)
    score = members.mean(0)
    own = members_of(head, holdout).mean(0)
    cuts = np.quantile(holdout.parts[0][:, 0].double().numpy(), np.linspace(0.1, 0.9, 9))
    return {
        "head": score,
        "rank mean": ranks(score) + ranks(view.scores["entropy"]),
        "disagreement": score + members.std(0),
        "local quantile": _by_group(score, tenths(view.data, cuts), own, tenths(holdout, cuts)),
    }


def _by_group(score: Floats, group: NDArray[Any], own: Floats, own_group: NDArray[Any]) -> Floats:
    result = np.zeros(len(score))
    for name in np.unique(group):
        there = np.sort(own[own_group == name])
        rows = group == name
        # The mean of the quantile within the group and among all keeps a sure group below an unsure one.
        among = np.searchsorted(np.sort(own), score[rows]) / len(own)
        result[rows] = among + (np.searchsorted(there, score[rows]) / len(there) if len(there) else among)
    return result


def running_medians(clean: Floats, other: Floats, *, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Medians of the frames before, and the order of a stream that changes its weather every 500 frames."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clean))
    mixed = np.where((np.arange(len(order)) // 500) % 2 == 0, clean[order], other[order])
    medians = np.array([np.median(mixed[max(0, i - WINDOW) : i + 1]) for i in range(len(mixed))])
    return medians, order


def shown(score: Floats, failed: NDArray[np.bool_]) -> dict[str, float]:
    """Precision at each budget, and AUROC."""
    rows = budget_table(score, failed, budgets=BUDGETS)
    return {f"precision_at_{row.budget:.1%}": row.precision for row in rows} | {"auroc": auroc(score, failed)}


def conformal(score: Floats, failed: NDArray[np.bool_], own: Floats, right: NDArray[np.bool_]) -> Any:
    """Precision and share of what passes; p-values from the holdout's successes."""
    calm = np.sort(own[right])
    p = (1 + len(calm) - np.searchsorted(calm, score, side="left")) / (1 + len(calm))
    order = np.sort(p)
    passing = np.flatnonzero(order <= FALSE_DISCOVERIES * np.arange(1, len(p) + 1) / len(p))
    if not len(passing):
        return {"share": 0.0, "precision": None}
    chosen = p <= order[passing[-1]]
    return {"share": float(chosen.mean()), "precision": float(failed[chosen].mean())}


def judge(gathered: dict[str, Any], *, seed: int, quick: bool) -> dict[str, Any]:
    """{view: {idea: numbers}} of one seed; families are averaged."""
    views, holdout = gathered["views"], gathered["fitting"]["clean"]
    known = fitted(gathered, None, seed=seed, quick=quick)
    apart = {family: fitted(gathered, family, seed=seed, quick=quick) for family in UNSEEN}
    own = members_of(known, holdout).mean(0)
    right = ~holdout.failed.numpy().astype(bool)
    cases = {"clean": [("clean", known)], "known": [(family, known) for family in KNOWN]}
    cases["left out"] = [(family, apart[family]) for family in UNSEEN]
    result: dict[str, Any] = {}
    for name, pairs in cases.items():
        rows: dict[str, list[dict[str, float]]] = {}
        for family, head in pairs:
            view = views[family]
            failed = view.data.failed.numpy().astype(bool)
            for idea, score in orders(head, view, holdout).items():
                rows.setdefault(idea, []).append(shown(score, failed))
        result[name] = {idea: mean(values) for idea, values in rows.items()}
    result["conformal"] = {
        family: conformal(
            members_of(known, views[family].data).mean(0),
            views[family].data.failed.numpy().astype(bool),
            own,
            right,
        )
        for family in ("clean", *KNOWN)
    }
    result["stream"] = stream(views, known, seed=seed)
    return result


def stream(views: Mapping[str, Any], head: LossHead, *, seed: int) -> dict[str, Any]:
    """The head with and without its running median, on clean frames with stretches of fog between."""
    clean, fog = (members_of(head, views[name].data).mean(0) for name in ("clean", "fog"))
    medians, order = running_medians(clean, fog, seed=seed)
    rows = (np.arange(len(order)) // 500) % 2 == 0
    score = np.where(rows, clean[order], fog[order])
    failed = np.where(
        rows, views["clean"].data.failed.numpy()[order], views["fog"].data.failed.numpy()[order]
    ).astype(bool)
    return {"head": shown(score, failed), "running median": shown(score - medians, failed)}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def main() -> int:
    """Runs it and prints the numbers, or JSON."""
    parser = options_of(__doc__, seeds=(101,))
    options = parser.parse_args()
    settle(options, seeds=(101,))
    dataset = load_dataset("fashion-mnist", root=options.data)
    found = {}
    for seed in options.seeds:
        own = train(seed, **sizes(options))
        images = unseen_by(own, dataset.train, count=300 if options.quick else FRAMES, seed=seed)
        cache = options.work / f"ideas-{seed}.pt"
        gathered = gather(own, dataset, seed=seed, images=images, cache=cache)
        found[str(seed)] = judge(gathered, seed=seed, quick=options.quick)
    return finish(__file__, {"networks": found}, options)


if __name__ == "__main__":
    run(main)
