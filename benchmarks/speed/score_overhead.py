"""What failure scores cost: ResNet-18 at 224x224 with scores in the graph against the same network without.

    python benchmarks/speed/score_overhead.py --json
    python benchmarks/speed/score_overhead.py --task detection --json   (box_overhead.py)

One thread, ONNX Runtime on the CPU. All graphs are sessions of one process; each round runs every graph once
on the same real frame, in changing order, so that load and clock hit all alike. `ratios` are those of
medians to the bare network's, of the processor time of the one thread: on an idle machine that is the
latency, on a busy one it leaves out the turns of other programs (`wall_ms` has them in). The network's
weights are random (seeded): they cost what trained ones cost; banks and gradients are fitted on its features
of real images. The cost grows with the number of classes: S_a is one product with a [K,513] matrix.

`learning_loss_pp` is the head of the default recipe: it reads statistics of four feature maps, a memory of
2,048 embeddings, and two second opinions. `learning_loss_pp_outputs` reads the answer and the memory alone,
as a cross-fitted head does (`head.folds`).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from benchmarks.speed.box_overhead import LIMITS as BOX_LIMITS
from benchmarks.speed.box_overhead import NAME as BOX_MODEL
from benchmarks.speed.box_overhead import box_graphs
from misfire_export.graph.trace import trace
from misfire_export.measure.run import open_session
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples, load_dataset
from misfire_train.heads import HeadRecipe, LossHead, ResidualHead, recipe_named
from misfire_train.heads.memory import BANK_ROWS, Memory
from misfire_train.heads.training import candidate_heads
from misfire_train.models import build_model
from misfire_train.scores import FitSet, build, gather
from misfire_train.signals import Probe, Score, ScoredModel, Signals
from misfire_train.tasks import get_task

CONTRACT = InputContract(
    height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="letterbox"
)
LIMITS = {
    "output_only": 1.01,
    "wrong_prediction_approx": 1.01,
    "learning_loss_pp": 1.02,
    "learning_loss_pp_outputs": 1.02,
    "egl_pp": 1.03,
    "all": 1.05,
}
OUTPUT_ONLY = ("msp", "entropy", "margin", "energy", "max_logit")
BANK, IMAGES = 1024, 256
OPENINGS = 5
"""How often the sessions are opened anew: where one lies in memory is luck, and worth half a per cent."""


def main() -> int:
    """Prints the table or JSON; 1 if a ratio is above its limit."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=None, help="folder of the data sets")
    parser.add_argument("--task", choices=("classification", "detection"), default="classification")
    parser.add_argument("--classes", type=int, default=100, help="of classification")
    parser.add_argument("--rounds", type=int, help="default 400; 60 with --quick")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (60 if chosen.quick else 400)
    torch.set_num_threads(1)
    seed = chosen.seeds[0]
    if chosen.task == "detection":
        graphs, frames = box_graphs(chosen.data, seed=seed)
        about: dict[str, Any] = {"model": BOX_MODEL}
        limits = BOX_LIMITS
    else:
        dataset = load_dataset("traffic-lights", root=chosen.data)
        graphs = build_graphs(dataset.train, classes=chosen.classes, seed=seed)
        frames = [dataset.test.batch([i], CONTRACT).numpy() for i in range(16)]
        about = {"model": f"resnet18, 224x224, {chosen.classes} classes", "bank": BANK}
        limits = LIMITS
    result = {**about, **measure(graphs, frames, limits=limits, rounds=rounds, seed=seed)}
    ratios = result["ratios"]
    table = "\n".join(f"{name:26} {ratios[name]:.4f}  (limit {limit})" for name, limit in limits.items())
    met = all(ratios[name] <= limit for name, limit in limits.items())
    return finish(__file__, result, chosen, summary=table, met=met)


