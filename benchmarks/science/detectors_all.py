"""Every failure score on one table: registered scores, the papers' heads, ensembles; losers too.

    python benchmarks/science/detectors_all.py --out benchmarks/results/science/detectors_all.json

The networks, images, weather and default head are those of detectors.py, and its --work is shared. Scores of
many passes are dear, so all scores are compared on the same random part of the test half (--frames), in the
same views: clean, every family at a random severity (`library`), and the same for heads that never saw the
family they are judged on (`left out`; a score that was fitted on no weather is the same there). Learning Loss
as published trains its own network along, so it is judged on that network's failures and compared with that
network's MSP. Mean and standard deviation over seeds; paired intervals over images. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import finish, record, run, write
from benchmarks.science.detection_table import Observed, differences, points, pool
from benchmarks.science.detector_scores import (
    JOINT,
    PASSES,
    REGISTERED,
    build_scores,
    joint_run,
    members,
    named,
)
from benchmarks.science.detectors import judge_default, options_of, settle, shifted_views, sizes
from misfire_train.data import Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.runs import Run, run_splits
from misfire_train.scores import SCORES, compute
from misfire_train.scores.fitting import batches, evaluating

DEFAULT = "learning_loss_pp"
METRICS = ("auroc", "aurc", "average_precision")
VIEWS = ("clean", "library", "left out")
Floats = NDArray[np.float64]
Columns = dict[str, dict[str, Floats]]


def score_views(
    run: Run, dataset: Any, test: Examples, others: list[nn.Module], *, seed: int, work: Path
) -> Columns:
    """{view: {score: [N]}} of everything but the default head; kept in `work`, view by view."""
    cache = work / f"others-{seed}-{len(test)}.pt"
    columns: Columns = torch.load(cache, weights_only=False) if cache.is_file() else {}
    wanted = {"clean", *FAMILIES}
    if wanted <= set(columns):
        return columns
    modules = build_scores(run, run_splits(run, dataset), others=others, seed=seed)
    print(f"seed {seed}: scores are fitted", file=sys.stderr, flush=True)
    for view, images in shifted_views(test, seed=seed):
        if view in columns:
            continue
        found = compute(run, images, modules, seed=seed)
        columns[view] = {name: values.astype(np.float64) for name, values in found.items()}
        torch.save(columns, cache)
        print(f"seed {seed}: {view} scored", file=sys.stderr, flush=True)
    return columns


def joint_views(options: argparse.Namespace, test: Examples, *, seed: int) -> dict[str, Observed]:
    """Learning Loss as published, and its own network's MSP, on that network's failures; kept in --work."""
    cache = options.work / f"joint-{seed}-{len(test)}.pt"
    if cache.is_file():
        kept: dict[str, Observed] = torch.load(cache, weights_only=False)
        return kept
    run = joint_run(seed, **sizes(options))
    assert run.head is not None
    views = {}
    for view, images in shifted_views(test, seed=seed):
        found = compute(run, images, [named(run.head, JOINT), "msp"])
        failed = failures(run, images)
        scores = {name: values.astype(np.float64) for name, values in found.items()}
        views[view] = Observed(scores, failed, failed.astype(np.float64), np.arange(len(images)))
    result = {"clean": views["clean"], "library": pool([views[family] for family in FAMILIES])}
    torch.save(result, cache)
    return result


@torch.no_grad()
def failures(run: Run, images: Examples) -> NDArray[np.bool_]:
    """[N]: is the network's answer wrong?"""
    found = []
    with evaluating(run.probe):
        for rows, batch in batches(images, contract=run.contract, size=256):
            targets = torch.as_tensor(images.targets[rows])
            found.append(run.task.failed(run.probe(batch).outputs, targets).numpy())
    return np.concatenate(found)


def merge(judged: Mapping[str, Observed], columns: Columns, rows: NDArray[np.intp]) -> dict[str, Observed]:
    """The default head's scores beside all others, on the same frames: three views, and each family."""
    known = {"clean": _merge_one(judged["clean"], columns["clean"], rows)}
    known |= {f: _merge_one(judged[f"library {f}"], columns[f], rows) for f in FAMILIES}
    apart = {f: _merge_one(judged[f"left out {f}"], columns[f], rows) for f in FAMILIES}
    result = {
        "clean": known["clean"],
        "library": pool([known[family] for family in FAMILIES]),
        "left out": pool(list(apart.values())),
    }
    result |= {f"library {family}": known[family] for family in FAMILIES}
    return result | {f"left out {family}": apart[family] for family in FAMILIES}


def _merge_one(judged: Observed, columns: Mapping[str, Floats], rows: NDArray[np.intp]) -> Observed:
    if not np.allclose(judged.scores["msp"][rows], columns["msp"], rtol=1e-3, atol=1e-4):
        raise SystemExit("the kept scores are of other networks or images; remove others-*.pt from --work")
    scores = {**columns, DEFAULT: judged.scores[DEFAULT][rows]}
    return Observed(scores, judged.failed[rows], judged.loss[rows], judged.image[rows])


