"""Which failure score finds a classifier's mistakes: every one-pass score and the learned heads.

    python benchmarks/science/detectors.py --seeds 0 1 2 --out benchmarks/results/science/detectors.json

Per seed: a small ResNet is trained on a share of 12,000 Fashion-MNIST images and a head on others of the
12,000, which the network never saw. Then all 10,000 test images are scored: clean, and once under each
corruption family (severity 1 to 5 drawn per image). `library`: the head knew all families. `left out`: for
each family a head that never saw it. Differences to entropy and MSP are paired on the same bootstrap
resamples of test images, drawn with all their corrupted copies, and averaged over seeds. Nothing is chosen
on the test half: recipes were tuned on other seeds and other training images (docs/failure-scores.md).
Intermediate results are kept in --work, so that an interrupted benchmark goes on where it stopped. --quick:
a small part, to see that it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, run, work_folder, write
from benchmarks.science.detection_table import Observed, View, differences, markdown, points, pool
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.fit import train_run
from misfire_train.heads import HeadRecipe, LossHead, ResidualHead, recipe_named
from misfire_train.heads.data import LossSet, collect, corrupted_copies, image_batches, join_sets
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.progress import Reporter
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build, gather
from misfire_train.scores.fitting import evaluating
from misfire_train.train_config import parse_train_config

FREE = ("entropy", "msp", "margin", "energy", "max_logit")
FITTED = ("egl", "egl_unweighted", "knn_distance", "mahalanobis", "wrong_prediction_approx")
REFERENCES = ("entropy", "msp")


def train(
    seed: int,
    *,
    work: Path,
    data: Path | None,
    epochs: int,
    limit: int,
    head: str = "none",
    name: str = "run",
) -> Run:
    """The task network of a seed, with a head of that recipe; an existing one is loaded."""
    config = parse_train_config(
        {"dataset": "fashion-mnist", "data": None if data is None else str(data), "seed": seed},
        overrides={
            "split.limit": limit,
            "split.train": 0.69,
            "split.validation": 0.05,
            "split.holdout": 0.25,
            "split.calibration": 0.01,
            "training.epochs": epochs,
            "head.recipe": head,
        },
    )
    return train_run(config, out=work / f"{name}-{seed}", resume=True, reporter=Reporter())


def weather(examples: Examples, families: tuple[str, ...], *, seed: int, mixed: float = 0.0) -> Examples:
    """Each image under one of the families (or two), at a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=families, mixed=mixed)
    return corrupted_copies(examples, recipe, seed=seed)[0]


def fitting_versions(
    holdout: Examples, *, seed: int, versions_per_family: int
) -> Iterator[tuple[str, Examples]]:
    """What heads are fitted on beside the clean holdout: every family by itself, and six pairs."""
    for number, family in enumerate(FAMILIES):
        for version in range(versions_per_family):
            copy = weather(holdout, (family,), seed=1000 * seed + 50 * version + number)
            yield f"{family}#{version}", copy
    generator = np.random.default_rng(seed)
    for number in range(6):
        pair = tuple(str(name) for name in generator.choice(list(FAMILIES), 2, replace=False))
        yield "+".join(pair), weather(holdout, pair, seed=1000 * seed + 900 + number, mixed=1.0)


def shifted_views(test: Examples, *, seed: int) -> Iterator[tuple[str, Examples]]:
    """The test images clean, and once under each family."""
    yield "clean", test
    for number, family in enumerate(FAMILIES):
        yield family, weather(test, (family,), seed=7_000_000 + 1000 * seed + number)


def observe(run: Run, examples: Examples, head: LossHead, scorers: list[Any], *, clean: bool) -> View:
    """Parts and scores of a set of images."""
    data = collect(run.probe, head, examples, task=run.task, contract=run.contract, clean=clean)
    columns: dict[str, list[torch.Tensor]] = {score.name: [] for score in scorers}
    if scorers:
        with evaluating(run.probe, *scorers), torch.no_grad():
            for images in image_batches(examples, run.contract):
                signals = run.probe(images)
                for score in scorers:
                    columns[score.name].append(score(signals))
    return View(data, {name: torch.cat(values).double().numpy() for name, values in columns.items()})


