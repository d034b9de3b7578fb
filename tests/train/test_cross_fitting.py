"""A run with `head.folds`: refits, scores and children learn losses that no network was fitted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from misfire_export.sources.frames import frames_of_run
from misfire_runtime.errors import ConfigError
from misfire_train.data import Dataset, load_dataset
from misfire_train.data.corruptions import corrupt_all
from misfire_train.data.examples import join
from misfire_train.fit import train_run
from misfire_train.fitting.cross_fitting import fit_head_on_folds, kept_folds
from misfire_train.fitting.frames import frames_to_fit
from misfire_train.fitting.refit import refit_of_run
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.retraining import Schedule, retrain_run
from misfire_train.runs import FOLDS_FILE, Run, fold_ids, fold_weights, load_run, read_splits, run_splits
from misfire_train.scores import compute
from misfire_train.train_config import parse_train_config

SHORT = Schedule(epochs=1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = parse_train_config(
        {
            "dataset": "digits",
            "seed": 4,
            "model": {"options": {"width": 4}},
            "split": {"field": 0.2},
            "training": {"epochs": 2},
            "head": {"folds": 2, "steps": 60, "copies": 1},
        }
    )
    return train_run(config, out=tmp_path_factory.mktemp("runs") / "run")


def test_the_networks_of_the_folds_stay_in_the_run(run: Run, digits: Dataset) -> None:
    parts = run_splits(run, digits)
    first, second = (set(ids) for ids in fold_ids(run))
    assert not first & second and first | second == {*parts["train"].ids, *parts["holdout"].ids}
    networks = kept_folds(run, join([parts["train"], parts["holdout"]]))
    assert [set(network.unseen.ids) for network in networks] == [first, second]
    assert FOLDS_FILE in run.record.files and not networks[0].probe.training
    weights = [network.weights for network in networks] + [run.model.state_dict()]
    name = next(name for name in weights[0] if name.endswith("weight"))
    assert not np.allclose(weights[0][name], weights[1][name])
    assert not np.allclose(weights[0][name], weights[2][name])


def test_its_head_is_fitted_again_on_the_losses_of_its_folds(run: Run, digits: Dataset) -> None:
    """On the run's own network all those losses would be training losses."""
    parts = run_splits(run, digits)
    frames = corrupt_all(parts["field"].take(range(60)), "fog", severity=3, seed=0)
    given = frames_to_fit(run, parts)
    refit = refit_of_run(run, train=given.fit, holdout=given.holdout)
    assert refit is not None and refit.possible and given.fit is not None
    # With the strength and the columns of the run's head, which is what is judged.
    without = replace(refit.recipe, families=tuple(name for name in refit.families if name != "fog"))
    expected = fit_head_on_folds(
        run.probe,
        kept_folds(run, given.fit),
        task=run.task,
        recipe=without,
        pool=given.fit,
        contract=run.contract,
        seed=4,
    ).head
    values = compute(run, frames, [expected])[expected.name]
    np.testing.assert_allclose(refit.scores("fog", frames), values, rtol=1e-4, atol=1e-5)


def test_the_judge_holds_out_the_corruptions_that_its_head_was_trained_on(run: Run, digits: Dataset) -> None:
    judging = Judging(scores=("msp", "learning_loss_pp"), shifts=("fog",), limit=300, replicates=50)
    report, _ = judge_run(run, digits, judging)
    notes = " ".join(report.gate.notes)
    assert "On fog the gate judges heads fitted without that corruption." in notes
    assert "not fitted again" not in notes


def test_scores_that_learn_from_losses_never_see_the_networks_training_losses(
    run: Run, digits: Dataset
) -> None:
    """Its network was trained on the holdout as well; judge and export take the same frames instead."""
    parts = run_splits(run, digits)
    judged, exported = frames_to_fit(run, parts), frames_of_run(run, digits)
    trained = {i for ids in fold_ids(run) for i in ids}
    for frames in (judged, exported):
        assert frames.fit is not None and set(frames.fit.ids) == trained
        assert frames.holdout is not None and not set(frames.holdout.ids) & trained
        assert not set(frames.holdout.ids) & set(parts["calibration"].ids)
    assert judged.holdout is not None and exported.holdout is not None
    assert judged.holdout.ids == exported.holdout.ids == parts["validation"].ids


def test_a_child_keeps_the_folds_and_its_networks_go_on_from_them(
    run: Run, digits: Dataset, tmp_path: Path
) -> None:
    field = run_splits(run, digits)["field"]
    worse = corrupt_all(field.take(range(80)), "fog", severity=4, seed=1)
    uploads = replace(
        worse, ids=tuple(f"up-{i}" for i in worse.ids), groups=tuple(f"m{i % 9}" for i in range(80))
    )
    found = retrain_run(run, uploads, dataset=digits, out=tmp_path / "child", schedule=SHORT)
    child = load_run(tmp_path / "child")
    for old, new in zip(fold_ids(run), fold_ids(child), strict=True):
        assert set(old) < set(new) and all(name.startswith("up-") for name in set(new) - set(old))
    ids = read_splits(child.path)
    added = {i for names in fold_ids(child) for i in names if i.startswith("up-")}
    assert added == {*ids["uploads-train"], *ids["uploads-holdout"]} == set(uploads.ids)
    assert found.uploads["train"] + found.uploads["holdout"] == 80
    assert len(fold_weights(child)) == 2 and "holdout_accuracy" not in child.record.metrics
    assert child.record.metrics["head"]["samples"] == 2 * len({i for names in fold_ids(child) for i in names})
    # Resumed, a finished child is the child; with other uploads it is refused.
    again = retrain_run(run, uploads, dataset=digits, out=tmp_path / "child", schedule=SHORT, resume=True)
    assert again.run.record.run_id == child.record.run_id and again.after == found.after
    with pytest.raises(ConfigError, match="another configuration"):
        fewer = uploads.take(range(70))
        retrain_run(run, fewer, dataset=digits, out=tmp_path / "child", schedule=SHORT, resume=True)


def test_a_run_of_a_version_that_kept_no_folds_has_a_child_too(
    run: Run, digits: Dataset, tmp_path: Path
) -> None:
    files = {name: value for name, value in run.record.files.items() if name != FOLDS_FILE}
    old = replace(run, record=run.record.model_copy(update={"files": files}))
    given = frames_to_fit(old, run_splits(old, digits))
    refit = refit_of_run(old, train=given.fit, holdout=given.holdout)
    assert refit is not None and refit.why_not == "its run did not keep the networks of its folds"
    field = run_splits(run, digits)["field"].take(range(30))
    child = retrain_run(old, field, dataset=digits, out=tmp_path / "child", schedule=SHORT).run
    assert len(fold_weights(child)) == 2 and {*field.ids} < {i for names in fold_ids(child) for i in names}
