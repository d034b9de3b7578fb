"""What counts as a failure: stated, or read off held-out losses; and holdouts that cannot tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.attaching import attach
from misfire_train.errors import JudgeError
from misfire_train.fitting.failures import clean_losses, settle_failures
from misfire_train.heads import recipe_named
from misfire_train.heads.data import TensorSet
from misfire_train.heads.training import fit_head
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules, choose_score
from misfire_train.scores import FitSet, ScoreError, build
from misfire_train.signals import Probe, Signals
from misfire_train.tasks import get_task
from misfire_train.train_config import FailureTable

CONTRACT = InputContract(height=4, width=4, color="gray")
RECIPE = replace(recipe_named("learning-loss-pp"), steps=20, copies=0, batch=32)


def network(outputs: int = 1) -> Probe:
    """Answers `outputs` zeros for any image."""
    last = nn.Linear(16, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return Probe(nn.Sequential(nn.Flatten(), last), last_layer="1").eval()


def labelled(targets: Tensor) -> TensorSet:
    generator = torch.Generator().manual_seed(3)
    return TensorSet.of(torch.randn(len(targets), 1, 4, 4, generator=generator), targets)


def test_the_threshold_is_the_quantile_of_held_out_losses() -> None:
    values = torch.linspace(0, 2, 101)[:, None]
    task, record = settle_failures(
        network(), get_task("regression"), labelled(values), contract=CONTRACT, table=FailureTable(share=0.1)
    )
    assert record is not None
    assert record.threshold == pytest.approx(0.5 * 1.8**2, rel=1e-5)
    assert record.source == "the worst 10 % of 101 clean holdout images"
    assert task.failed(torch.zeros(101, 1), values).sum() == 10
    assert get_task("regression").knows_failures is False


def test_a_stated_threshold_needs_no_holdout_and_a_wrong_answer_no_threshold() -> None:
    nothing = labelled(torch.zeros(0, 1))
    stated = FailureTable(threshold=0.3)
    task, record = settle_failures(network(), get_task("keypoints"), nothing, contract=CONTRACT, table=stated)
    assert (task.failure_threshold, record and record.source) == (0.3, "stated in the configuration")
    classes = get_task("classification")
    found, record = settle_failures(network(), classes, nothing, contract=CONTRACT, table=FailureTable())
    assert found is classes
    assert record is None
    with pytest.raises(ConfigError, match="no held-out loss"):
        settle_failures(network(), get_task("regression"), nothing, contract=CONTRACT, table=FailureTable())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_are_no_numbers_are_named_by_sample(bad: float) -> None:
    values = torch.zeros(30, 1)
    values[7] = bad
    with pytest.raises(ConfigError, match="#7"):
        settle_failures(
            network(), get_task("regression"), labelled(values), contract=CONTRACT, table=FailureTable()
        )
    with pytest.raises(JudgeError, match="frame-7"):
        Evidence.of(
            {"s": np.zeros(30)},
            loss=values[:, 0].numpy(),
            failure_threshold=1.0,
            frames=[f"frame-{i}" for i in range(30)],
        )


def test_a_holdout_fit_perfectly_has_no_failures_and_the_judge_says_how_many_it_needs() -> None:
    perfect = labelled(torch.zeros(40, 1))
    probe, task = network(), get_task("regression")
    settled, record = settle_failures(probe, task, perfect, contract=CONTRACT, table=FailureTable())
    assert record is not None
    assert record.threshold == 0
    fitted = fit_head(probe, task=settled, recipe=RECIPE, train=perfect, holdout=perfect, contract=CONTRACT)
    assert any("too few failures, or successes" in note for note in fitted.report.notes)
    losses = clean_losses(probe, task, perfect, contract=CONTRACT).numpy()
    evidence = Evidence.of({"free": np.arange(40.0)}, loss=losses, failure_threshold=0.0)
    result = choose_score(evidence, GateRules({"free"}))
    assert "Too few held-out errors to judge: 0 among 40 frames; at least 30 are needed" in result.verdict
    assert result.needed == 30


def test_a_holdout_of_one_class_says_so_wherever_classes_are_needed() -> None:
    one = labelled(torch.zeros(40, dtype=torch.int64))
    probe = network(3)
    fitted = fit_head(
        probe, task=get_task("classification"), recipe=RECIPE, train=one, holdout=one, contract=CONTRACT
    )
    assert fitted.report.notes == (
        "too few failures, or successes, among clean images left out: judged on losses alone",
    )
    assert fitted.report.auroc is None
    signals = Signals(torch.zeros(40, 3), torch.randn(40, 16), {}, torch.zeros(3, 16), torch.zeros(3))
    holdout = FitSet(signals, torch.zeros(40, dtype=torch.int64), 3)
    for name in ("wrong_prediction", "wrong_prediction_approx", "stacked"):
        with pytest.raises(ScoreError, match=r"class|failure|both"):
            build([name], task="classification", fit=holdout, holdout=holdout)


def test_a_head_attached_to_any_network_learns_failures_of_the_same_kind() -> None:
    probe = network()
    values = torch.randn(120, 1, generator=torch.Generator().manual_seed(1))
    attached = attach(probe.model, layers=[], task="regression", steps=10)
    images = labelled(values).images
    report = attached.fit(train=(images[:20], values[:20]), holdout=(images[20:], values[20:]))
    losses = 0.5 * values[20:, 0].square()
    assert attached.task.failure_threshold == pytest.approx(float(torch.quantile(losses, 0.8)), rel=1e-5)
    assert report.auroc is not None


def test_stacked_learns_the_worst_fifth_where_nobody_said_what_a_failure_is() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 1, generator=generator)
    signals = Signals(values, values.repeat(1, 4), {}, torch.zeros(1, 4), torch.zeros(1))
    holdout = FitSet(signals, torch.zeros(400, 1), None)
    (ours,) = build(["stacked"], task="regression", fit=holdout, holdout=holdout)
    worst = get_task("regression").with_worst(0.5 * values[:, 0].square())
    (stated,) = build(["stacked"], task="regression", fit=holdout, holdout=holdout, stacked={"task": worst})
    torch.testing.assert_close(ours(signals), stated(signals))
