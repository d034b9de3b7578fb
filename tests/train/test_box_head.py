"""The default head of a detector: it starts as the free score, learns what its score hides, and exports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from misfire_runtime.boxes import BoxRule
from misfire_runtime.preprocess import InputContract
from misfire_train.commands.train import describe_head
from misfire_train.heads import build_head_from_state, recipe_named
from misfire_train.heads.base import NAME
from misfire_train.heads.box_strength import better_base
from misfire_train.heads.box_training import collect_boxes, fit_on_boxes, new_box_head, standardise
from misfire_train.heads.boxes import BASES, LINE, MARGIN, BoxHead, candidate_statistics
from misfire_train.heads.data import BoxSet, TensorSet
from misfire_train.heads.training import fit_head
from misfire_train.metrics import spearman
from misfire_train.scores import build, gather
from misfire_train.signals import Probe, ScoredModel, Signals
from misfire_train.tasks.detection import Detection

CONTRACT = InputContract(width=64, height=48, color="gray")
TASK = Detection(BoxRule(candidates=8, min_side=2))
SHORT = replace(recipe_named("learning-loss-pp"), steps=100)


class Detector(nn.Module):
    """Sees one object in each cell of 16 pixels: its brightness is the score, its hue the size of the box."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.classes.weight.zero_()
            self.classes.weight[0, 0, 0, 0] = 4.0
            self.classes.bias.copy_(torch.tensor([-2.0, -9.0]))
        rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
        self.register_buffer("cells", torch.stack((columns, rows), 2).reshape(-1, 2) * 16.0 + 8)

    def forward(self, image: Tensor) -> Tensor:
        patches = nn.functional.unfold(image, 16, stride=16)
        bright, hue = patches[:, :1], patches[:, 1:2]
        phi = torch.cat((bright, hue, torch.ones_like(bright)), 1)[..., None]
        logits = self.classes(phi)[..., 0].transpose(1, 2)
        side = (4 + 3 * hue).transpose(1, 2)
        cells = self.get_buffer("cells").expand(len(image), -1, -1)
        extras = torch.cat((torch.zeros_like(side), cells, torch.full_like(side, 16.0)), 2)
        return torch.cat((cells - side, cells + side, logits, extras), 2)


