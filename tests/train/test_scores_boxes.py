"""Scores of a detector's boxes against numpy, and what calibration of candidates is good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from misfire_runtime.boxes import BoxRule
from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.candidates import find_candidates
from misfire_train.errors import ScoreError
from misfire_train.metrics import auroc
from misfire_train.scores import build, gather, names_for
from misfire_train.scores.boxes.counting import platt
from misfire_train.scores.fitting import FitSet
from misfire_train.signals import Probe, ScoredModel, Signals
from misfire_train.tasks.detection import Detection

CLASSES, CELLS, WIDTH, HEIGHT = 2, 12, 64, 48
# A high threshold, as of a detector that must not cry wolf: most errors are then misses.
TASK = Detection(BoxRule(candidates=10, min_side=2, score_threshold=0.8))
FREE = ("expected_errors", "expected_lrp", "box_count", "entropy_sum", "entropy_max", "entropy_mean")


class Detector(nn.Module):
    """Is a detector of 12 cells with features, boxes and class logits that all depend on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 6, 16, stride=16)
        self.classes = nn.Conv2d(6, CLASSES, 1)
        rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
        self.register_buffer("cells", torch.stack((columns, rows), 2).reshape(-1, 2) * 16.0 + 8)

    def forward(self, image: Tensor) -> Tensor:
        phi = torch.relu(self.features(image)).flatten(2)[..., None]
        logits = 4 * self.classes(phi)[..., 0].transpose(1, 2)
        side = 6 + 3 * torch.tanh(phi[:, :1, :, 0].transpose(1, 2))
        cells = self.get_buffer("cells").expand(len(image), -1, -1)
        extras = torch.cat((0.5 + side / 10, cells, torch.full_like(side, 16.0)), 2)
        return torch.cat((cells - side, cells + side, logits, extras), 2)


@pytest.fixture(scope="module")
def probe() -> Probe:
    torch.manual_seed(0)
    return Probe(Detector().eval(), last_layer="classes")


def labelled(outputs: Tensor, *, seed: int) -> Tensor:
    """Returns targets [N,3,6]: objects at candidates that are right with a tempered probability."""
    generator = torch.Generator().manual_seed(seed)
    found = find_candidates(outputs, TASK.rule)
    # The detector is overconfident: its log-odds are twice those of the truth.
    truth = torch.rand(found.logit.shape, generator=generator) < torch.sigmoid(found.logit / 2 - 0.5)
    truth &= found.alive
    targets = torch.zeros(*found.logit.shape, 6)
    targets[..., :4] = found.boxes
    targets[..., 4] = torch.where(truth, found.label, -1).to(targets.dtype)
    return targets


def held_out(probe: Probe, frames: int, *, seed: int) -> FitSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(frames, 1, HEIGHT, WIDTH, generator=generator)
    # Some frames are pale, and then little stands out in them.
    images *= 3 * torch.rand(frames, 1, 1, 1, generator=generator)
    with torch.no_grad():
        targets = labelled(probe(images).outputs, seed=seed)
    return gather(probe, images, targets, lighten=TASK.lighten)


def test_detection_has_its_free_scores() -> None:
    names = names_for("detection", free=True)
    assert set(FREE) <= set(names)
    assert set(TASK.default_scores) <= {*names, "silence"}


