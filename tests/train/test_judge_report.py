"""The judge's report: what is measured, what JSON and page hold, and `misfire evaluate` on a real run."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_train.data import load_dataset
from misfire_train.data.corruptions import SEVERITIES, corrupt_all
from misfire_train.errors import JudgeError
from misfire_train.fit import train_run
from misfire_train.fitting.severity import adapt_severity, failed_share
from misfire_train.judge.evaluating import evaluate, find_frames
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules
from misfire_train.judge.report import print_report
from misfire_train.judge.report.page import render
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.judge.score_names import chosen_scores
from misfire_train.judge.slices import slice_report
from misfire_train.metrics import aurc, auroc, budget_table
from misfire_train.runs import Run, run_splits
from misfire_train.train_config import parse_train_config

pytestmark = pytest.mark.slow


def rows(seed: int = 0, *, count: int = 600) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    loss = rng.exponential(size=2 * count)
    return {
        "scores": {
            "msp": np.log(loss) + rng.normal(size=2 * count),
            "head": np.log(loss) + 0.4 * rng.normal(size=2 * count),
        },
        "loss": loss,
        "failure_threshold": 1.5,
        "frames": np.tile([f"drive-{i % 30}/<{i}>" for i in range(count)], 2),
        "groups": np.tile([f"drive-{i % 30}" for i in range(count)], 2),
        "shifts": np.repeat(["clean", "fog"], count),
    }


def judge(columns: dict[str, Any], **options: Any) -> Any:
    return evaluate(Evidence.of(**columns), GateRules({"msp"}, replicates=100), replicates=60, **options)


class Checker(HTMLParser):
    """Counts tags and remembers everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]


def test_every_condition_holds_the_numbers_of_its_own_rows() -> None:
    columns = rows()
    report = judge(columns)
    assert [condition.name for condition in report.conditions] == ["clean", "fog", "all conditions"]
    fog = columns["shifts"] == "fog"
    failed = columns["loss"] > 1.5
    row = report.condition("fog").score("head")
    assert row.metrics["auroc"].value == auroc(columns["scores"]["head"][fog], failed[fog])
    assert row.metrics["aurc"].value == aurc(columns["scores"]["head"][fog], columns["loss"][fog])
    assert row.budgets == budget_table(columns["scores"]["head"][fog], failed[fog])
    assert row.metrics["recall_at_5.0%"].value == pytest.approx(row.budgets[4].recall)
    assert row.metrics["precision_at_5.0%"].value == pytest.approx(row.budgets[4].precision)
    for found in row.metrics.values():
        assert found.low <= found.value + 1e-9
        assert found.value <= found.high + 1e-9 or math.isnan(found.high)
    assert report.gate.winner == "head"


def test_the_json_is_strict_and_carries_no_pictures() -> None:
    report = judge(rows(), loss_scales={"head": None}, slices={"camera": np.tile(["left", "right"], 600)})
    text = json.dumps(report.to_dict(), allow_nan=False)
    values = json.loads(text)
    assert values["gate"]["winner"] == "head"
    assert {condition["name"] for condition in values["conditions"]} == {"clean", "fog", "all conditions"}
    assert "picture" not in values["frames"][0]
    assert values["slices"][0]["name"] == "camera"
    assert values["calibrations"][0]["reliability"]["bins"]


def test_a_log_loss_score_is_calibrated_on_one_half_and_judged_on_the_other() -> None:
    report = judge(rows(), loss_scales={"head": None})
    assert report.calibrations[0].fitted_on == "the other half of the clean frames"
    assert sum(row.count for row in report.calibrations[0].reliability.bins) == 300
    assert report.calibrations[0].curve is not None and report.calibrations[0].scale is None
    given = judge(rows(), loss_scales={"head": 2.0}, loss_scales_from="elsewhere")
    assert given.calibrations[0].scale == 2.0
    assert sum(row.count for row in given.calibrations[0].reliability.bins) == 600