def gather_seed(
    run: Run, dataset: Dataset, *, seed: int, test: Examples, versions_per_family: int, cache: Path
) -> dict[str, Any]:
    """Everything that heads and judges need, from the network's forward passes; kept in `cache`."""
    if cache.is_file():
        loaded: dict[str, Any] = torch.load(cache, weights_only=False)
        return loaded
    parts = run_splits(run, dataset)
    recipe = recipe_named("learning-loss-pp")
    heads = candidate_heads(
        run.probe, recipe, contract=run.contract, task=run.task, train=parts["train"], seed=seed
    )
    clean = collect(run.probe, heads[0], parts["holdout"], task=run.task, contract=run.contract)
    base = best_base(run.probe, heads, parts["holdout"], clean, contract=run.contract)
    head = heads[base]
    fit = gather(run.probe, parts["train"], torch.as_tensor(parts["train"].targets), contract=run.contract)
    held = gather(
        run.probe, parts["holdout"], torch.as_tensor(parts["holdout"].targets), contract=run.contract
    )
    scorers = build([*FREE, *FITTED], task="classification", fit=fit, holdout=held)
    fitting = {"clean": collect(run.probe, head, parts["holdout"], task=run.task, contract=run.contract)}
    for key, copy in fitting_versions(parts["holdout"], seed=seed, versions_per_family=versions_per_family):
        fitting[key] = observe(run, copy, head, [], clean=False).data
    views = {
        name: observe(run, copy, head, scorers, clean=name == "clean")
        for name, copy in shifted_views(test, seed=seed)
    }
    result = {
        "fitting": fitting,
        "views": views,
        "options": head.options,
        "memory": head.memory.state_dict(),
        "opinions": head.opinions.state_dict(),
    }
    torch.save(result, cache)
    return result


def fresh_head(gathered: dict[str, Any]) -> ResidualHead:
    """An untrained head of the seed's shapes and memory."""
    head = ResidualHead(**gathered["options"])
    head.memory.load_state_dict(gathered["memory"])
    head.opinions.load_state_dict(gathered["opinions"])
    head.opinions.requires_grad_(False)
    return head


def without(fitting: dict[str, LossSet], family: str | None) -> LossSet:
    """The fitting sets in which a family does not occur."""
    return join_sets([rows for key, rows in fitting.items() if family not in key.split("#")[0].split("+")])


def fit(gathered: dict[str, Any], *, left_out: str | None, recipe: HeadRecipe, seed: int) -> LossHead:
    """A head on everything but one family."""
    torch.manual_seed(seed)
    return fit_on_losses(
        fresh_head(gathered), without(gathered["fitting"], left_out), recipe=recipe, seed=seed
    ).head


@torch.no_grad()
def observed(view: View, heads: dict[str, LossHead]) -> Observed:
    """One view with the heads' scores beside the others."""
    learned = {
        name: head.pool(head.predict(view.data.parts)).double().numpy() for name, head in heads.items()
    }
    assert view.data.failed is not None
    failed = view.data.failed.numpy()
    return Observed({**view.scores, **learned}, failed, failed.astype(np.float64), view.data.image.numpy())


def judge_seed(
    gather_signals: Callable[[], dict[str, Any]], *, seed: int, recipe: HeadRecipe, cache: Path
) -> dict[str, Observed]:
    """The three views of a seed: clean, library, left out; and every family by itself. Kept in `cache`."""
    if cache.is_file():
        kept: dict[str, Any] = torch.load(cache, weights_only=False)
        if replace(kept["recipe"], copies=recipe.copies) == recipe:  # copies are this benchmark's own
            judged: dict[str, Observed] = kept["views"]
            return judged
    gathered = gather_signals()
    # All columns, because the views were gathered with them; the strength is chosen once for the seed.
    head = fit(gathered, left_out=None, recipe=replace(recipe, columns="all"), seed=seed)
    assert isinstance(head, ResidualHead)
    given, recipe = recipe, replace(recipe, strength=head.strength, columns="all")
    views: dict[str, View] = gathered["views"]
    known = {name: observed(view, {"learning_loss_pp": head}) for name, view in views.items()}
    apart = []
    for family in FAMILIES:
        other = fit(gathered, left_out=family, recipe=recipe, seed=seed)
        apart.append(observed(views[family], {"learning_loss_pp": other}))
    library = pool([known[family] for family in FAMILIES])
    result = {"clean": known["clean"], "library": library, "left out": pool(apart)}
    result |= {f"library {family}": known[family] for family in FAMILIES}
    result |= {f"left out {family}": one for family, one in zip(FAMILIES, apart, strict=True)}
    torch.save({"recipe": given, "views": result}, cache)
    return result