def test_scores_equal_numpy(probe: Probe) -> None:
    images = torch.randn(7, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        signals = probe(images)
    found = TASK.candidates(signals)
    names = ["box_count", "entropy_sum", "entropy_max", "entropy_mean", "box_spread", "box_gradient"]
    built = {score.name: score(signals).detach().numpy() for score in build(names, task=TASK)}
    phi = signals.last_input.detach().numpy()[..., 0]
    for row in range(7):
        z, kept = found.logits[row].double().numpy(), found.kept[row].numpy()
        p = 1 / (1 + np.exp(-z))
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(1)[kept]
        assert built["box_count"][row] == kept.sum()
        assert built["entropy_sum"][row] == pytest.approx(entropy.sum(), rel=1e-5)
        assert built["entropy_max"][row] == pytest.approx(entropy.max(initial=0), rel=1e-5)
        assert built["entropy_mean"][row] == pytest.approx(entropy.sum() / max(1, kept.sum()), rel=1e-5)
        boxes = found.boxes[row].numpy()[kept]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        spread = (found.spread[row, :, 0].numpy()[kept] / np.sqrt(area)).sum() / max(1, kept.sum())
        assert built["box_spread"][row] == pytest.approx(spread, rel=1e-5)
        wanted = np.eye(CLASSES)[found.label[row].numpy()] * kept[:, None]
        weight = np.square(phi[row][:, found.index[row].numpy()]).sum(0) + 1
        gradient = (np.square(p - wanted).sum(1) * weight * found.alive[row].numpy()).sum()
        assert built["box_gradient"][row] == pytest.approx(gradient, rel=1e-4)


def test_expected_errors_are_calibrated_and_need_no_boxes(probe: Probe) -> None:
    fit, judged = held_out(probe, 600, seed=1), held_out(probe, 600, seed=2)
    errors = TASK.counts(judged.signals.outputs, judged.targets)["errors"].numpy()
    built = build(["expected_errors", "expected_lrp", "entropy_sum"], task=TASK, holdout=fit)
    values = {score.name: score(judged.signals).numpy() for score in built}
    # In units that a person understands: the mean is the mean number of errors.
    assert values["expected_errors"].mean() == pytest.approx(errors.mean(), rel=0.08)
    assert bool(((values["expected_lrp"] >= 0) & (values["expected_lrp"] <= 1)).all())
    right = fit_line(built[0], "right")
    assert right == pytest.approx((0.5, -0.5), abs=0.25)
    worst = errors >= np.quantile(errors, 0.8)
    assert auroc(values["expected_errors"], worst) > auroc(values["entropy_sum"], worst) + 0.02


def fit_line(score: nn.Module, name: str) -> list[float]:
    return [float(value) for value in score.get_buffer(name)]


def test_lightened_signals_give_the_same_scores(probe: Probe) -> None:
    images = torch.randn(5, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9))
    fit = held_out(probe, 100, seed=4)
    with torch.no_grad():
        whole = probe(images)
    light = TASK.lighten(whole)
    assert light.outputs.shape == (5, 10, CLASSES + 8) and light.last_input.shape == (5, 6, 10, 1)
    assert torch.equal(light.embedding, whole.embedding)
    for score in build([*FREE, "box_gradient", "box_spread"], task=TASK, holdout=fit):
        assert torch.allclose(score(light), score(whole), atol=1e-5), score.name


def test_p_tp_stands_beside_the_final_boxes(probe: Probe) -> None:
    fit = held_out(probe, 100, seed=4)
    scores = build(["expected_errors", "box_count"], task=TASK, holdout=fit)
    model = ScoredModel(probe, scores, output_name="detections", answer=TASK.answer).eval()
    with torch.no_grad():
        answer = model(torch.randn(4, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5)))
    boxes, p = answer["detections"], answer["box.p_tp"]
    assert boxes.shape == (4, 10, 6) and p.shape == (4, 10)
    slope, offset = fit_line(scores[0], "right")
    there = boxes[..., 4] > 0
    expected = torch.sigmoid(slope * torch.logit(boxes[..., 4][there]) + offset)
    assert torch.allclose(p[there], expected, atol=1e-4)
    assert not p[~there].any()
    assert torch.equal(answer["score.box_count"], there.sum(1).float())


def test_scores_need_held_out_frames_and_a_detector(probe: Probe) -> None:
    with pytest.raises(ScoreError, match="expected_errors is fitted on held-out data"):
        build(["expected_errors"], task=TASK)
    with pytest.raises(ScoreError, match="entropy_sum serves detection, not classification"):
        build(["entropy_sum"], task="classification")


def test_platt_of_few_or_equal_labels_is_finite() -> None:
    nan = torch.nan
    assert platt(torch.tensor([1.0, 2.0]), torch.tensor([nan, nan])) == (1.0, 0.0)
    for labels in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, nan, nan]):
        slope, offset = platt(torch.tensor([0.0, 1.0, 2.0]), torch.tensor(labels))
        assert np.isfinite([slope, offset]).all() and slope > 0
    # A detector whose sureness is upside down keeps a rising line.
    slope, _ = platt(torch.linspace(-3, 3, 40), (torch.linspace(-3, 3, 40) < 0).float())
    assert slope == pytest.approx(0.05)


def test_contract_of_a_frame_without_boxes() -> None:
    outputs = torch.zeros(1, 3, CLASSES + 8)
    outputs[..., 4:6] = -9.0
    signals = Signals(outputs, torch.zeros(1, 4, 3, 1))
    for score in build(["box_count", "entropy_sum", "entropy_max", "entropy_mean", "box_spread"], task=TASK):
        assert float(score(signals)) == 0
    assert InputContract(width=WIDTH, height=HEIGHT).channels == 3
