"""Makes a bundle with a learned head in a few seconds: digits, a small network, an untrained head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from misfire_export.assemble import GraphScore, Source, assemble
from misfire_export.graph.trace import trace
from misfire_export.graph.tunable import open_head
from misfire_export.options import Options
from misfire_runtime.bundle import Bundle, Lineage
from misfire_train.data import load_dataset
from misfire_train.heads import recipe_named
from misfire_train.heads.data import collect
from misfire_train.heads.leaving_out import narrowed_set
from misfire_train.heads.residual import ResidualHead
from misfire_train.heads.training import candidate_heads
from misfire_train.scores import build
from misfire_train.signals import Probe, ScoredModel
from misfire_train.tasks import get_task

HEAD = "learning_loss_pp"


def headed_bundle(out: Path, *, steps: int = 150, weak: bool = False, refittable: bool = False) -> Bundle:
    """Returns digits@1.0.0 with the head, entropy and msp, which triggers on entropy.

    weak: the head has strength 0.  refittable: and computes its correction all the same.
    """
    digits, task = load_dataset("digits"), get_task("classification")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    known, unseen = digits.train.take(range(400)), digits.train.take(range(400, 600))
    images, labels = known.batch(range(400), digits.contract), torch.as_tensor(known.targets[:400])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    probe = Probe(network.eval(), last_layer="3")
    recipe = recipe_named("learning-loss-pp")
    head = candidate_heads(probe, recipe, contract=digits.contract, task=task, train=known)[0]
    assert isinstance(head, ResidualHead)
    seen = collect(probe, head, unseen, task=task, contract=digits.contract)
    head.standardise(seen.parts, seen.losses, eps=1e-3)
    if weak:
        head, seen = narrowed_set(head, seen, head.column_sets()[-1])
        head.standardise(seen.parts, seen.losses, eps=1e-3)
        head.weaken(0.0, head.free_line(seen.parts, seen.losses, eps=1e-3))
        open_head(head, refittable=refittable)
    else:
        # As a head from elsewhere: it disturbs the order of its free score, and has something to learn.
        nn.init.normal_(head.committee.last, std=0.3)
    head.recipe = recipe.name
    head.eval().requires_grad_(False)
    scores = [head, *build(["entropy", "msp"], task=task)]
    model = ScoredModel(probe, scores, output_name=task.output_name).eval()
    source = Source(
        graph=trace(model, contract=digits.contract),
        contract=digits.contract,
        task=task,
        output=task.output_name,
        scores=tuple(GraphScore(score.name, score.definition, score.free) for score in scores),
        lineage=Lineage(run_id="small", dataset="digits", dataset_sha256="0" * 64),
        classes=tuple(digits.classes),
        reference=model,
        head=head,
    )
    options = Options("digits", "1.0.0", default_score="entropy")
    return assemble(source, calibration=digits.test.take(range(200)), out=out, options=options)
