"""`misfire evaluate --scores`: scores from elsewhere, in tables as people have them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_train.errors import JudgeError
from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules
from misfire_train.judge.tables import TableJudging, judge_table, read_columns
from misfire_train.metrics import auroc

COUNT = 400


def table(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    loss = rng.exponential(size=COUNT)
    return {
        "id": [f"{i:04d}" for i in range(COUNT)],
        "failed": loss > 1.5,
        "loss": loss,
        "drive": [f"{i % 25:02d}" for i in range(COUNT)],
        "weather": [("rain", "sun")[i % 2] for i in range(COUNT)],
        "msp": np.log(loss) + rng.normal(size=COUNT),
        "head": np.log(loss) + 0.3 * rng.normal(size=COUNT),
        "missed": rng.poisson(loss).astype(np.int64),
    }


def write(path: Path, columns: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(values) for name, values in columns.items()})
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return path


QUICK = TableJudging(columns={"group": "drive"}, slices=("weather",), replicates=60)


@pytest.mark.parametrize("form", ["parquet", "csv", "npz"])
def test_every_form_gives_what_arrays_give(tmp_path: Path, form: str) -> None:
    columns = table()
    report, evidence = judge_table(write(tmp_path / f"t.{form}", columns), QUICK)
    assert list(evidence.scores) == ["msp", "head"]
    assert evidence.groups.tolist() == columns["drive"]
    direct = evaluate(
        Evidence.of(
            {"msp": columns["msp"], "head": columns["head"]},
            failed=columns["failed"],
            loss=columns["loss"],
            groups=columns["drive"],
            frames=columns["id"],
            counts={"missed": columns["missed"]},
        ),
        GateRules({"msp"}),
        replicates=60,
    )
    assert report.condition("clean") == direct.condition("clean")
    assert report.gate == direct.gate
    assert report.gate.winner == "head"
    assert {each.name for each in report.slices} == {"group", "weather"}


def test_misses_found_in_uploads_are_those_of_a_sort_by_hand(tmp_path: Path) -> None:
    columns = table()
    report, _ = judge_table(write(tmp_path / "t.parquet", columns), QUICK)
    found = report.condition("clean").counts
    assert found is not None
    best = np.argsort(-columns["head"])[:20]
    assert found.scores["head"]["missed_at_5%"].value == pytest.approx(
        columns["missed"][best].sum() / columns["missed"].sum()
    )
    oracle = np.sort(columns["missed"])[::-1][:20].sum() / columns["missed"].sum()
    assert found.oracle["missed_at_5%"].value == pytest.approx(oracle)
    row = found.scores["head"]["missed_at_5%"]
    assert row.low < row.value < row.high < oracle
    assert found.random["missed_at_5%"] == 0.05
    assert found.gains["head"]["missed_at_5%"].difference == pytest.approx(
        row.value - found.scores["msp"]["missed_at_5%"].value
    )


def test_a_stated_threshold_of_the_loss_overrides_the_failures_and_sums_losses(tmp_path: Path) -> None:
    columns = table()
    path = write(tmp_path / "t.parquet", columns)
    report, evidence = judge_table(path, TableJudging(failure_threshold=0.5, replicates=60))
    assert report.condition("clean").failures == int((columns["loss"] > 0.5).sum())
    assert evidence.risk.tolist() == columns["loss"].tolist()
    assert report.settings["failure"] == "loss above 0.5, stated with this evaluation"


def test_a_column_of_shifts_makes_conditions(tmp_path: Path) -> None:
    columns = table()
    both = {name: [*values, *values] for name, values in columns.items()}
    both["shift"] = ["clean"] * COUNT + ["fog"] * COUNT
    report, _ = judge_table(write(tmp_path / "t.csv", both), QUICK)
    assert [each.name for each in report.conditions] == ["clean", "fog", "all conditions"]
    assert report.settings["frames"] == COUNT


def test_ids_that_look_like_numbers_keep_their_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", table())
    assert read_columns(path, text=["id"])["id"][7] == "0007"


def test_only_named_scores_are_judged_and_the_rest_is_listed(tmp_path: Path) -> None:
    columns = table() | {"speed": np.arange(COUNT)}
    judging = TableJudging(scores=("head", "speed"), free=("speed",), replicates=60)
    report, evidence = judge_table(write(tmp_path / "t.npz", columns), judging)
    assert list(evidence.scores) == ["head", "speed"]
    assert report.settings["columns_not_used"] == "drive, weather, msp"
    assert report.condition("clean").score("speed").free


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"failed": None, "loss": None}, {}, "no column 'failed'"),
        ({"failed": None}, {}, "alone does not say what failed"),
        ({"loss": None}, {"failure_threshold": 1.0}, "threshold of the loss"),
        ({"id": ["a"] * COUNT}, {}, "the id 'a' is there more than once"),
        ({"msp": [None, *[1.0] * (COUNT - 1)]}, {}, "score 'msp' is NaN for 1 of 400 samples: '0000'"),
        ({"failed": [None, *[True] * (COUNT - 1)]}, {}, "'failed' is empty in 1 rows, the first of '0000'"),
        ({"failed": ["yes"] * COUNT}, {}, "holds text, such as 'yes'"),
        ({"failed": [3] * COUNT}, {}, "failed must hold only 0 and 1"),
        ({"missed": [-1] * COUNT}, {}, "count 'missed'"),
        ({"msp": None}, {}, "which of head cost nothing"),
        ({}, {"free": ("nope",)}, "'nope' is not among the scores msp, head"),
        ({}, {"scores": ("weather",)}, "the score 'weather' holds text"),
        ({}, {"scores": ("nope",)}, "no column 'nope'; there are id, failed"),
        ({}, {"columns": {"failed": "nope"}}, "--columns failed=nope: there is none"),
        ({}, {"columns": {"wrong": "failed"}}, "no role 'wrong'"),
        ({}, {"slices": ("nope",)}, "no column 'nope'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    columns = {name: values for name, values in (table() | change).items() if values is not None}
    judging = TableJudging(**({"replicates": 50} | options))
    with pytest.raises(JudgeError, match=message):
        judge_table(write(tmp_path / "t.parquet", columns), judging)


def test_files_that_are_no_tables_are_named(tmp_path: Path) -> None:
    for form in ("parquet", "npz"):
        broken = tmp_path / f"broken.{form}"
        broken.write_bytes(b"\x00nonsense" * 9)
        with pytest.raises(JudgeError, match="broken"):
            read_columns(broken)
    with pytest.raises(JudgeError, match="no such file"):
        read_columns(tmp_path / "missing.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("id,failed,msp\n")
    with pytest.raises(JudgeError, match="no rows"):
        read_columns(empty)


def test_the_command_writes_report_and_page_and_names_the_right_option(tmp_path: Path) -> None:
    path, runner = write(tmp_path / "t.parquet", table()), CliRunner()
    out = tmp_path / "judged"
    arguments = ["--columns", "group=drive", "--slice-columns", "weather", "--replicates", "60"]
    found = runner.invoke(app, ["evaluate", "--scores", str(path), "--out", str(out), *arguments, "--json"])
    assert found.exit_code == 0, found.output
    values = json.loads((out / "report.json").read_text())
    assert json.loads(found.stdout) == values
    clean = values["conditions"][0]
    assert clean["counts"]["scores"]["head"]["missed_at_10%"]["value"] > 0.1
    row = next(each for each in clean["scores"] if each["name"] == "head")
    assert row["metrics"]["auroc"]["value"] == auroc(table()["head"], table()["failed"])
    page = (out / "report.html").read_text()
    assert "What an upload finds" in page
    assert "missed at 5 %" in page
    shown = runner.invoke(app, ["evaluate", "--scores", str(path), "--out", str(out), *arguments])
    assert "missed objects" in shown.output
    wrong = runner.invoke(app, ["evaluate", str(path), "--out", str(out)])
    assert "misfire evaluate --scores" in str(wrong.exception)
    nothing = runner.invoke(app, ["evaluate", "--out", str(out)])
    assert "name what to judge" in str(nothing.exception)
    stray = runner.invoke(app, ["evaluate", "--scores", str(path), "--out", str(out), "--shift", "fog"])
    assert "--shift does not fit here" in str(stray.exception)


def test_a_table_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", table())
    program = (
        "import sys; from misfire_train.judge.command import evaluate; from pathlib import Path; "
        f"evaluate(scores={str(path)!r}, out=Path({str(tmp_path / 'out')!r}), free='msp', replicates=50); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"