def test_the_page_is_one_file_that_fetches_nothing_and_escapes_names() -> None:
    columns = rows()
    report = judge(columns, settings={"run": "<script>alert(1)</script>"}, loss_scales={"head": None})
    evidence = Evidence.of(
        columns["scores"], **{key: value for key, value in columns.items() if key != "scores"}
    )
    text = render(report, evidence)
    page = Checker()
    page.feed(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags["svg"] == 2 + 2 + 2 + 1
    assert all(url.startswith(("data:", "#")) for url in page.fetched)
    assert not re.search(r"url\((?!#|data:)", text)
    assert "drive-0/&lt;0&gt;" in text or "&lt;" in text
    assert report.gate.verdict in text
    assert render(report, evidence) == text


def test_the_terminal_table_names_the_winner_and_says_why() -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(judge(rows()), console=console)
    text = console.export_text()
    assert "msp (free)" in text
    assert "beats the best free score" in text


def test_the_terminal_states_severities_and_the_expected_loss_in_the_units_of_the_task() -> None:
    report = judge(
        rows(), settings={"shifts": "fog, rain", "severity": "fog 1, rain 3"}, loss_scales={"head": None}
    )
    console = Console(record=True, width=300, file=io.StringIO())
    print_report(report, console=console)
    text = console.export_text()
    assert "severity of corruptions: fog 1, rain 3" in text
    lowest = report.calibrations[0].reliability.bins[0]
    assert f"parts of the frames: {lowest.predicted:.2g} (observed {lowest.observed:.2g}) and" in text


def test_the_terminal_tables_fit_80_columns() -> None:
    columns = rows()
    head = columns["scores"].pop("head")
    columns["scores"] |= {"wrong_prediction_approx": head, "learning_loss_pp": head + 0.1}
    columns["shifts"] = np.where(columns["shifts"] == "fog", "contrast", "clean")
    columns["counts"] = {name: np.arange(1200) % 5 for name in ("missed", "errors", "objects")}
    refitted = {"contrast": {"learning_loss_pp": head}}
    rules = GateRules({"msp", "wrong_prediction_approx"}, refitted=refitted, replicates=100)
    report = evaluate(Evidence.of(**columns), rules, replicates=60)
    console = Console(record=True, width=80, file=io.StringIO())
    print_report(report, console=console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    # A head that was fitted again follows the head itself, and need not repeat its name.
    place = next(i for i, line in enumerate(lines) if line.startswith("  without contrast"))
    assert lines[place - 1].startswith("learning_loss_pp ")


def test_surprising_frames_are_wrong_with_a_low_score_and_no_photo_is_shown_twice() -> None:
    columns = rows()
    evidence = Evidence.of(
        columns["scores"], **{key: value for key, value in columns.items() if key != "scores"}
    )
    frames = find_frames(evidence, "head", shown=5)
    for kind in ("worst", "missed", "false alarm"):
        chosen = [frame for frame in frames if frame.kind == kind]
        assert len({frame.frame for frame in chosen}) == 5
    assert all(frame.failed for frame in frames if frame.kind == "missed")
    assert not any(frame.failed for frame in frames if frame.kind == "false alarm")
    missed = np.mean([frame.percentile for frame in frames if frame.kind == "missed"])
    alarms = np.mean([frame.percentile for frame in frames if frame.kind == "false alarm"])
    assert missed < alarms


def test_slices_tell_a_real_gap_from_chance_and_list_small_groups_apart() -> None:
    rng = np.random.default_rng(0)
    weather = np.array(["dry"] * 900 + ["snow"] * 300 + ["hail"] * 5)
    failed = rng.random(1205) < np.where(weather == "snow", 0.4, 0.1)
    found = slice_report("weather", weather, score=rng.normal(size=1205), failed=failed, threshold=1.0)
    gaps = {gap.measure: gap for gap in found.gaps}
    assert gaps["error"].beyond_chance
    assert (gaps["error"].largest, gaps["error"].smallest) == ("snow", "dry")
    assert gaps["error"].gap.low > 0.15
    assert not gaps["flag_rate"].beyond_chance
    assert found.too_small == ("hail",)
    assert [row.value for row in found.rows] == ["dry", "snow"]
    perfect = slice_report("all", ["a"] * 44, score=np.arange(44.0), failed=np.zeros(44), threshold=40.0)
    assert perfect.rows[0].error.low == 0
    assert perfect.rows[0].error.high == pytest.approx(0.080, abs=0.001)


def test_equal_groups_are_rarely_called_unequal() -> None:
    calls = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 6, 600)
        failed = rng.random(600) < 0.2
        found = slice_report(
            "g", labels, score=rng.normal(size=600), failed=failed, threshold=1.5, seed=seed, replicates=50
        )
        calls += found.gaps[0].beyond_chance
    assert calls <= 8


def test_slices_and_scores_that_do_not_fit_are_named() -> None:
    with pytest.raises(JudgeError, match="slice 'camera' has 3 labels"):
        judge(rows(), slices={"camera": ["a", "b", "c"]})
    with pytest.raises(JudgeError, match="no score 'absent' to calibrate"):
        judge(rows(), loss_scales={"absent": None})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real, small run: digits, two epochs, so that there are errors to find."""
    overrides = {
        "dataset": "digits",
        "training.epochs": 2,
        "split.limit": 300,
        "head.steps": 30,
        "head.copies": 1,
        "head.families": ["noise", "fog"],
    }
    return train_run(
        parse_train_config({}, overrides=overrides), out=tmp_path_factory.mktemp("judged") / "run"
    )


def test_a_run_is_judged_on_its_test_images_with_refits_and_pictures(run: Run) -> None:
    dataset = load_dataset("digits")
    judging = Judging(
        scores=("msp", "entropy", "learning_loss_pp"), shifts=("fog", "glare"), limit=200, replicates=50
    )
    report, evidence = judge_run(run, dataset, judging)
    assert len(evidence) == 600
    assert {condition.name for condition in report.conditions} == {"clean", "fog", "glare", "all conditions"}
    assert report.condition("fog").score("learning_loss_pp without fog").metrics["auroc"].usable > 0
    assert not any("without" in row.name for row in report.condition("glare").scores)
    assert any("fitted without that corruption" in note and "fog" in note for note in report.gate.notes)
    assert all(
        frame.picture and frame.picture.startswith("data:image/png;base64,") for frame in report.frames
    )
    assert {frame.truth for frame in report.frames} <= set(dataset.classes)
    assert [c.score for c in report.calibrations] == ["learning_loss_pp"]
    assert [s.name for s in report.slices] == ["class"]
    honest = judge_run(
        run, dataset, Judging(scores=("msp",), limit=100, shifts=("fog",), refit=False, replicates=50)
    )
    assert any("these shifts are not held out" in note for note in honest[0].gate.notes)


def test_a_severity_of_0_adapts_on_held_out_frames_until_a_tenth_to_a_half_fail(run: Run) -> None:
    dataset = load_dataset("digits")
    held_out = run_splits(run, dataset)["holdout"]
    chosen = adapt_severity(run.probe, run.task, held_out, "noise", contract=run.contract)
    shares = [
        failed_share(
            run.probe,
            run.task,
            corrupt_all(held_out, "noise", severity=severity, seed=0),
            contract=run.contract,
        )
        for severity in SEVERITIES
    ]
    inside = [s for s, share in zip(SEVERITIES, shares, strict=True) if 0.1 <= share <= 0.5]
    assert chosen == inside[0] if inside else chosen in (1, 5)
    judging = Judging(scores=("msp",), severity=0, shifts=("noise",), limit=100, refit=False, replicates=20)
    report, _ = judge_run(run, dataset, judging)
    assert report.settings["severity"] == chosen


def test_a_head_that_was_cross_fitted_or_trained_along_is_not_fitted_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network has been trained on the holdout, so another head would be judged, on what it has seen."""

    def fail(*_args: object, **_more: object) -> None:
        raise AssertionError("the head was fitted again")

    monkeypatch.setattr("misfire_train.fitting.refit.fit_head", fail)
    judging = Judging(scores=("msp", "learning_loss_pp"), limit=200, shifts=("fog",), replicates=50)
    for change, why in (
        ({"folds": 3}, "its run did not keep the networks of its folds"),
        ({"joint": True}, "it was not fitted on frames that the network never saw"),
    ):
        config = {**run.record.config, "head": {**run.record.config["head"], **change}}
        record = run.record.model_copy(update={"config": config})
        report, _ = judge_run(replace(run, record=record), load_dataset("digits"), judging)
        notes = " ".join(report.gate.notes)
        assert f"not fitted again ({why})" in notes
        assert "these shifts are not held out" in notes
        assert not any(view.kind == "corruptions" for view in report.gate.views)


def test_judging_on_what_was_fitted_on_is_refused(run: Run) -> None:
    dataset = load_dataset("digits")
    with pytest.raises(JudgeError, match="fitted on the holdout part"):
        judge_run(run, dataset, Judging(part="holdout"))
    with pytest.raises(JudgeError, match="no part 'nowhere'"):
        judge_run(run, dataset, Judging(part="nowhere"))
    with pytest.raises(JudgeError, match="needs a free score"):
        judge_run(run, dataset, Judging(scores=("knn_distance",), limit=50))


def test_all_free_and_names_combine(run: Run) -> None:
    free, everything = (chosen_scores([name], run.record) for name in ("free", "all"))
    assert chosen_scores(["free", "learning_loss_pp", "msp"], run.record) == [*free, "learning_loss_pp"]
    assert chosen_scores(["knn_distance", "free"], run.record) == ["knn_distance", *free]
    assert set(chosen_scores(["free", "all"], run.record)) == set(everything)
    assert everything[-1] == "learning_loss_pp"
    judging = Judging(scores=("free", "learning_loss_pp"), limit=60, replicates=50)
    report, _ = judge_run(run, load_dataset("digits"), judging)
    assert {row.name for row in report.condition("clean").scores} == {*free, "learning_loss_pp"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            ["--scores", "free,entorpy"],
            "unknown score entorpy; there are all, free, msp, .*learning_loss_pp$",
        ),
        (
            ["--scores", "msp,mean_peak"],
            "mean_peak serves keypoints, not classification; there are all, free",
        ),
        (["--scores", "learning_loss_pp"], "needs a free score to beat: add free, or one of msp"),
        (["--shift", "fog,hail"], "unknown corruption hail; there are all, noise"),
    ],
)
def test_wrong_names_are_refused_before_any_work(
    run: Run, options: list[str], match: str, tmp_path: Path
) -> None:
    # Weights and data are gone: nothing but the names has been looked at.
    only_record = tmp_path / "run"
    only_record.mkdir()
    (only_record / "run.json").write_bytes((run.path / "run.json").read_bytes())
    command = ["evaluate", str(only_record), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, JudgeError)
    assert re.search(match, str(result.exception))
    assert not (tmp_path / "out").exists()


def test_the_learned_head_of_a_run_without_one_is_refused(run: Run) -> None:
    bare = run.record.model_copy(update={"head": None})
    assert "learning_loss_pp" not in chosen_scores(["all"], bare)
    with pytest.raises(
        JudgeError, match="the run has no learned head, so no learning_loss_pp; there are all"
    ):
        chosen_scores(["free", "learning_loss_pp"], bare)


def test_misfire_evaluate_writes_report_and_page(run: Run, tmp_path: Path) -> None:
    dataset = load_dataset("digits")
    labels = tmp_path / "slices.csv"
    lines = [f"{identity},{'left' if i % 2 else 'right'}" for i, identity in enumerate(dataset.test.ids)]
    labels.write_text("\n".join(["id,camera", *lines]), encoding="utf-8")
    out = tmp_path / "judged"
    options = ["--scores", "msp,margin", "--limit", "150", "--replicates", "50", "--slices", str(labels)]
    arguments = ["evaluate", str(run.path), *options, "--out", str(out), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert printed["gate"]["winner_is_free"]
    assert {found["name"] for found in printed["slices"]} == {"class", "camera"}
    assert (out / "report.html").read_text(encoding="utf-8").count("<img") >= 8
