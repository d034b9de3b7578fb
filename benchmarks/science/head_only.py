"""What a head-only round learns of a shift that the head's library lacks, on 200 labelled random frames.

    python benchmarks/science/head_only.py --json --out benchmarks/results/science/head_only.json

Per data set and seed: a small convolutional network is trained, written by torch.onnx and exported as a
foreign file (`misfire export --onnx`) with a learned head. By the graph of that bundle, heads are fitted on
held-out frames, clean and under corruptions: one that knows every family (`known`), and one for each judged
family that never saw it (`left_out`). The left-out head's bundle then takes part in a round: 200 frames of
the test half under that family, each at a severity of its own, all of the random stream, with labels.
`refit_bundle` fits the head again, `write_delta` writes the delta, and the delta is applied as on a vehicle.

All three heads are judged on other frames of the test half under the family, by ONNX Runtime. `closed` is the
share of the gap between left-out and known head that the round closes: sums over families and seeds, with
95 % intervals by drawing the judged frames anew, and by drawing the rounds anew. `bit_identical` compares
every output but the score on all of them. `applied_equal`: the applied bundle has the refitted one's bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, write
from benchmarks.record import run as run_benchmark
from misfire_export.delta.reading import HeadGraph
from misfire_export.delta.refit import FieldFrames, RoundOptions, refit_bundle
from misfire_export.measure.run import answers, open_session
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx import outputs as onnx_outputs
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_runtime.bundle import Bundle
from misfire_runtime.delta import Refitted, write_delta
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.fitting.head_only import FieldRecipe
from misfire_train.heads import recipe_named
from misfire_train.heads.data import LossSet, corrupted_copies, join_sets
from misfire_train.heads.residual import ResidualHead
from misfire_train.heads.training import fit_on_losses
from misfire_train.metrics import auroc
from misfire_train.metrics.bootstrap import interval

HEAD = "learning_loss_pp"
SETS = ("fashion-mnist", "mnist")
JUDGED = ("night", "fog", "glare", "noise")
"""Families that are left out in turn."""
LIBRARY = (*JUDGED, "blur", "motion", "rain", "snow", "jpeg")
LABELLED = 200
"""Random frames with labels in a round."""
GOAL = 0.5
REPLICATES = 300


def small_network(dataset: Dataset, frames: Examples, *, seed: int, epochs: int) -> nn.Module:
    """A network as a user has one: trained on clean frames, in eval mode."""
    torch.manual_seed(seed)
    channels, side = dataset.contract.channels, dataset.contract.height
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * ((side + 3) // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, len(dataset.classes)),
    )
    images = frames.batch(np.arange(len(frames)), dataset.contract)
    labels = torch.as_tensor(np.asarray(frames.targets))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return network.eval()


def foreign_file(network: nn.Module, dataset: Dataset, path: Path) -> Path:
    """Writes the network as its user would: by torch.onnx, with names of its own."""
    contract = dataset.contract
    blank = torch.zeros(2, contract.channels, contract.height, contract.width)
    torch.onnx.export(
        network,
        (blank,),
        str(path),
        dynamo=True,
        input_names=["pixels"],
        output_names=["classes"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
        verbose=False,
        external_data=False,
    )
    return path


def under(frames: Examples, families: tuple[str, ...], *, seed: int) -> Examples:
    """Each frame under one of the families, at a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=families, mixed=0.0)
    return corrupted_copies(frames, recipe, seed=seed)[0]


def fitted(graph: HeadGraph, lab: dict[str, LossSet], *, without: str | None, steps: int) -> ResidualHead:
    """A head of the bundle's shapes, fitted on all versions of the held-out frames but one family's."""
    torch.manual_seed(0)
    recipe = replace(recipe_named("learning-loss-pp"), strength=1.0, columns=None, steps=steps)
    rows = join_sets([data for family, data in lab.items() if family != without])
    head = fit_on_losses(ResidualHead(**graph.place.options), rows, recipe=recipe).head
    assert isinstance(head, ResidualHead)
    return head


def bundle_with(base: Bundle, head: ResidualHead, *, version: str, folder: Path) -> Bundle:
    """The bundle with another head, as if it had been exported with it."""
    place = base.manifest.head
    assert place is not None
    state = head.state_dict()
    tensors = {name: state[key].numpy().astype(np.float32) for key, name in place.tensors.items()}
    manifest = base.manifest.model_copy(update={"version": version})
    write_delta(
        base, Refitted(HEAD, tensors, {}, manifest, {}), out=folder / "delta", bundle_out=folder / "bundle"
    )
    return Bundle.open(folder / "bundle")