GOALS = {"clean": 0.0, "library": 0.03, "left out": 0.005}
"""By how much of AUROC the head has to win; in AURC it has to win at all."""


def summarise(seeds: Sequence[dict[str, Observed]], *, replicates: int) -> dict[str, Any]:
    """Tables, paired differences, and which goals are met."""
    metrics = ("auroc", "aurc")
    tables = {view: points([s[view] for s in seeds], metrics=metrics) for view in seeds[0]}
    paired = {
        view: differences(
            [s[view] for s in seeds],
            winner="learning_loss_pp",
            references=REFERENCES,
            metrics=metrics,
            replicates=replicates,
        )
        for view in GOALS
    }
    met = {
        view: all(
            paired[view][reference]["auroc"]["wins"]
            and paired[view][reference]["auroc"]["difference"] >= goal
            and paired[view][reference]["aurc"]["wins"]
            for reference in REFERENCES
        )
        for view, goal in GOALS.items()
    }
    return {"tables": tables, "differences": paired, "goals_met": met}


def judge_default(
    options: argparse.Namespace, *, seed: int, dataset: Dataset, test: Examples
) -> tuple[Run, dict[str, Observed]]:
    """The network of a seed, and the default head beside the one-pass scores in every view."""
    work: Path = options.work
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, steps=40) if options.quick else recipe
    run = train(seed, **sizes(options))

    def signals() -> dict[str, Any]:
        cache = work / f"signals-{seed}.pt"
        return gather_seed(run, dataset, seed=seed, test=test, versions_per_family=1, cache=cache)

    return run, judge_seed(signals, seed=seed, recipe=recipe, cache=work / f"judged-{seed}.pt")


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Where and on how much networks are trained."""
    limit, epochs = (1200, 2) if options.quick else (12_000, options.epochs)
    return {"work": options.work, "data": options.data, "epochs": epochs, "limit": limit}


def options_of(description: str, *, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The options of the benchmarks that share these networks and their --work."""
    parser = command_line(description, seeds=seeds)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="networks and scores are kept here; default detectors-work")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=300)
    return parser


def settle(options: argparse.Namespace, *, seeds: Sequence[int]) -> None:
    """Fills in what --quick decides: a folder that goes again, one seed, few resamples."""
    options.work = work_folder(options)
    if options.quick:
        options.replicates = min(options.replicates, 50)
        if options.seeds == list(seeds):
            options.seeds = options.seeds[:1]


def main() -> int:
    """Runs it and prints a table, or JSON."""
    options = options_of(__doc__).parse_args()
    settle(options, seeds=(0, 1, 2))
    dataset = load_dataset("fashion-mnist", root=options.data)
    test = dataset.test.take(range(300)) if options.quick else dataset.test
    judged: list[dict[str, Observed]] = []
    result: dict[str, Any] = {}
    for seed in options.seeds:
        judged.append(judge_default(options, seed=seed, dataset=dataset, test=test)[1])
        print(f"seed {seed} judged", file=sys.stderr, flush=True)
        result = report(judged, options, test_images=len(test))
        # After every seed, so that an interrupted benchmark has something to show.
        write(record(__file__, result, options), options.out)
    shown = {view: result["tables"][view] for view in GOALS}
    return finish(__file__, result, options, summary=markdown(shown, metrics=("auroc", "aurc")))


def report(
    judged: Sequence[dict[str, Observed]], options: argparse.Namespace, *, test_images: int
) -> dict[str, Any]:
    """Everything that was measured so far."""
    return {
        "seeds": options.seeds[: len(judged)],
        "test_images": test_images,
        "accuracy": [float(1 - s["clean"].failed.mean()) for s in judged],
        "epochs": options.epochs,
        "replicates": options.replicates,
        **summarise(judged, replicates=options.replicates),
    }


if __name__ == "__main__":
    run(main)
