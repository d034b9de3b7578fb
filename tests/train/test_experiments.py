"""The experiments run end to end on small real data, and say what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from misfire_runtime.preprocess import to_tensor
from misfire_train.data import load_dataset
from misfire_train.experiments import loss_ranking
from misfire_train.experiments import wrong_prediction as wp
from misfire_train.experiments.commands import app
from misfire_train.scores import ScoreError

TINY = wp.Protocol(seeds=1, steps=2, query=10, pool=200, hidden=16, epochs=6, patience=3, passes=3)


def test_every_method_selects_and_learns_on_real_digits() -> None:
    result = wp.run(load_dataset("digits"), protocol=TINY)
    assert list(result["methods"]) == list(wp.METHODS)
    for row in result["methods"].values():
        assert len(row["wrong_mean"]) == 2
        assert len(row["accuracy_mean"]) == 3
        assert all(0 <= value <= 100 for value in row["wrong_mean"])
        assert row["accuracy_mean"][-1] > 15, "more than chance"
    assert result["gate"] == {}, "no verdict without step 5"


def test_a_seed_repeats_exactly_and_leaves_the_global_state() -> None:
    data, test = wp.load_pixels(load_dataset("digits"))
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = wp.run_seed("mc_dropout", data, test, TINY, 3)
    assert torch.equal(torch.rand(2), expected)
    assert first == wp.run_seed("mc_dropout", data, test, TINY, 3)
    assert first != wp.run_seed("mc_dropout", data, test, TINY, 4)


def test_initial_holdout_and_pool_are_balanced_and_disjoint() -> None:
    labels = torch.arange(1000) % 10
    initial, holdout, pool = wp.draw(labels, wp.Protocol(pool=400), 0)
    assert len(initial) == len(holdout) == 50
    assert len(pool) == 400
    everything = np.concatenate([initial, holdout, pool])
    assert len(set(everything.tolist())) == 500
    for part in (initial, holdout, pool):
        counts = np.bincount(labels.numpy()[part])
        assert counts.min() == counts.max()


def test_a_class_too_small_and_steps_beyond_the_pool_are_errors() -> None:
    with pytest.raises(ScoreError, match="class 1 has 3 samples"):
        wp.draw(torch.tensor([0] * 50 + [1] * 3), wp.Protocol(), 0)
    data, test = wp.load_pixels(load_dataset("digits"))
    with pytest.raises(ScoreError, match="exceed the pool of 200"):
        wp.run_seed("entropy", data, test, wp.Protocol(steps=21, query=10, pool=200), 0)
    with pytest.raises(ScoreError, match="unknown method 'luck'"):
        wp.run_seed("luck", data, test, TINY, 0)


def test_the_gate_reads_the_table() -> None:
    def row(first: float, fifth: float) -> dict[str, list[float]]:
        return {"wrong_mean": [first, 0, 0, 0, fifth]}

    good = {
        "wrong_prediction": row(90, 72),
        "wrong_prediction_approx": row(88, 66),
        "bald": row(64, 51),
        "mc_dropout": row(77, 70),
    }
    assert all(wp.gate(good).values())
    assert not wp.gate({**good, "mc_dropout": row(89, 70)})["step1_s_a_above_bald_and_mc_dropout"]
    assert not wp.gate({**good, "bald": row(64, 68)})["step5_s_5_points_above_bald"]
    assert wp.gate({"bald": row(1, 1)}) == {}


def test_command_writes_json_and_plot(tmp_path: Path) -> None:
    arguments = ["wrong-prediction", "--dataset", "digits", "--seeds", "1", "--steps", "1", "--pool", "100"]
    only = ["--method", "entropy", "--method", "random"]
    done = CliRunner().invoke(app, [*arguments, *only, "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    written = json.loads((tmp_path / "wrong_prediction.json").read_text())
    assert printed["methods"] == written["methods"]
    assert written["seeds"] == [0]
    assert {"command", "date", "versions", "protocol", "published"} <= set(written)
    assert (tmp_path / "wrong_prediction.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_stopped_run_is_continued_and_one_of_another_protocol_is_not(tmp_path: Path) -> None:
    base = [
        "wrong-prediction",
        "--dataset",
        "digits",
        "--pool",
        "100",
        "--steps",
        "1",
        "--out",
        str(tmp_path),
    ]
    only = ["--method", "entropy", "--method", "random"]
    path = tmp_path / "wrong_prediction.json"
    assert CliRunner().invoke(app, [*base, "--seeds", "1", "--method", "entropy"]).exit_code == 0
    marked = json.loads(path.read_text())
    marked["methods"]["entropy"]["wrong_mean"] = [12.5]
    path.write_text(json.dumps(marked))
    assert CliRunner().invoke(app, [*base, "--seeds", "1", *only]).exit_code == 0
    continued = json.loads(path.read_text())["methods"]
    assert continued["entropy"]["wrong_mean"] == [12.5], "taken over"
    assert set(continued) == {"entropy", "random"}
    assert CliRunner().invoke(app, [*base, "--seeds", "2", *only]).exit_code == 0
    assert json.loads(path.read_text())["methods"]["entropy"]["wrong_mean"] != [12.5], "run again"
    path.write_text("{")
    done = CliRunner().invoke(app, [*base, "--seeds", "2", *only])
    assert "move it away" in str(done.exception)


def test_both_refuse_a_task_that_does_not_classify() -> None:
    other = dataclasses.replace(load_dataset("digits"), task="regression")
    for run in (wp.run, loss_ranking.run):
        with pytest.raises(ScoreError, match="digits is regression; this experiment classifies"):
            run(other)


SMALL = loss_ranking.Protocol(
    seeds=2, train=400, test=100, epochs=2, width=4, steps=30, long_steps=60, batch=64, hidden=8
)


def test_loss_ranking_judges_every_objective_and_the_free_scores_clean_and_shifted() -> None:
    result = loss_ranking.run(load_dataset("digits"), protocol=SMALL)
    table = result["table"]
    for name in (*loss_ranking.OBJECTIVES, *loss_ranking.FREE):
        for condition in loss_ranking.CONDITIONS:
            row = table[name][condition]
            assert -1 <= row["spearman"]["mean"] <= 1
            assert 0 <= row["pair_accuracy"]["mean"] <= 1
            assert row["aurc"]["std"] >= 0
    assert all(table[name]["weight_norm_long"]["mean"] > 0 for name in loss_ranking.OBJECTIVES)
    lines = loss_ranking.table_lines(table)
    assert len(lines) == 1 + 2 * 6
    assert not set(result["setting"]["seen"]) & set(result["setting"]["unseen"]), (
        "judged on shifts that the head never saw"
    )


def test_loss_ranking_repeats_exactly_per_seed() -> None:
    digits = load_dataset("digits")
    tests = {"clean": loss_ranking.tensors(digits.test.take(np.arange(50)), digits)}
    first = loss_ranking.run_seed(digits, tests, SMALL, 1)
    assert first == loss_ranking.run_seed(digits, tests, SMALL, 1)


def test_pitfall_19_train_and_test_images_go_through_one_normalisation() -> None:
    digits = load_dataset("digits")
    for examples in (digits.train, digits.test):
        ours = loss_ranking.tensors(examples.take([3]), digits).images
        np.testing.assert_array_equal(ours.numpy(), to_tensor(examples.images[3], digits.contract))


def test_loss_ranking_command_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_ranking, "Protocol", lambda seeds: dataclasses.replace(SMALL, seeds=seeds))
    arguments = ["loss-ranking", "--dataset", "digits", "--seeds", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "learning-loss-pp" in done.stdout
    written = json.loads((tmp_path / "loss_ranking.json").read_text())
    assert written["datasets"]["digits"]["setting"]["protocol"]["train"] == 400


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(ScoreError, match="unknown objective 'hinge'"):
        loss_ranking.objective_of("hinge", torch.ones(3))
