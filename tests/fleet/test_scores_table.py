"""`misfire fleet scores`: a store's or a spool's samples as a table that the judge and `select` read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.fleet.stores import at, sample
from typer.testing import CliRunner, Result

from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.spool import Spool
from misfire_runtime.testing import make_offer

COUNT = 120
DAY = 86_400.0


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A store with 120 samples of two vehicles on two days, scored by one bundle, and one of another."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "fleet"
    with Store.open_folder(folder) as store:
        samples = [
            sample(
                number,
                vehicle=f"car-{number % 2}",
                captured_at=at(DAY * (number // 60)),
                scores={"msp": float(rng.normal()), "head": float(rng.normal())},
                bundle="city@1.0.0",
            )
            for number in range(COUNT)
        ]
        store.add_many(samples)
        store.add_many([sample(999, scores={"msp": 0.5}, bundle="city@2.0.0")])
    return folder


def test_a_store_becomes_a_table_and_is_judged_by_what_is_known_of_its_samples(
    fleet: Path, tmp_path: Path
) -> None:
    with Store.open_folder(fleet) as store:
        rows = {row.id: row for row in store.newest(1000)}
    truth = tmp_path / "truth.csv"
    old = [row for row in rows.values() if row.bundle == "city@1.0.0"]
    with truth.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "failed"])
        writer.writerows([row.id, "yes" if row.scores["head"] > 0.2 else "no"] for row in old)
    table = tmp_path / "scores.parquet"
    where = ["--fleet-dir", str(fleet)]
    result = run("fleet", "scores", *where, "--truth", str(truth), "--out", str(table), "--json")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["samples"] == COUNT
    found: dict[str, list[Any]] = pq.read_table(table).to_pydict()
    assert set(found["group"]) == {f"car-{k}/{day}" for k in (0, 1) for day in ("2023-11-14", "2023-11-15")}
    for identity, score in zip(found["id"], found["head"], strict=True):
        assert rows[identity].scores["head"] == score
    judged = run(
        "evaluate", "--scores", str(table), "--replicates", "50", "--out", str(tmp_path / "j"), "--json"
    )
    assert judged.exit_code == 0, judged.exception
    report = json.loads(judged.stdout)
    aurocs = {row["name"]: row["metrics"]["auroc"]["value"] for row in report["conditions"][0]["scores"]}
    assert set(aurocs) == {"msp", "head"}
    assert aurocs["head"] == 1.0
    out = tmp_path / "next.csv"
    chosen = run("select", "--scores", f"{table}:head", "--method", "top-k", "-k", "3", "--out", str(out))
    assert chosen.exit_code == 0, chosen.exception
    best = sorted(old, key=lambda row: -row.scores["head"])[:3]
    picked = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["id"] for row in picked] == [row.id for row in best]


def test_scores_of_several_bundles_are_named_and_taken_apart(fleet: Path, tmp_path: Path) -> None:
    table, where = tmp_path / "scores.csv", ["--fleet-dir", str(fleet)]
    every = run("fleet", "scores", *where, "--out", str(table))
    assert "121 samples of city@1.0.0, city@2.0.0; scores head, msp" in every.stdout
    assert "name one with --bundle" in every.stdout
    one = run("fleet", "scores", *where, "--bundle", "city@2.0.0", "--out", str(table))
    assert "1 samples of city@2.0.0; scores msp" in one.stdout
    none = run("fleet", "scores", *where, "--bundle", "town@1.0.0", "--out", str(table))
    assert isinstance(none.exception, StoreError)


def test_a_spool_becomes_the_same_table(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", reserve_bytes=0) as spool:
        for number in range(5):
            payload = b"pixels %d" % number
            spool.add(payload, make_offer(payload, scores={"msp": float(number)}))
    table = tmp_path / "scores.parquet"
    result = run("fleet", "scores", "--spool", str(tmp_path / "spool"), "--out", str(table))
    assert result.exit_code == 0, result.exception
    found = pq.read_table(table).to_pydict()
    assert sorted(found["msp"]) == [0.0, 1.0, 2.0, 3.0, 4.0]
    missing = run("fleet", "scores", "--spool", str(tmp_path), "--out", str(table))
    assert isinstance(missing.exception, StoreError)


@pytest.mark.parametrize("text", ["id\nx\n", "name,failed\nx,1\n", "id,failed\nx,perhaps\n"])
def test_truth_that_cannot_be_read_is_named(fleet: Path, tmp_path: Path, text: str) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(text, encoding="utf-8")
    result = run(
        "fleet", "scores", "--fleet-dir", str(fleet), "--truth", str(truth), "--out", str(tmp_path / "t.csv")
    )
    assert isinstance(result.exception, ConfigError)
    assert "truth.csv" in str(result.exception)
