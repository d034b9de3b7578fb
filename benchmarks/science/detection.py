"""Which score finds the frames that a detector gets wrong, in a town it never saw, clean and under shifts?

    python benchmarks/science/detection.py --seeds 0 1 2 --out benchmarks/results/science/detection.json

carla_detection by town: Town01, Town02 and half of Town03 train the detector; the rest of Town03 and Town04
are held out for scores and the head; Town05 is judged on and nothing else. Views: `clean`; `known`, every
frame under one corruption family at a random severity, all families known to the head; `left_out`, three
heads that each lack a third of the families, each judged on that third. `gains` is the default head's
difference to the free one-pass score that is best in this view by this measure, with paired 95 % intervals
over frames (seeds share the frames). rho: Spearman with the frame's loss. misses_at_10: share of all missed
objects that lie in the top tenth of frames. Detectors are kept in --work, and so is what was seen of each
seed (seen-SEED.npz): an interrupted run goes on from there, and another one only fits the heads. Remove those
files to compute the other scores again, of the same detectors.

Rows beside the product's scores: `pooled_learning_loss` and `pooled_learning_loss_pp`, the papers' heads on
pooled feature maps, fitted to the frame loss of the clean held-out frames; `box_neighbours`, the distance of
each box's features to those of boxes of training frames, summed over boxes. `blind`: of the frames with
objects of which none was found, the share in the top tenth by a score, and by either of two (each half of
the budget); `fog` is every frame under fog, whose head never saw a family of fog's third.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

if not __package__:
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("", "fleet")]

from benchmarks.record import command_line, finish, run, work_folder
from benchmarks.science.detection_kept import Material, Seen, Shown, joined, keep, kept
from misfire_runtime.boxes import SILENCE
from misfire_train.boxes.average_precision import average_precision
from misfire_train.boxes.candidates import find_candidates
from misfire_train.boxes.losses import f1, lrp
from misfire_train.boxes.matching import match_frames
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.fit import Parts, fit
from misfire_train.heads import recipe_named
from misfire_train.heads.box_training import collect_boxes, fit_on_boxes, new_box_head
from misfire_train.heads.boxes import BoxHead
from misfire_train.heads.data import BoxSet, corrupted_copies
from misfire_train.heads.recipes import HeadRecipe
from misfire_train.heads.training import fit_head
from misfire_train.metrics import aurc, auroc, spearman
from misfire_train.runs import Run, load_run
from misfire_train.scores import build, gather, names_for, scores_of
from misfire_train.scores.computing import score_batch
from misfire_train.scores.fitting import FitSet, batches, evaluating
from misfire_train.signals import Score, Signals
from misfire_train.tasks.detection import Detection
from misfire_train.train_config import TrainConfig, read_train_config

Floats = NDArray[np.float64]
RECIPE = Path("train/recipes/carla-detection.toml")
GROUPS = tuple(tuple(list(FAMILIES)[k::3]) for k in range(3))
COPIES = 3
"""Corrupted copies of each held-out frame for each third of the families."""
MEASURES = ("rho", "rho_errors", "auroc_failed", "misses_at_1", "misses_at_5", "misses_at_10", "aurc")
GAINS = ("rho", "auroc_failed", "misses_at_10")
VIEWS = ("clean", "known", "left_out")
GOALS = {
    ("known", "rho"): 0.02,
    ("known", "auroc_failed"): 0.02,
    ("left_out", "rho"): 0.005,
    ("left_out", "auroc_failed"): 0.005,
    ("clean", "rho"): 0.0,
    ("clean", "auroc_failed"): 0.0,
}


def parts_of(dataset: Dataset) -> dict[str, Examples]:
    """The training half by town: train, validation and holdout."""
    groups = np.array(dataset.train.groups)
    towns = np.array([group.partition("/")[0] for group in groups])
    third = np.unique(groups[towns == "Town03"])
    early = np.isin(groups, third[: len(third) // 2])
    pool = np.isin(towns, ("Town01", "Town02")) | early
    # Whole stretches stop the training, so that no neighbour of a training frame does.
    stretches = np.unique(groups[pool])
    stop = np.isin(groups, stretches[4::9])
    masks = {"train": pool & ~stop, "validation": pool & stop, "holdout": ~pool}
    return {name: dataset.train.take(np.flatnonzero(mask)) for name, mask in masks.items()}


def trained(dataset: Dataset, seed: int, chosen: argparse.Namespace) -> Run:
    """The detector of a seed; one that was trained before is loaded."""
    out = chosen.work / f"detector-{seed}{'-quick' if chosen.quick else ''}"
    if (out / "run.json").exists():
        return load_run(out)
    overrides: dict[str, Any] = {
        "seed": seed,
        "head.recipe": "none",
        "data": chosen.data,
    }
    if chosen.quick:
        overrides |= {"training.epochs": 1, "training.patience": 1}
    root = Path(__file__).resolve().parents[2]
    config: TrainConfig = read_train_config(root / RECIPE, overrides=overrides)
    parts = parts_of(dataset)
    if chosen.quick:
        parts = {name: part.take(range(min(32, len(part)))) for name, part in parts.items()}
    whole = Parts(
        parts["train"],
        parts["validation"],
        parts["holdout"],
        parts["holdout"],
        ids={name: part.ids for name, part in parts.items()},
    )
    return fit(config, dataset, whole, out=out, resume=True, command="benchmarks/science/detection.py")


def one_pass(task: Detection) -> list[str]:
    """Names of the free one-pass scores."""
    known = scores_of(task)
    return [name for name in names_for(task, free=True) if known[name].passes == "one"]


def others(task: Detection) -> list[str]:
    """Names of all other scores that a single network gives."""
    known = scores_of(task)
    skip = {*one_pass(task), "stacked", "ensemble"}
    return [name for name, row in known.items() if name not in skip and row.passes in ("one", "two")]


@torch.no_grad()
def observe(
    run_: Run, examples: Examples, scorers: Sequence[Score], task: Detection, *, blank: BoxHead
) -> Shown:
    """Scores and truth of a set of frames, from one pass (two for what is mirrored), and what heads read."""
    columns: dict[str, list[torch.Tensor]] = {score.name: [] for score in scorers}
    truth: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("loss", "errors", "missed", "failed", "blind")
    }
    with evaluating(run_.probe, *scorers):
        for rows, images in batches(examples, contract=run_.contract, size=task.score_batch):
            for name, values in score_batch(run_.probe, images, scorers).items():
                columns[name].append(values)
            final = task.condense(run_.probe(images).outputs)
            targets = task.collate(examples.targets[rows])
            counts = task.counts(final, targets)
            truth["loss"].append(task.sample_loss(final, targets))
            truth["errors"].append(counts["errors"])
            truth["missed"].append(counts["missed"])
            truth["failed"].append(task.failed(final, targets))
            truth["blind"].append((counts["objects"] > 0) & (counts["missed"] == counts["objects"]))
    found = {name: torch.cat(values).double().numpy() for name, values in columns.items()}
    numbers = {name: torch.cat(values).numpy() for name, values in truth.items()}
    boxes = collect_boxes(run_.probe, blank, examples, task=task, contract=run_.contract, clean=True)
    seen = Seen(
        found,
        numbers["loss"].astype(np.float64),
        numbers["errors"].astype(np.float64),
        numbers["missed"].astype(np.float64),
        numbers["failed"].astype(bool),
        numbers["blind"].astype(bool),
        np.arange(len(examples)),
    )
    return Shown(seen, boxes)


def shifted(examples: Examples, families: tuple[str, ...], *, seed: int) -> Examples:
    """Each frame under one of the families at a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=families, mixed=0.0)
    return corrupted_copies(examples, recipe, seed=seed)[0]


