"""`misfire retrain --mlflow`: logged once, and refused before the training if MLflow is not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from misfire_fleet.errors import StoreUnavailableError
from misfire_fleet.retrain.tracking import Tracking
from misfire_runtime.cli import app
from misfire_runtime.errors import MissingExtraError
from misfire_train.retraining import Retrained


def retrained(run_id: str = "0123abcd") -> Retrained:
    dataset = SimpleNamespace(name="digits", sha256="d" * 64)
    record = SimpleNamespace(
        run_id=run_id,
        parent_run_id="parent",
        snapshot="e" * 64,
        dataset=dataset,
        git_commit=None,
        config={"training": {"epochs": 3, "words": "x" * 9000}, "many": {str(n): n for n in range(250)}},
    )
    found: Any = SimpleNamespace(
        run=SimpleNamespace(record=record, path=Path("run2")),
        before={"clean": 0.8, "auroc_clean": 0.7},
        after={"clean": 0.9},
    )
    return cast(Retrained, found)


def logged(uri: str, run_id: str = "0123abcd") -> str:
    return Tracking(uri).log(retrained(run_id), snapshot="autumn", bundle=None)


def test_a_missing_library_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    words = ["retrain", str(tmp_path), "--out", str(tmp_path / "o"), "--snapshot", "a", "--mlflow", "x"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, MissingExtraError) and "misfire[mlflow]" in str(done.exception)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as MLflow's store, which its newer versions only use if they are told so."""
    if os.environ.get("MISFIRE_REQUIRE_SERVICES") != "1":
        pytest.importorskip("mlflow", reason="mlflow is an extra of its own")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def test_a_run_is_logged_with_its_lineage_and_only_once(folder: str) -> None:
    from mlflow.tracking import MlflowClient

    first = logged(folder)
    assert logged(folder) == first and logged(folder, "another") != first
    found = MlflowClient(tracking_uri=folder).get_run(first).data
    assert found.metrics == {"before.clean": 0.8, "before.auroc_clean": 0.7, "after.clean": 0.9}
    assert found.params["training.epochs"] == "3" and len(found.params) == 252
    assert found.tags["misfire.snapshot"] == "autumn" and found.tags["misfire.run_id"] == "0123abcd"
    assert found.tags["misfire.snapshot_sha256"] == "e" * 64 and "misfire.git_commit" not in found.tags


def test_a_server_that_does_not_answer_is_one_sentence(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnavailableError, match="MLflow at") as found:
        Tracking("http://ann:secret@127.0.0.1:9")
    assert "secret" not in str(found.value).split(":", 3)[0]
