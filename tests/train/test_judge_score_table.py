"""`misfire evaluate --scores-out`: what was judged, read back by `--scores` and `misfire select`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_train.data import load_dataset
from misfire_train.errors import JudgeError, SelectionError
from misfire_train.fit import train_run
from misfire_train.fitting.refit import REFITS, refit_of_run
from misfire_train.judge import run_judging
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.files.score_table import read_facts, write_score_table
from misfire_train.judge.gate import GateRules
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.judge.tables import TableJudging, judge_table
from misfire_train.runs import Run, load_run, run_splits
from misfire_train.selection.judged import read_judged
from misfire_train.train_config import parse_train_config

QUICK = Judging(
    scores=("msp", "entropy", "learning_loss_pp"), shifts=("fog", "glare"), limit=200, replicates=50
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real, small run whose head knows fog, so that the gate fits it again."""
    overrides = {
        "dataset": "digits",
        "training.epochs": 2,
        "split.limit": 300,
        "head.steps": 30,
        "head.copies": 1,
        "head.families": ["noise", "fog"],
    }
    folder = tmp_path_factory.mktemp("score-table") / "run"
    return train_run(parse_train_config({}, overrides=overrides), out=folder)


def evaluate(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_a_written_table_gives_the_report_and_the_gate_of_the_run(run: Run, tmp_path: Path) -> None:
    kept: list[tuple[Evidence, GateRules]] = []
    judging = replace(QUICK, collected=lambda evidence, rules: kept.append((evidence, rules)))
    judged, evidence = judge_run(run, load_dataset("digits"), judging)
    assert set(kept[0][1].refitted) == {"fog"}
    for form in ("parquet", "csv", "npz"):
        table = tmp_path / "tables" / f"scores.{form}"
        write_score_table(table, *kept[0])
        again, read = judge_table(table, TableJudging(replicates=50))
        assert read.frames.tolist() == evidence.frames.tolist()
        assert replace(again.gate, notes=()) == replace(judged.gate, notes=())
        for mine, theirs in zip(again.conditions, judged.conditions, strict=True):
            rows = {row.name: row.metrics for row in theirs.scores}
            assert {row.name: row.metrics for row in mine.scores} == rows
        assert "learning_loss_pp without fog" in {r.name for r in again.condition("fog").scores}


def test_a_table_has_a_row_per_frame_and_condition(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "scores.parquet"
    few = ["--scores", "msp,entropy", "--limit", "40", "--replicates", "50"]
    judged = evaluate(
        str(run.path), *few, "--shift", "fog", "--scores-out", str(table), "--out", str(tmp_path / "out")
    )
    facts = read_facts(table)
    assert facts.trigger == judged["gate"]["winner"]
    assert facts.free == ("msp", "entropy")
    assert facts.failure == judged["settings"]["failure"]
    columns = pq.read_table(table)
    assert columns.column_names == ["id", "group", "shift", "loss", "failed", "msp", "entropy"]
    assert columns["shift"].to_pylist() == ["clean"] * 40 + ["fog"] * 40
    assert columns["id"].to_pylist()[:40] == columns["id"].to_pylist()[40:]


def test_a_threshold_of_the_loss_is_kept_in_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loss = rng.exponential(size=300)
    scores = {"msp": loss + rng.normal(size=300), "head": loss + 0.1 * rng.normal(size=300)}
    evidence = Evidence.of(scores, loss=loss, failure_threshold=1.2)
    path = tmp_path / "scores.parquet"
    write_score_table(path, evidence, GateRules({"msp"}), failure="loss above 1.2, of the run")
    report, read = judge_table(path, TableJudging(replicates=60))
    assert read.failure_threshold == 1.2
    assert read.risk.tolist() == loss.tolist()
    assert report.settings["failure"] == "loss above 1.2, of the run"
    other, _ = judge_table(path, TableJudging(failure_threshold=0.5, replicates=60))
    assert other.condition("clean").failures == int((loss > 0.5).sum())
    assert other.settings["failure"] == "loss above 0.5, stated with this evaluation"


def test_select_takes_the_clean_frames_and_the_trigger_of_a_table(run: Run, tmp_path: Path) -> None:
    table, out = tmp_path / "scores.parquet", tmp_path / "next.csv"
    options = ["--scores", "msp,entropy", "--limit", "60", "--replicates", "50", "--shift", "fog"]
    evaluate(str(run.path), *options, "--scores-out", str(table), "--out", str(tmp_path / "out"))

    def chosen(source: str) -> list[str]:
        command = ["select", "--scores", source, "--method", "top-k", "-k", "5", "--out", str(out)]
        CliRunner().invoke(app, command, catch_exceptions=False)
        return [row["id"] for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())]

    columns = pq.read_table(table).to_pydict()
    clean = [i for i, shift in enumerate(columns["shift"]) if shift == "clean"]
    trigger = read_facts(table).trigger
    for source, name in ((str(table), trigger), (f"{table}:msp", "msp")):
        best = sorted(clean, key=lambda i: -columns[name][i])[:5]
        assert chosen(source) == [columns["id"][i] for i in best]


def test_a_table_that_triggers_on_nothing_needs_the_name_of_a_score(tmp_path: Path) -> None:
    evidence = Evidence.of({"msp": np.arange(60.0)}, failed=np.arange(60) > 40)
    path = tmp_path / "scores.parquet"
    write_score_table(path, evidence, GateRules({"msp"}))
    with pytest.raises(SelectionError, match="name the score to choose by"):
        read_judged(str(path))
    pool = read_judged(f"{path}:msp")
    assert pool is not None and pool.scores.tolist() == list(range(60))


def test_an_interrupted_evaluation_goes_on_where_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second condition fails; the next call scores it and nothing else."""
    dataset = load_dataset("digits")
    whole, _ = judge_run(run, dataset, QUICK)
    real, done = run_judging._column, []

    def breaks(*arguments: Any, **more: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **more)

    kept = replace(QUICK, keep=tmp_path / "conditions")
    monkeypatch.setattr(run_judging, "_column", breaks)
    with pytest.raises(KeyboardInterrupt):
        judge_run(run, dataset, kept)
    assert [file.name for file in (tmp_path / "conditions").iterdir()] == ["clean.npz"]
    lines: list[str] = []
    monkeypatch.setattr(run_judging, "_column", real)
    report, _ = judge_run(run, dataset, kept, progress=lines.append)
    assert [line for line in lines if line.startswith("scoring")] == [
        "scoring 200 frames, fog",
        "scoring 200 frames, glare",
    ]
    assert report.conditions == whole.conditions
    lines.clear()
    again, _ = judge_run(run, dataset, kept, progress=lines.append)
    assert not any(line.startswith(("scoring", "fitting scores")) for line in lines)
    assert again.conditions == whole.conditions


@pytest.mark.parametrize("change", [{"limit": 100}, {"seed": 1}, {"severity": 4}, {"scores": ("msp",)}])
def test_conditions_of_another_judgement_are_scored_anew(
    run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    dataset = load_dataset("digits")
    judging = Judging(scores=("msp", "entropy"), limit=80, replicates=50, keep=tmp_path / "conditions")
    judge_run(run, dataset, judging)
    lines: list[str] = []
    judge_run(run, dataset, replace(judging, **change), progress=lines.append)
    assert any(line.startswith("scoring") for line in lines)


def test_a_head_without_a_corruption_is_fitted_once_for_all_commands(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("digits")
    # The run is as it was trained: no head has been fitted again.
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run.path.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    own = load_run(copy)
    parts = run_splits(own, dataset)
    frames = parts["test"].take(range(40))
    refit = refit_of_run(own, train=parts["train"], holdout=parts["holdout"])
    assert refit is not None
    first = refit.scores("fog", frames)
    assert len(list((copy / REFITS).iterdir())) == 1

    def fail(*_arguments: Any, **_more: Any) -> None:
        raise AssertionError("the head was fitted again")

    with monkeypatch.context() as patched:
        patched.setattr("misfire_train.fitting.refit.fit_head", fail)
        assert refit.scores("fog", frames).tolist() == first.tolist()
        # Another recipe, family or holdout is another head.
        with pytest.raises(AssertionError, match="fitted again"):
            refit.scores("noise", frames)
        for changed in (
            replace(refit, recipe=replace(refit.recipe, steps=31)),
            replace(refit, holdout=parts["holdout"].take(range(30))),
            replace(refit, seed=7),
        ):
            with pytest.raises(AssertionError, match="fitted again"):
                changed.scores("fog", frames)
    # A file that was cut off is no head: it is fitted again.
    kept = next((copy / REFITS).iterdir())
    kept.write_bytes(kept.read_bytes()[:100])
    assert refit.scores("fog", frames).tolist() == pytest.approx(first.tolist())


def test_a_name_that_is_no_table_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(run.path), "--scores-out", str(tmp_path / "scores.txt"), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, JudgeError)
    assert "ends in .parquet, .csv, .npz" in str(result.exception)
    assert not out.exists()