class BoxNeighbours(Score):
    """Sums over boxes how far their features are from those of boxes of training frames.

    bank: [R,C], normalised.
    """

    name = "box_neighbours"
    bank: torch.Tensor

    def __init__(self, task: Detection, known: FitSet, *, rows: int = 1000) -> None:
        super().__init__()
        self.task = task
        found = task.candidates(known.signals)
        self.register_buffer("bank", self.features(known.signals)[found.kept][:rows])

    def features(self, signals: Signals) -> torch.Tensor:
        """The normalised features of each candidate's cell, [N,K,C]."""
        phi = signals.last_input.flatten(2)
        index = self.task.candidates(signals).index[:, None].expand(-1, phi.shape[1], -1)
        return functional.normalize(torch.gather(phi, 2, index).transpose(1, 2), dim=2)

    def forward(self, signals: Signals) -> torch.Tensor:
        """Scores [N]: over boxes, the mean distance to the five nearest."""
        near = torch.matmul(self.features(signals), self.bank.T).topk(min(5, len(self.bank)), dim=2).values
        return ((1 - near.mean(2)) * self.task.candidates(signals).shown).sum(1)


def pooled_heads(run_: Run, holdout: Examples, task: Detection, seed: int, *, quick: bool) -> list[Score]:
    """The papers' heads on pooled features, the detector frozen, each under a name of its own."""
    heads: list[Score] = []
    for objective in ("learning-loss", "learning-loss-pp"):
        steps = 20 if quick else 700
        recipe = replace(recipe_named("rank-bce"), objective=objective, steps=steps)
        fitted = fit_head(
            run_.probe,
            task=task,
            recipe=recipe,
            train=holdout,
            holdout=holdout,
            contract=run_.contract,
            seed=seed,
        )
        fitted.head.name = f"pooled_{objective.replace('-', '_')}"
        heads.append(fitted.head)
    return heads


