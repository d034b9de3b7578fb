"""Builds the graphs for `score_overhead.py --task detection`: detector-small at its recipe's size, 320x192.

`bare` is what a detector ships without misfire: the network, the best candidates, suppression, `detections`.
`default` is what is exported by default: the learned head with its outputs per box, the task's default
scores, silence among them, and the embedding. `all` adds every other one-pass score. The weights are
random (seeded): shapes are static, so they cost what trained ones cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_export.graph.tidy import drop_unused
from misfire_export.graph.trace import trace
from misfire_runtime.preprocess import InputContract
from misfire_train.data import load_dataset
from misfire_train.heads import recipe_named
from misfire_train.heads.box_training import new_box_head
from misfire_train.models import build_model
from misfire_train.scores import build, gather, names_for
from misfire_train.signals import Probe, Score, ScoredModel
from misfire_train.tasks.detection import Detection

CONTRACT = InputContract(height=192, width=320, mean=(0.45,) * 3, std=(0.25,) * 3, resize="letterbox")
LIMITS = {"default": 1.05}
CLASSES = 5
FITTED, SHOWN = 48, 16
NAME = f"detector-small, {CONTRACT.width}x{CONTRACT.height}, {CLASSES} classes"


def box_graphs(data: Path | None, *, seed: int) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
    """Returns one graph for each set of scores, all of the same detector, and frames to run them on."""
    dataset = load_dataset("carla-detection", root=data)
    torch.manual_seed(seed)
    built = build_model("detector-small", task="detection", outputs=CLASSES, channels=3)
    # Untrained logits are all alike, and no candidate would become a box.
    torch.nn.init.normal_(built.module.get_parameter("head.weight"), std=0.5)
    probe = Probe(built.module.eval(), last_layer=built.last_layer, features=built.feature_layers).eval()
    task = Detection()
    known = dataset.train.take(np.linspace(0, len(dataset.train) - 1, FITTED).astype(int))
    targets = task.collate(known.targets)
    fit = gather(probe, known, targets, contract=CONTRACT, batch=16, lighten=task.lighten)
    recipe = recipe_named("learning-loss-pp")
    head = new_box_head(probe, task=task, recipe=recipe, contract=CONTRACT).eval()
    every = {name: build([name], task=task, fit=fit, holdout=fit)[0] for name in _names(task)}
    usual = [every[name] for name in task.default_scores]
    sets: dict[str, list[Score]] = {
        "bare": [],
        "default": [head, *usual],
        "all": [head, *every.values()],
    }
    graphs = {name: _graph(probe, task, scores, embedding=name != "bare") for name, scores in sets.items()}
    return graphs, [dataset.test.batch([i], CONTRACT).numpy() for i in range(SHOWN)]


def _names(task: Detection) -> list[str]:
    return [name for name in names_for(task, exportable=True) if name != "stacked"]


def _graph(probe: Probe, task: Detection, scores: list[Score], *, embedding: bool) -> Any:
    scored = ScoredModel(probe, scores, output_name=task.output_name, answer=task.answer).eval()
    graph = trace(scored, contract=CONTRACT)
    if not embedding:
        kept = [output for output in graph.graph.output if output.name != "embedding"]
        del graph.graph.output[:]
        graph.graph.output.extend(kept)
        drop_unused(graph.graph)
    return graph