def spread(seeds: Sequence[Observed]) -> dict[str, dict[str, float]]:
    """{score: {metric: standard deviation over seeds}}."""
    each = [points([observed], metrics=METRICS) for observed in seeds]
    return {
        name: {metric: float(np.std([table[name][metric] for table in each], ddof=1)) for metric in METRICS}
        for name in each[0]
    }


def tables(seeds: Sequence[dict[str, Observed]]) -> dict[str, Any]:
    """{view: {score: {metric: mean, metric_sd: spread}}}; the spread from two seeds on."""
    result: dict[str, Any] = {}
    for view in seeds[0]:
        observed = [one[view] for one in seeds]
        table = points(observed, metrics=METRICS)
        if len(seeds) > 1:
            for name, deviations in spread(observed).items():
                table[name] |= {f"{metric}_sd": value for metric, value in deviations.items()}
        result[view] = table
    return result


def mean_of_families(table: Mapping[str, Any], kind: str) -> dict[str, float]:
    """{score: AUROC within a family, averaged}: telling one weather from another earns nothing here."""
    return {
        name: float(np.mean([table[f"{kind} {family}"][name]["auroc"] for family in FAMILIES]))
        for name in table["clean"]
    }


def report(
    seeds: Sequence[dict[str, Observed]], joint: Sequence[dict[str, Observed]], options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that was measured so far."""
    table = tables(seeds)
    return {
        "seeds": options.seeds[: len(seeds)],
        "replicates": options.replicates,
        "joint_seeds": options.joint_seeds,
        "frames": len(seeds[0]["clean"].failed),
        "failures": {view: [int(one[view].failed.sum()) for one in seeds] for view in VIEWS},
        "passes": PASSES,
        "free": [column.name for column in REGISTERED if SCORES[column.score].free],
        "tables": table,
        "mean_of_families": {kind: mean_of_families(table, kind) for kind in ("library", "left out")},
        "learning_loss_as_published": {
            "accuracy": [float(1 - one["clean"].failed.mean()) for one in joint],
            "tables": tables(joint) if joint else {},
        },
    }


def against(seeds: Sequence[dict[str, Observed]], *, replicates: int) -> dict[str, Any]:
    """{view: {score: paired difference of the default head to it, with its interval}}."""
    others = [name for name in seeds[0]["clean"].scores if name != DEFAULT]
    return {
        view: differences(
            [one[view] for one in seeds],
            winner=DEFAULT,
            references=others,
            metrics=("auroc", "aurc"),
            replicates=replicates,
        )
        for view in VIEWS
    }


def markdown(result: Mapping[str, Any]) -> str:
    """One row per score, best clean AUROC first: AUROC and AURC in per cent, AUROC with its spread."""
    table = result["tables"]
    heading = " | ".join(f"{view} AUROC | AURC" for view in VIEWS)
    lines = [f"| score | passes | {heading} | within a family, left out |", "|---" * 9 + "|"]
    names = sorted(table["clean"], key=lambda name: -table["clean"][name]["auroc"])
    for name in names:
        cells = []
        for view in VIEWS:
            row = table[view][name]
            deviation = f" ± {100 * row['auroc_sd']:.1f}" if "auroc_sd" in row else ""
            cells += [f"{100 * row['auroc']:.1f}{deviation}", f"{100 * row['aurc']:.2f}"]
        within = result["mean_of_families"]["left out"][name]
        lines.append(
            f"| {name} | {result['passes'][name]} | " + " | ".join(cells) + f" | {100 * within:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = options_of(__doc__)
    parser.add_argument("--frames", type=int, default=1000, help="Test images that all scores share.")
    parser.add_argument(
        "--joint-seeds",
        type=int,
        nargs="*",
        default=[0],
        help="Seeds for which Learning Loss trains its own.",
    )
    options = parser.parse_args()
    settle(options, seeds=(0, 1, 2))
    dataset = load_dataset("fashion-mnist", root=options.data)
    whole = dataset.test.take(range(300)) if options.quick else dataset.test
    if options.quick:  # every score of many passes sees every frame under every family
        options.frames, options.replicates = min(options.frames, 60), min(options.replicates, 10)
    options.frames = min(options.frames, len(whole))
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[: options.frames])
    test = whole.take(rows)
    merged, joint = [], []
    result: dict[str, Any] = {}
    for seed in options.seeds:
        own, judged = judge_default(options, seed=seed, dataset=dataset, test=whole)
        others = members(seed, **sizes(options))
        columns = score_views(own, dataset, test, others, seed=seed, work=options.work)
        merged.append(merge(judged, columns, rows))
        if seed in options.joint_seeds:
            joint.append(joint_views(options, test, seed=seed))
        print(f"seed {seed}: done", file=sys.stderr, flush=True)
        result = report(merged, joint, options)
        # After every seed, so that an interrupted benchmark has something to show.
        write(record(__file__, result, options), options.out)
    result["default_against"] = against(merged, replicates=options.replicates)
    return finish(__file__, result, options, summary=markdown(result))


if __name__ == "__main__":
    run(main)