def measure(
    graphs: dict[str, Any], frames: Sequence[Any], *, limits: dict[str, float], rounds: int, seed: int
) -> dict[str, Any]:
    """Runs the graphs interleaved, and reports."""
    nodes = {name: len(graph.graph.node) for name, graph in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    wall: dict[str, list[float]] = {name: [] for name in graphs}
    for opening in range(OPENINGS):
        sessions = {name: open_session(graph) for name, graph in graphs.items()}
        spent, passed = interleave(sessions, frames, rounds=rounds // OPENINGS, seed=seed + opening)
        for name in graphs:
            times[name] += spent[name]
            wall[name] += passed[name]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "rounds": rounds,
        "openings": OPENINGS,
        "median_ms": {name: 1000 * value for name, value in medians.items()},
        "wall_ms": {name: 1000 * float(np.median(values)) for name, values in wall.items()},
        "nodes": nodes,
        "ratios": {name: medians[name] / medians["bare"] for name in graphs if name != "bare"},
        "limits": limits,
    }


def build_graphs(train: Examples, *, classes: int, seed: int) -> dict[str, Any]:
    """One graph per set of scores, all of the same network."""
    torch.manual_seed(seed)
    built = build_model("resnet18", task="classification", outputs=classes, channels=3)
    layers = built.feature_layers
    probe = Probe(built.module.eval(), last_layer=built.last_layer, features=layers).eval()
    fit = fit_set(probe, train, classes=classes, seed=seed)
    free = build(OUTPUT_ONLY, task="classification")
    approx, egl_pp = build(
        ["wrong_prediction_approx", "egl_pp"],
        task="classification",
        fit=fit,
        holdout=fit.take(range(200)),
        egl_pp={"size": BANK, "sigma": "auto"},
    )
    recipe, shaping = recipe_named("learning-loss-pp"), train.take(np.arange(32))
    head = loss_head(probe, fit, recipe=recipe, train=shaping)
    light = loss_head(probe, fit, recipe=replace(recipe, sees_features=False), train=shaping)
    sets: dict[str, list[Score]] = {
        "bare": [],
        "output_only": [*free],
        "wrong_prediction_approx": [*free, approx],
        "learning_loss_pp": [head],
        "learning_loss_pp_outputs": [light],
        "egl_pp": [egl_pp],
        "all": [*free, approx, head, egl_pp],
    }
    return {name: _graph(probe, scores, embedding=name == "all") for name, scores in sets.items()}


def fit_set(probe: Probe, train: Examples, *, classes: int, seed: int) -> FitSet:
    """Features of IMAGES real frames and, to fill the bank, of mixtures of two of them; labels are drawn."""
    rng = np.random.default_rng(seed)
    images = train.take(np.arange(IMAGES))
    real = gather(probe, images, np.zeros(IMAGES, np.int64), classes=classes, contract=CONTRACT, batch=16)
    pairs = torch.from_numpy(rng.integers(0, IMAGES, (2, BANK - IMAGES)))
    share = torch.from_numpy(rng.random((BANK - IMAGES, 1)).astype(np.float32))
    signals = real.signals

    def fill(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, share * values[pairs[0]] + (1 - share) * values[pairs[1]]])

    filled = Signals(fill(signals.outputs), fill(signals.last_input), {}, signals.weight, signals.bias)
    return FitSet(filled, torch.from_numpy(rng.integers(0, classes, BANK)), classes)


def loss_head(probe: Probe, fit: FitSet, *, recipe: HeadRecipe, train: Examples) -> LossHead:
    """A LearningLoss++ head as `misfire train` shapes it, its memory full; the weights are drawn.

    train: a few frames, whose labels are drawn too; they shape the head, and its second opinions.
    """
    labels = np.random.default_rng(0).integers(0, fit.classes, len(train))
    known = replace(train, targets=labels)
    head = candidate_heads(probe, recipe, contract=CONTRACT, task=get_task("classification"), train=known)[0]
    assert isinstance(head, ResidualHead)
    rows = torch.arange(BANK_ROWS) % len(fit)
    memory = Memory.fit(fit.signals.embedding[rows], fit.targets[rows], classes=fit.classes)
    head.memory = memory
    torch.nn.init.normal_(head.committee.last, std=0.1)
    return head.eval()


def interleave(
    sessions: dict[str, ort.InferenceSession], frames: Sequence[Any], *, rounds: int, seed: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(processor, wall) seconds per call, `rounds` of each in changing order; the first tenth warms up."""
    rng = np.random.default_rng(seed)
    names = list(sessions)
    times: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    warm_up = max(3, rounds // 10)
    gc.disable()
    for i in range(rounds + warm_up):
        frame = {"image": frames[i % len(frames)]}
        for index in rng.permutation(len(names)):
            name = names[index]
            begun, started = time.perf_counter(), time.thread_time()
            sessions[name].run(None, frame)
            spent, passed = time.thread_time() - started, time.perf_counter() - begun
            if i >= warm_up:
                times[name].append(spent)
                wall[name].append(passed)
    gc.enable()
    return times, wall


def _graph(probe: Probe, scores: Sequence[Score], *, embedding: bool) -> Any:
    """The traced graph; without the embedding output unless asked for, which the bare network lacks too."""
    graph = trace(ScoredModel(probe, scores).eval(), contract=CONTRACT)
    if not embedding:
        kept = [output for output in graph.graph.output if output.name != "embedding"]
        del graph.graph.output[:]
        graph.graph.output.extend(kept)
        _drop_unused(graph)
    return graph


def _drop_unused(graph: Any) -> None:
    from misfire_export.graph.tidy import drop_unused

    drop_unused(graph.graph)


if __name__ == "__main__":
    run(main)