def blind_table(seeds: Sequence[dict[str, Seen]], head: str) -> dict[str, dict[str, float]]:
    """Of frames in which every object is missed, the share in the top tenth by each score and by either."""
    table: dict[str, dict[str, float]] = {}
    for view in seeds[0]:
        found: dict[str, list[float]] = {}
        for seen in (seed[view] for seed in seeds):
            budget, total = max(2, len(seen.blind) // 10), max(1, seen.blind.sum())
            order = {
                name: np.argsort(-seen.scores[name], kind="stable")
                for name in (head, "expected_errors", SILENCE)
            }
            chosen = {name: rows[:budget] for name, rows in order.items()}
            half = order[head][: budget // 2]
            rest = order[SILENCE][~np.isin(order[SILENCE], half)]
            chosen[f"{head} or {SILENCE}"] = np.concatenate((half, rest[: budget - len(half)]))
            for name, rows in chosen.items():
                found.setdefault(name, []).append(float(seen.blind[rows].sum() / total))
            found.setdefault("(frames)", []).append(float(seen.blind.mean()))
        table[view] = {name: float(np.mean(values)) for name, values in found.items()}
    return table


def new_head(run_: Run, task: Detection, *, quick: bool) -> BoxHead:
    """An untrained head of the detector."""
    return new_box_head(run_.probe, task=task, recipe=head_recipe(quick=quick), contract=run_.contract)


def head_recipe(*, quick: bool) -> HeadRecipe:
    """The default recipe."""
    recipe = recipe_named("learning-loss-pp")
    return replace(recipe, steps=20) if quick else recipe


def fitted_heads(run_: Run, material: Material, task: Detection, seed: int, *, quick: bool) -> list[BoxHead]:
    """The default head, and those that lack one third of the families."""
    recipe, heads = head_recipe(quick=quick), []
    for without in (None, *range(len(GROUPS))):
        torch.manual_seed(seed)
        head = new_head(run_, task, quick=quick)
        rows = [material.clean, *(part for k, part in enumerate(material.copies) if k != without)]
        found = fit_on_boxes(head, BoxSet.join(rows), task=task, recipe=recipe, seed=seed).head
        assert isinstance(found, BoxHead)
        heads.append(found)
    return heads


def gathered(run_: Run, dataset: Dataset, seed: int, *, quick: bool) -> Material:
    """All that needs the network: what heads are fitted on, all other scores, how good the detector is."""
    task = run_.task
    assert isinstance(task, Detection)
    parts, test = parts_of(dataset), dataset.test
    known, holdout = parts["train"], parts["holdout"]
    if quick:
        known, holdout, test = (part.take(range(40)) for part in (known, holdout, test))
    sets = {
        name: gather(
            run_.probe,
            part,
            task.collate(part.targets),
            contract=run_.contract,
            batch=task.score_batch,
            lighten=task.lighten,
        )
        for name, part in (("fit", known), ("holdout", holdout))
    }
    names = [*one_pass(task), *others(task)]
    scorers = build(names, task=task, fit=sets["fit"], holdout=sets["holdout"])
    scorers += pooled_heads(run_, holdout, task, seed, quick=quick)
    scorers.append(BoxNeighbours(task, sets["fit"]))
    torch.manual_seed(seed)
    blank, recipe = new_head(run_, task, quick=quick), head_recipe(quick=quick)

    def rows(examples: Examples, *, clean: bool) -> BoxSet:
        return collect_boxes(run_.probe, blank, examples, task=task, contract=run_.contract, clean=clean)

    def shown(examples: Examples) -> Shown:
        return observe(run_, examples, scorers, task, blank=blank)

    copies = []
    for number, group in enumerate(GROUPS):
        few = replace(recipe, copies=1 if quick else COPIES, families=group)
        versions = corrupted_copies(holdout, few, seed=100 * seed + number)
        copies.append(BoxSet.join([rows(version, clean=False) for version in versions]))
    everything = shifted(test, tuple(FAMILIES), seed=7_000_000 + seed)
    return Material(
        clean=rows(holdout, clean=True),
        copies=tuple(copies),
        shown={
            "clean": (shown(test),),
            "known": (shown(everything),),
            "left_out": tuple(shown(shifted(test, group, seed=8_000_000 + seed)) for group in GROUPS),
            "fog": (shown(shifted(test, ("fog",), seed=9_000_000 + seed)),),
        },
        quality=quality(run_, test, task, classes=len(dataset.classes)),
    )


def judged(material: Material, heads: Sequence[BoxHead]) -> dict[str, Seen]:
    """The views of a seed, with the scores of its heads: each is judged on families that it does not know."""
    foggy = next(number for number, group in enumerate(GROUPS) if "fog" in group)
    chosen = {"clean": heads[:1], "known": heads[:1], "left_out": heads[1:], "fog": [heads[1 + foggy]]}
    views = {}
    for view, parts in material.shown.items():
        rows = []
        for part, head in zip(parts, chosen[view], strict=True):
            with torch.no_grad():
                score = head.predict(part.boxes.parts)[:, 0].double().numpy()
            rows.append(replace(part.seen, scores={**part.seen.scores, head.name: score}))
        views[view] = joined(rows)
    return views


@torch.no_grad()
def quality(run_: Run, test: Examples, task: Detection, *, classes: int) -> dict[str, Any]:
    """Average precision over all thresholds, F1 and LRP at the deployed one, on clean frames."""
    boxes, targets, matches = [], [], []
    # Average precision needs the boxes below the deployed threshold too.
    every = task.rule.model_copy(update={"score_threshold": 0.001})
    with evaluating(run_.probe):
        for rows, images in batches(test, contract=run_.contract, size=32):
            outputs = run_.probe(images).outputs
            truth = task.collate(test.targets[rows])
            found = find_candidates(outputs, every)
            boxes += list(Detection(every).condense(outputs))
            assert len(found.boxes) == len(images)
            targets += list(truth)
            matches += match_frames(outputs, truth, task.rule)
    precision = average_precision(boxes, targets, classes=classes)
    return {
        "ap": precision.mean,
        "ap50": precision.half,
        "f1": f1(matches),
        "lrp": lrp(matches, task.rule),
        "objects": int(sum(m.real.sum() for m in matches)),
        "missed": int(sum(m.missed.sum() for m in matches)),
        "false": int(sum(m.false.sum() for m in matches)),
    }


def measure_of(seen: Seen, name: str, *, few: bool = False) -> dict[str, float]:
    """Every measure of one score; higher is better but for aurc. few: those of `gains` alone."""
    score = seen.scores[name]
    if len(np.unique(score)) < 2:
        return dict.fromkeys(MEASURES, float("nan"))
    order = np.argsort(-score, kind="stable")
    total = max(seen.missed.sum(), 1.0)
    top = {}
    for share in (1, 5, 10):
        chosen = order[: max(1, round(len(order) * share / 100))]
        top[f"misses_at_{share}"] = float(seen.missed[chosen].sum() / total)
    both = 0 < seen.failed.sum() < len(seen.failed)
    usual = {
        "rho": float(spearman(score, seen.loss)),
        "auroc_failed": float(auroc(score, seen.failed)) if both else float("nan"),
        **top,
    }
    if few:
        return usual
    return {
        **usual,
        "rho_errors": float(spearman(score, seen.errors)),
        "aurc": float(aurc(score, seen.loss)),
    }


def tables_of(seeds: Sequence[dict[str, Seen]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{view: {score: {measure: mean and deviation over seeds}}}, with random and oracle for the misses."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for view in seeds[0]:
        tables[view] = {}
        for name in seeds[0][view].scores:
            found = [measure_of(seed[view], name) for seed in seeds]
            tables[view][name] = {
                measure: {
                    "mean": float(np.mean([one[measure] for one in found])),
                    "sd": float(np.std([one[measure] for one in found])),
                }
                for measure in MEASURES
            }
        best = [replace(seed[view], scores={"oracle": seed[view].missed}) for seed in seeds]
        oracle = [measure_of(seen, "oracle") for seen in best]
        tables[view]["(oracle)"] = {
            measure: {"mean": float(np.mean([one[measure] for one in oracle]))}
            for measure in ("misses_at_1", "misses_at_5", "misses_at_10")
        }
    return tables


def gains_of(
    seeds: Sequence[dict[str, Seen]], free: Sequence[str], *, head: str, replicates: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """The head's difference to the best free score, by view and measure: value, low and high."""
    gains: dict[str, dict[str, dict[str, Any]]] = {}
    for view in VIEWS:
        gains[view] = {}
        whole = {name: _means([seed[view] for seed in seeds], name) for name in (head, *free)}
        references = {}
        for measure in GAINS:
            usable = [name for name in free if np.isfinite(whole[name][measure])]
            references[measure] = max((whole[name][measure], name) for name in usable)[1]
        names = (head, *dict.fromkeys(references.values()))
        drawn = _resampled([seed[view] for seed in seeds], names, replicates=replicates)
        for measure, best in references.items():
            spread = np.array([one[head][measure] - one[best][measure] for one in drawn])
            low, high = np.nanquantile(spread, (0.025, 0.975))
            gains[view][measure] = {
                "value": whole[head][measure] - whole[best][measure],
                "low": float(low),
                "high": float(high),
                "reference": best,
            }
    return gains


def _means(views: Sequence[Seen], name: str) -> dict[str, float]:
    found = [measure_of(view, name, few=True) for view in views]
    return {measure: float(np.mean([one[measure] for one in found])) for measure in GAINS}


def _resampled(
    views: Sequence[Seen], names: Sequence[str], *, replicates: int
) -> list[dict[str, dict[str, float]]]:
    rng = np.random.default_rng(0)
    frames = np.unique(views[0].frame)
    where = {frame: np.flatnonzero(views[0].frame == frame) for frame in frames}
    drawn = []
    for _ in range(replicates):
        rows = np.concatenate([where[frame] for frame in rng.choice(frames, len(frames))])
        drawn.append({name: _means([view.take(rows) for view in views], name) for name in names})
    return drawn


def text_of(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], gains: Mapping[str, Any]) -> str:
    """The tables in Markdown, in per cent, best first in the first view."""
    shown = ("rho", "auroc_failed", "misses_at_10")
    views = list(VIEWS)
    names = sorted(
        (name for name in tables[views[0]] if name != "(oracle)"),
        key=lambda name: -np.nan_to_num(tables[views[0]][name]["rho"]["mean"], nan=-9),
    )
    head = " | ".join(f"{view} {measure}" for view in views for measure in shown)
    lines = [f"| score | {head} |", "|---" * (1 + len(views) * len(shown)) + "|"]
    for name in names:
        cells = [f"{100 * tables[view][name][m]['mean']:.1f}" for view in views for m in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for view, found in gains.items():
        for measure, one in found.items():
            value, low, high = (100 * one[name] for name in ("value", "low", "high"))
            lines.append(f"{view} {measure}: {value:+.1f} [{low:.1f}, {high:.1f}] against {one['reference']}")
    return "\n".join(lines)


def main() -> int:
    """Measures every score on every view."""
    parser = command_line(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="networks are kept here; default detectors-work")
    parser.add_argument("--replicates", type=int, default=500)
    chosen = parser.parse_args()
    chosen.work = work_folder(chosen)
    if chosen.quick:
        chosen.seeds, chosen.replicates = chosen.seeds[:1], min(chosen.replicates, 20)
    torch.set_num_threads(1)
    dataset = load_dataset("carla-detection", root=chosen.data)
    seeds, detectors, free, head = [], [], [], ""
    for seed in chosen.seeds:
        run_ = trained(dataset, seed, chosen)
        task = run_.task
        assert isinstance(task, Detection)
        file = chosen.work / f"seen-{seed}{'-quick' if chosen.quick else ''}.npz"
        if not file.exists():
            keep(file, gathered(run_, dataset, seed, quick=chosen.quick))
        material = kept(file)
        good = material.quality
        heads = fitted_heads(run_, material, task, seed, quick=chosen.quick)
        seeds.append(judged(material, heads))
        strengths = [{"base": one.base, "strength": one.strength} for one in heads]
        detectors.append({"seed": seed, **good, "heads": strengths})
        free, head = one_pass(task), "learning_loss_pp"
        found = f"AP50 {100 * good['ap50']:.1f}, F1 {100 * good['f1']:.1f}"
        print(f"seed {seed} judged: {found}", file=sys.stderr)
    tables = tables_of(seeds)
    gains = gains_of(seeds, free, head=head, replicates=chosen.replicates)
    goals = {
        f"{view} {measure}": gains[view][measure]["value"] >= goal
        and (goal == 0.0 or gains[view][measure]["low"] > 0)
        for (view, measure), goal in GOALS.items()
    }
    parts = {name: len(part) for name, part in parts_of(dataset).items()}
    result = {
        "data": "carla_detection by town; see the docstring",
        "frames": {**parts, "test": len(dataset.test)},
        "recipe": RECIPE.as_posix(),
        "detectors": detectors,
        "failure_rates": {view: [float(seed[view].failed.mean()) for seed in seeds] for view in seeds[0]},
        "replicates": chosen.replicates,
        "tables": tables,
        "gains": gains,
        "goals_met": goals,
        "blind": blind_table(seeds, head),
    }
    return finish(
        __file__, result, chosen, summary=text_of(tables, gains), met=chosen.quick or all(goals.values())
    )


if __name__ == "__main__":
    run(main)