def frames(count: int, *, seed: int) -> tuple[Tensor, np.ndarray]:
    """Returns pictures, and targets: small boxes are right far less often than their scores say."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 1, 48, 64), np.float32)
    targets = np.empty(count, object)
    pale = rng.uniform(0.3, 1.2, count)
    for frame in range(count):
        objects = []
        for cell in range(12):
            row, column = divmod(cell, 4)
            bright, hue = rng.uniform(0, 1.2) * pale[frame], rng.uniform(0, 1)
            images[frame, 0, row * 16, column * 16] = bright
            images[frame, 0, row * 16, column * 16 + 1] = hue
            log_odds = 4 * bright - 2 + 6 * (hue - 0.6)
            if rng.uniform() < 1 / (1 + np.exp(-log_odds)):
                x, y, side = column * 16 + 8, row * 16 + 8, 4 + 3 * hue
                objects.append((x - side, y - side, x + side, y + side, 0, 0))
        targets[frame] = np.array(objects, np.float32).reshape(-1, 6)
    return torch.from_numpy(images), targets


def labelled(count: int, *, seed: int) -> TensorSet:
    images, targets = frames(count, seed=seed)
    return TensorSet(images, targets, tuple(f"{seed}-{i}" for i in range(count)))


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe(Detector().eval(), last_layer="classes")


@pytest.fixture(scope="module")
def fitted(probe: Probe) -> BoxHead:
    held_out = labelled(300, seed=1)
    found = fit_head(
        probe,
        task=TASK,
        recipe=replace(recipe_named("learning-loss-pp"), steps=120, strength=1.0),
        train=held_out,
        holdout=held_out,
        contract=CONTRACT,
        seed=0,
    )
    assert isinstance(found.head, BoxHead)
    assert found.report.collapsed is None and found.report.base == "expected_lrp"
    assert found.report.aurc < found.report.aurc_base
    return found.head


def test_an_untrained_head_is_the_free_score(probe: Probe) -> None:
    held_out = labelled(200, seed=3)
    head = new_box_head(probe, task=TASK, recipe=recipe_named("learning-loss-pp"), contract=CONTRACT)
    data = collect_boxes(probe, head, held_out, task=TASK, contract=CONTRACT, clean=True)
    standardise(head, data)
    with torch.no_grad():
        score = head(probe(held_out.images)).numpy()
    free = build(["expected_lrp"], task=TASK, holdout=_fit_set(probe, held_out))[0]
    value = free(gather(probe, held_out.images, TASK.collate(held_out.targets)).signals).numpy()
    # Its loss also has the misplaced part of right boxes, so the two agree in order, nearly.
    assert spearman(score, value) > 0.97


def _fit_set(probe: Probe, held_out: TensorSet):  # type: ignore[no-untyped-def]
    return gather(probe, held_out.images, TASK.collate(held_out.targets), lighten=TASK.lighten)


def test_the_head_sees_what_scores_hide(probe: Probe, fitted: BoxHead) -> None:
    judged = labelled(400, seed=2)
    with torch.no_grad():
        signals = probe(judged.images)
        loss = TASK.sample_loss(signals.outputs, TASK.collate(judged.targets)).numpy()
        learned = fitted(signals).numpy()
    free = build(["expected_lrp", "entropy_sum"], task=TASK, holdout=_fit_set(probe, labelled(300, seed=1)))
    values = {score.name: score(signals).detach().numpy() for score in free}
    assert spearman(learned, loss) > spearman(values["expected_lrp"], loss) + 0.1
    assert spearman(learned, loss) > spearman(values["entropy_sum"], loss) + 0.1
    # The predicted loss is in units of the loss.
    assert np.exp(learned).mean() == pytest.approx(loss.mean(), rel=0.15)


def test_each_box_has_its_probability_and_overlap(probe: Probe, fitted: BoxHead) -> None:
    judged = labelled(300, seed=5)
    model = ScoredModel(probe, [fitted], output_name="detections", answer=TASK.answer).eval()
    with torch.no_grad():
        answer = model(judged.images)
    boxes, p, iou = answer["detections"], answer["box.p_tp"], answer["box.iou"]
    there = boxes[..., 4] > 0
    assert not p[~there].any() and not iou[~there].any()
    assert bool(((iou[there] >= 0.5) & (iou[there] <= 1)).all())
    # Small boxes are rarely right, whatever their score.
    side = (boxes[..., 2] - boxes[..., 0])[there]
    assert float(p[there][side < 10].mean()) < float(p[there][side > 12].mean()) - 0.2


def test_a_saved_head_gives_the_same_scores(probe: Probe, fitted: BoxHead) -> None:
    again = build_head_from_state("learning-loss-pp", fitted.options, fitted.state_dict()).eval()
    assert isinstance(again, BoxHead) and again.task.rule == TASK.rule
    images = labelled(6, seed=6).images
    with torch.no_grad():
        assert torch.equal(again(probe(images)), fitted(probe(images)))


def test_a_graph_without_features_has_a_head_too(probe: Probe, fitted: BoxHead) -> None:
    options = fitted.options
    head = BoxHead(
        frame_columns=options["frame_columns"] - 1,
        rule=TASK.rule,
        width=64,
        height=48,
        columns=options["columns"],
        sees_features=False,
    )
    signals = probe(labelled(2, seed=7).images)
    assert head(signals).shape == (2,)


def test_candidates_that_agree_are_counted_with_their_mean_score_and_cover() -> None:
    outputs = torch.full((1, 3, 10), -9.0)
    outputs[..., :4] = torch.tensor([[300.0, 180, 320, 190], [300, 180, 320, 188], [0, 0, 5, 5]])
    outputs[0, :, 4] = torch.tensor([2.0, -1.0, -2.0])
    found = TASK.candidates(Signals(outputs, torch.zeros(1, 4)))
    own = candidate_statistics(found, width=320, height=192)[0]
    p = torch.sigmoid(torch.tensor([2.0, -1.0, -2.0]))
    pair = float(p[:2].mean())
    assert own[:, 12].exp().tolist() == pytest.approx([2, 2, 1], abs=1e-5)
    assert own[:, 14].tolist() == pytest.approx([pair, pair, float(p[2])], abs=1e-5)
    # Of the box that is shown, no other one covers anything.
    assert own[:, 15].tolist() == pytest.approx([0, 0.8, 0], abs=1e-5)
    # Distance to the border, inwards.
    assert own[:, 9].tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_unseen_objects_count_more_only_where_a_frame_says_so_clearly(probe: Probe) -> None:
    head = new_box_head(probe, task=TASK, recipe=recipe_named("learning-loss-pp"), contract=CONTRACT)
    parts = collect_boxes(probe, head, labelled(2, seed=9), task=TASK, contract=CONTRACT, clean=True).parts
    head.log_unseen.data.fill_(-3.0)
    for said, counted in ((-2.0, 0.0), (0.5 * MARGIN, 0.0), (1.5 * MARGIN, MARGIN), (3 * MARGIN, 3 * MARGIN)):
        # The last layer's answer is the same for every frame: what the second layer's bias gives.
        with torch.no_grad():
            head.unseen.second_bias.fill_(30.0)
            head.unseen.second.zero_()
            head.unseen.last.fill_(said / 30.0 / head.unseen.last.shape[1])
            log_unseen = head.answers(parts)[1]
        assert log_unseen.tolist() == pytest.approx([counted - 3.0] * 2, abs=1e-4)


def test_rows_of_sets_stay_together(probe: Probe, fitted: BoxHead) -> None:
    held_out = labelled(5, seed=8)
    one = collect_boxes(probe, fitted, held_out, task=TASK, contract=CONTRACT, clean=True)
    two = collect_boxes(probe, fitted, held_out, task=TASK, contract=CONTRACT, clean=False)
    both = BoxSet.join([one, two])
    assert both.image.tolist() == [*range(5), *range(5)] and both.clean.tolist() == [True] * 5 + [False] * 5
    assert torch.equal(both.take(torch.tensor([7])).parts[0][0], one.parts[0][2])
    assert fitted.name == NAME


@pytest.fixture(scope="module")
def drives(probe: Probe) -> BoxSet:
    """Holds held-out frames of eight drives; the worse half has failed."""
    head = new_box_head(probe, task=TASK, recipe=SHORT, contract=CONTRACT)
    held_out = labelled(320, seed=11)
    rows = collect_boxes(probe, head, held_out, task=TASK, contract=CONTRACT, clean=True)
    groups = np.array([f"drive-{i % 8}" for i in range(len(rows))])
    # By the rule nearly every frame has failed, which would show no rank.
    return replace(rows, group=groups, failed=rows.losses > rows.losses.median())


def test_a_correction_that_holds_on_other_drives_is_kept(probe: Probe, drives: BoxSet) -> None:
    blank = new_box_head(probe, task=TASK, recipe=SHORT, contract=CONTRACT)
    report = fit_on_boxes(blank, drives, task=TASK, recipe=SHORT).report
    choice = report.choice
    assert choice is not None and (choice["by"], choice["count"]) == ("groups", 8)
    assert blank.strength == choice["strength"] >= 0.5 and blank.base == choice["columns"] == report.base
    assert report.auroc is not None and report.auroc_base is not None
    assert report.auroc > report.auroc_base + 0.02
    words = describe_head(report.to_dict())[0]
    assert f"on {blank.base}, strength {blank.strength:g} of 1, chosen over 8 groups; at 0" in words
    again = build_head_from_state(blank.recipe, blank.options, blank.state_dict())
    assert isinstance(again, BoxHead) and again.definition == blank.definition
    assert (again.strength, again.base) == (blank.strength, blank.base)


def test_without_a_hint_beyond_the_scores_the_head_is_the_free_score(probe: Probe, drives: BoxSet) -> None:
    x, kept, below, frame = drives.parts
    noise = torch.cat((x[..., :LINE], torch.randn(x[..., LINE:].shape, generator=torch.manual_seed(0))), 2)
    blind = replace(drives, parts=(noise, kept, below, torch.randn(frame.shape)))
    head = new_box_head(probe, task=TASK, recipe=SHORT, contract=CONTRACT)
    report = fit_on_boxes(head, blind, task=TASK, recipe=SHORT).report
    assert head.strength == 0 and head.definition.startswith(f"log of {head.base} alone")
    assert report.auroc == report.auroc_base
    held_out, judged = labelled(320, seed=11), labelled(50, seed=12)
    with torch.no_grad():
        signals = probe(judged.images)
        score = head(signals)
        free = build([head.base], task=TASK, holdout=_fit_set(probe, held_out))[0](signals)
        # The floor below the logarithm is all that differs.
        assert torch.exp(score).numpy() == pytest.approx(free.numpy(), abs=2e-4)
        assert set(head.details(signals)) == {"box.p_tp", "box.iou"}


def test_a_head_of_either_base_at_a_stated_strength(probe: Probe, drives: BoxSet) -> None:
    heads = {}
    for base in BASES:
        head = new_box_head(probe, task=TASK, recipe=SHORT, contract=CONTRACT)
        recipe = replace(SHORT, steps=20, strength=0.25, base=base)
        fit_on_boxes(head, drives, task=TASK, recipe=recipe)
        assert (head.base, head.strength) == (base, 0.25)
        heads[base] = head.predict(drives.parts)[:, 0]
    # Errors are counted; their share is below one.
    assert bool((heads["expected_lrp"] < 0).all()) and bool((heads["expected_errors"] > 0).any())


def test_the_better_base_is_that_with_less_risk_on_clean_frames_and_copies() -> None:
    failed = np.array([True, False, True, False] * 10)
    clean = np.arange(40) < 20
    good, bad = failed.astype(float), np.where(clean, failed, ~failed).astype(float)
    assert better_base({BASES[0]: bad, BASES[1]: good}, failed=failed, clean=clean) == BASES[1]
    assert better_base({BASES[0]: good, BASES[1]: good}, failed=failed, clean=clean) == BASES[0]
