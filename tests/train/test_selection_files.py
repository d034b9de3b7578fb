"""`misfire select`: files in, chosen ids out, and one clear line where a file does not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_train.selection import SelectionError, select
from misfire_train.selection.files import read_column, read_matrix


def make_pool(folder: Path) -> tuple[np.ndarray, Path]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(200, 8)).astype(np.float32)
    table = pa.table(
        {
            "id": [f"drive-{i // 50}/{i:04d}" for i in range(200)],
            "embedding": pa.array(list(embeddings)),
            "score": rng.random(200),
            "group": [f"drive-{i // 50}" for i in range(200)],
        }
    )
    pq.write_table(table, folder / "pool.parquet", row_group_size=60)
    return embeddings, folder / "pool.parquet"


def test_parquet_and_npy_give_the_same_pool(tmp_path: Path) -> None:
    embeddings, file = make_pool(tmp_path)
    np.save(tmp_path / "pool.npy", embeddings)
    assert (read_matrix(str(file), column="embedding") == embeddings).all()
    mapped = read_matrix(str(tmp_path / "pool.npy"), column="embedding")
    assert isinstance(mapped, np.memmap)
    assert (mapped == embeddings).all()
    assert read_column(f"{file}:id", column="score")[3] == "drive-0/0003"


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_the_command_writes_ids_in_the_order_of_choice(tmp_path: Path, suffix: str) -> None:
    embeddings, file = make_pool(tmp_path)
    out = tmp_path / f"chosen.{suffix}"
    source = str(file)
    inputs = ["--embeddings", source, "--ids", source, "--scores", source, "--balance", source]
    options = ["--method", "k-center", "-k", "12", "--seed", "3", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, ["select", *inputs, *options], catch_exceptions=False)
    assert json.loads(result.output)["chosen"] == 12
    text = out.read_text(encoding="utf-8")
    rows = json.loads(text) if suffix == "json" else list(csv.DictReader(text.splitlines()))
    drives = np.array([i // 50 for i in range(200)])
    expected = select(embeddings, method="k-center", k=12, balance=drives, seed=3)
    assert [int(row["row"]) for row in rows] == expected.tolist()
    assert rows[0]["id"] == f"drive-{expected[0] // 50}/{expected[0]:04d}"
    assert [sum(row["id"].startswith(f"drive-{d}") for row in rows) for d in range(4)] == [3, 3, 3, 3]


def test_labelled_ids_are_never_chosen(tmp_path: Path) -> None:
    _, file = make_pool(tmp_path)
    labelled = [f"drive-0/{i:04d}" for i in range(50)]
    pq.write_table(pa.table({"labelled": labelled}), tmp_path / "labelled.parquet")
    out = tmp_path / "chosen.json"
    arguments = ["select", "--embeddings", str(file), "--ids", str(file), "-k", "150", "--out", str(out)]
    CliRunner().invoke(
        app, [*arguments, "--labelled", str(tmp_path / "labelled.parquet")], catch_exceptions=False
    )
    assert not {row["id"] for row in json.loads(out.read_text(encoding="utf-8"))} & set(labelled)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _, file = make_pool(tmp_path)
    with pytest.raises(SelectionError, match="no such file"):
        read_matrix(str(tmp_path / "absent.npy"), column="embedding")
    with pytest.raises(SelectionError, match="no column 'vector'; there are id, embedding"):
        read_matrix(f"{file}:vector", column="embedding")
    with pytest.raises(SelectionError, match="holds no lists"):
        read_matrix(f"{file}:score", column="embedding")
    with pytest.raises(SelectionError, match="expected FILE"):
        read_matrix(str(tmp_path / "pool.csv"), column="embedding")
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    with pytest.raises(SelectionError, match="can be read"):
        read_matrix(str(tmp_path / "bad.npy"), column="embedding")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SelectionError, match="not a Parquet file"):
        read_matrix(str(tmp_path / "bad.parquet"), column="embedding")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(SelectionError, match="differ in length"):
        read_matrix(str(tmp_path / "ragged.parquet"), column="embedding")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], None]}), tmp_path / "null.parquet")
    with pytest.raises(SelectionError, match="null in row 1"):
        read_matrix(str(tmp_path / "null.parquet"), column="embedding")
    pq.write_table(pa.table({"embedding": pa.array([], pa.list_(pa.float32()))}), tmp_path / "empty.parquet")
    with pytest.raises(SelectionError, match="nothing to choose from"):
        read_matrix(str(tmp_path / "empty.parquet"), column="embedding")
