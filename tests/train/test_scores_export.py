"""Every exportable score traces into one ONNX graph per task, batch-dynamic, and agrees there with torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from misfire_train.scores import FitSet, build, gather, names_for
from misfire_train.scores.flip import FlipConsistency, FlipScoredModel
from misfire_train.signals import Probe, Score, ScoredModel

pytestmark = pytest.mark.slow

JOINTS, CLASSES = 4, 5


def classifier() -> tuple[nn.Module, str]:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8, CLASSES)), "1"


def regressor() -> tuple[nn.Module, str]:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8, 2)), "1"


def keypoint_net() -> tuple[nn.Module, str]:
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, JOINTS, 1)), "2"


def segmenter() -> tuple[nn.Module, str]:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)), "2"


def targets_for(task: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if task == "classification":
        return torch.arange(count) % CLASSES
    if task == "regression":
        return torch.randn(count, 2, generator=generator)
    if task == "keypoints":
        points = torch.rand(count, JOINTS, 2, generator=generator) * 31
        return torch.cat([points, torch.ones(count, JOINTS, 1)], 2)
    return torch.randint(0, CLASSES, (count, 32, 32), generator=generator, dtype=torch.uint8)


MODELS = {
    "classification": classifier,
    "regression": regressor,
    "keypoints": keypoint_net,
    "segmentation": segmenter,
}


def fitted(task: str) -> tuple[Probe, FitSet]:
    torch.manual_seed(0)
    model, last = MODELS[task]()
    probe = Probe(model, last_layer=last).eval()
    images = torch.randn(80, 3, 32, 32)
    return probe, gather(probe, images, targets_for(task, 80))


def exported_scores(task: str, fit: FitSet) -> list[Score]:
    names = [name for name in names_for(task, exportable=True) if name != "stacked"]
    scores = build(names, task=task, fit=fit, holdout=fit)
    if task == "regression":
        scores += build(["aleatoric"], task=task, holdout=fit)
    assert all(score.exportable for score in scores)
    return scores


def run_onnx(model: nn.Module, path: Path, batches: list[Tensor]) -> list[dict[str, Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporter warns of its internals
        program = torch.onnx.export(
            model.eval(),
            (torch.randn(3, 3, 32, 32),),
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=512)}},
            input_names=["image"],
        )
    assert program is not None
    names = list(model(batches[0]))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = []
    for batch in batches:
        values = session.run(None, {"image": batch.numpy()})
        results.append(dict(zip(names, (torch.from_numpy(np.asarray(v)) for v in values), strict=True)))
    return results


@pytest.mark.parametrize("task", list(MODELS))
def test_all_exportable_scores_of_a_task_agree_in_onnx_for_every_batch_size(
    task: str, tmp_path: Path
) -> None:
    probe, fit = fitted(task)
    model = ScoredModel(probe, exported_scores(task, fit), output_name="answer").eval()
    batches = [torch.randn(size, 3, 32, 32) for size in (1, 2, 7)]
    for batch, answers in zip(batches, run_onnx(model, tmp_path / "model.onnx", batches), strict=True):
        with torch.no_grad():
            expected = model(batch)
        assert set(expected) == set(answers)
        for name, value in expected.items():
            torch.testing.assert_close(
                answers[name], value, rtol=2e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_stacked_and_fixed_sigma_export_too(tmp_path: Path) -> None:
    probe, fit = fitted("classification")
    options = {"components": ["entropy", "egl", "knn_distance"]}
    scores = build(
        ["entropy", "egl_pp", "stacked"],
        task="classification",
        fit=fit,
        holdout=fit,
        egl_pp={"sigma": "auto"},
        stacked=options,
    )
    model = ScoredModel(probe, scores).eval()
    batch = torch.randn(4, 3, 32, 32)
    (answers,) = run_onnx(model, tmp_path / "model.onnx", [batch])
    with torch.no_grad():
        for name, value in model(batch).items():
            torch.testing.assert_close(answers[name], value, rtol=2e-3, atol=1e-5)


def test_two_pass_flip_consistency_has_a_graph_of_its_own(tmp_path: Path) -> None:
    probe, _ = fitted("segmentation")
    model = FlipScoredModel(probe, [FlipConsistency(task="segmentation")], output_name="answer").eval()
    batch = torch.randn(3, 3, 32, 32)
    (answers,) = run_onnx(model, tmp_path / "model.onnx", [batch])
    with torch.no_grad():
        expected = model(batch)
    torch.testing.assert_close(
        answers["score.flip_consistency"], expected["score.flip_consistency"], rtol=1e-3, atol=1e-6
    )
    assert float(expected["score.flip_consistency"].min()) > 0


def test_pitfall_12_a_batch_of_one_keeps_its_dimension() -> None:
    for task in MODELS:
        probe, fit = fitted(task)
        signals = probe(torch.randn(1, 3, 32, 32))
        for score in exported_scores(task, fit):
            assert score(signals).shape == (1,), score.name