def outputs(bundle: Bundle, frames: Examples) -> dict[str, NDArray[Any]]:
    """All outputs of the graph, by ONNX Runtime."""
    session = open_session(bundle.model_path.read_bytes())
    parts = [values for _, values in answers(session, frames, contract=bundle.manifest.input, batch=256)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same_files(left: Path, right: Path) -> bool:
    """Whether two bundles have the same files with the same bytes."""
    names = sorted(path.name for path in left.iterdir())
    return names == sorted(path.name for path in right.iterdir()) and all(
        (left / name).read_bytes() == (right / name).read_bytes() for name in names
    )


def export(dataset: Dataset, folder: Path, *, seed: int, sizes: dict[str, int]) -> tuple[Bundle, Examples]:
    """The bundle of a foreign file with a learned head, and held-out frames for the laboratory's heads."""
    order = np.random.default_rng(seed).permutation(len(dataset.train))
    cut = np.cumsum([sizes["train"], sizes["holdout"], 200])
    train, holdout, calibration = (
        dataset.train.take(np.sort(order[first:last]))
        for first, last in zip([0, *cut[:-1]], cut, strict=True)
    )
    network = small_network(dataset, train, seed=seed, epochs=sizes["epochs"])
    path = foreign_file(network, dataset, folder / "theirs.onnx")
    few = holdout.take(np.arange(100))
    # Its head must correct something, whatever that earns: its tensors are replaced below.
    forced = replace(recipe_named("learning-loss-pp"), strength=1.0, columns="all", steps=50)
    with mock.patch.object(onnx_outputs, "recipe_named", lambda _: forced):
        bundle = export_onnx(
            path,
            Frames(calibration, fit=train.take(np.arange(min(2000, len(train)))), holdout=few),
            ModelFacts(dataset.contract, classes=dataset.classes),
            out=folder / "base",
            options=Options(
                "theirs", "1.0.0", scores=[HEAD, "entropy"], default_score="entropy", shifts=Shifts(())
            ),
        )
    return bundle, holdout


def play(name: str, seed: int, folder: Path, *, options: argparse.Namespace) -> dict[str, Any]:
    """One seed of one data set: all families."""
    quick = options.quick
    sizes = (
        {"train": 600, "holdout": 120, "judged": 200, "epochs": 3, "steps": 60}
        if quick
        else {"train": 5000, "holdout": 400, "judged": 1500, "epochs": 4, "steps": 300}
    )
    dataset = load_dataset(name, root=options.data)
    folder.mkdir(parents=True, exist_ok=True)
    base, holdout = export(dataset, folder, seed=seed, sizes=sizes)
    graph = HeadGraph.open(base)
    lab = {"clean": graph.rows(holdout)}
    for number, family in enumerate(LIBRARY):
        copy = under(holdout, (family,), seed=1000 * seed + number)
        lab[family] = graph.rows(copy, clean=False)
    known = fitted(graph, lab, without=None, steps=sizes["steps"])
    knowing = bundle_with(base, known, version="1.0.0+known", folder=folder / "known")
    order = np.random.default_rng([seed, 1]).permutation(len(dataset.test))
    field = dataset.test.take(np.sort(order[:LABELLED]))
    others = dataset.test.take(np.sort(order[LABELLED : LABELLED + sizes["judged"]]))
    rounds = {}
    for number, family in enumerate(JUDGED[:2] if quick else JUDGED):
        own = folder / family
        head = fitted(graph, lab, without=family, steps=sizes["steps"])
        before = bundle_with(base, head, version="1.0.0+lab", folder=own / "before")
        labelled = under(field, (family,), seed=5_000_000 + 100 * seed + number)
        recipe = FieldRecipe(steps=40) if quick else FieldRecipe()
        refitted = refit_bundle(
            before,
            FieldFrames(labelled, np.ones(len(labelled), bool)),
            RoundOptions("1.0.1", recipe=recipe, seed=seed),
        )
        delta = write_delta(before, refitted, out=own / "delta", bundle_out=own / "refitted")
        after = delta.apply(before.path, out=own / "applied")
        judged = under(others, (family,), seed=7_000_000 + 100 * seed + number)
        found = {
            key: outputs(b, judged) for key, b in (("left_out", before), ("known", knowing), ("after", after))
        }
        failed = found["left_out"]["logits"].argmax(1) != judged.targets
        scores = {key: values[f"score.{HEAD}"].astype(np.float64) for key, values in found.items()}
        scores["entropy"] = found["left_out"]["score.entropy"].astype(np.float64)
        rounds[family] = {
            "failures": int(failed.sum()),
            "labelled_failures": refitted.report["left_out"]["failures"],
            "strength": refitted.report["strength"],
            "auroc": {key: auroc(values, failed) for key, values in scores.items()},
            "delta_bytes": delta.bytes,
            "graph_bytes": before.model_path.stat().st_size,
            "tensors": len(delta.tensors),
            "bit_identical": all(
                values.tobytes() == found["after"][output].tobytes()
                for output, values in found["left_out"].items()
                if output != f"score.{HEAD}"
            ),
            "applied_equal": same_files(after.path, own / "refitted"),
            "drawn": drawn(scores, failed, seed=seed),
        }
        print(f"{name}, seed {seed}, {family}: {rounds[family]['auroc']}", file=sys.stderr, flush=True)
    return rounds


def drawn(scores: dict[str, NDArray[np.float64]], failed: NDArray[np.bool_], *, seed: int) -> NDArray[Any]:
    """AUROCs of left-out, known and refitted head on the judged frames drawn anew, [REPLICATES,3]."""
    rng = np.random.default_rng([seed, 2])
    rows = []
    for _ in range(REPLICATES):
        some = rng.integers(0, len(failed), len(failed))
        rows.append([auroc(scores[key][some], failed[some]) for key in ("left_out", "known", "after")])
    return np.array(rows)


def closed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of the gap that rounds close together, and the gain, with 95 % intervals."""
    areas = np.array([[each["auroc"][key] for key in ("left_out", "known", "after")] for each in rounds])
    replicas = np.mean([each["drawn"] for each in rounds], axis=0)
    gap, gain = areas[:, 1] - areas[:, 0], areas[:, 2] - areas[:, 0]
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(rounds), (REPLICATES, len(rounds)))
    shares = (replicas[:, 2] - replicas[:, 0]) / (replicas[:, 1] - replicas[:, 0])
    return {
        "rounds": len(rounds),
        "left_out": float(areas[:, 0].mean()),
        "known": float(areas[:, 1].mean()),
        "after": float(areas[:, 2].mean()),
        "gain": float(gain.mean()),
        "gain_interval": interval(replicas[:, 2] - replicas[:, 0])[:2],
        "closed": float(gain.sum() / gap.sum()) if gap.sum() > 0 else None,
        "closed_interval": interval(shares)[:2],
        "closed_interval_over_rounds": interval(gain[chosen].sum(1) / gap[chosen].sum(1))[:2],
        "worst_gain": float(gain.min()),
    }


def summarise(result: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Everything together, by data set and by family."""
    every = [each for seeds in result.values() for families in seeds.values() for each in families.values()]
    by_family: dict[str, list[dict[str, Any]]] = {}
    for seeds in result.values():
        for families in seeds.values():
            for family, each in families.items():
                by_family.setdefault(family, []).append(each)
    return {
        "all": closed(every),
        "sets": {
            name: closed([each for families in seeds.values() for each in families.values()])
            for name, seeds in result.items()
        },
        "families": {family: closed(rounds) for family, rounds in by_family.items()},
        "bit_identical": all(each["bit_identical"] for each in every),
        "applied_equal": all(each["applied_equal"] for each in every),
        "delta_bytes": max(each["delta_bytes"] for each in every),
        "graph_bytes": min(each["graph_bytes"] for each in every),
        "kept": sum(each["strength"] == 0 for each in every),
    }


def table(summary: dict[str, Any]) -> str:
    """Markdown: AUROCs before and after, and the share of the gap."""
    lines = ["| what | left out | after the round | known | gap closed |", "|---" * 5 + "|"]
    rows = {**summary["sets"], **summary["families"], "all": summary["all"]}
    for name, one in rows.items():
        share = "no gap" if one["closed"] is None else f"{100 * one['closed']:.0f} %"
        low, high = (100 * value for value in one["closed_interval"])
        lines.append(
            f"| {name} | {100 * one['left_out']:.1f} | {100 * one['after']:.1f} | {100 * one['known']:.1f} | "
            f"{share} ({low:.0f} .. {high:.0f}) |"
        )
    lines.append(
        f"bit-identical: {summary['bit_identical']}; applied = refitted: {summary['applied_equal']}; "
        f"delta {summary['delta_bytes']} bytes"
    )
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON; 1 if a goal was missed."""
    parser = command_line(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.sets = options.seeds[:1], options.sets[:1]
    result: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="misfire-head-only-") as folder:
        for seed in options.seeds:
            for name in options.sets:
                rounds = play(name, seed, Path(folder) / f"{name}-{seed}", options=options)
                result.setdefault(name, {})[str(seed)] = rounds
                write(record(__file__, shown(result), options), options.out)
    found = shown(result)
    all_of = found["summary"]["all"]
    met = (
        all_of["closed"] is not None
        and all_of["closed"] >= GOAL
        and found["summary"]["bit_identical"]
        and found["summary"]["applied_equal"]
    )
    return finish(
        __file__, {**found, "goal": GOAL, "met": met}, options, summary=table(found["summary"]), met=met
    )


def shown(result: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The record: the summary, and each round without what was drawn."""
    plain = {
        name: {
            seed: {
                family: {key: value for key, value in each.items() if key != "drawn"}
                for family, each in families.items()
            }
            for seed, families in seeds.items()
        }
        for name, seeds in result.items()
    }
    return {"labelled": LABELLED, "summary": summarise(result), "sets": plain}


if __name__ == "__main__":
    run_benchmark(main)
