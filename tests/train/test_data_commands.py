"""`misfire data` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from misfire_runtime.errors import MisfireError
from misfire_train.commands.data import app
from proving_ground.services import data_root


def misfire(*arguments: str, data: Path | None = None) -> Result:
    environment = {"COLUMNS": "160", "MISFIRE_DATA": str(data) if data is not None else None}
    return CliRunner().invoke(app, [*arguments], env=environment)


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_names_every_set_with_task_licence_and_state(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in answer(misfire("list", "--json", data=data_root()))["datasets"]}
    assert rows["mnist"]["state"] == "present"
    assert rows["digits"]["state"] == "present"
    assert rows["image-folder:PATH"]["state"] == "reads yours"
    assert all(row["task"] and row["licence"] for row in rows.values())
    assert all(len(file["sha256"]) == 64 for row in rows.values() for file in row["files"])
    empty = {
        row["name"]: row["state"] for row in answer(misfire("list", "--json", data=tmp_path))["datasets"]
    }
    assert (empty["mnist"], empty["digits"]) == ("missing", "present")
    table = misfire("list", data=data_root())
    assert "fashion-mnist" in table.stdout
    assert "MIT (Zalando SE)" in table.stdout


def test_check_reads_every_byte_and_fails_on_a_changed_one(tmp_path: Path) -> None:
    for file in (data_root() / "traffic_lights").iterdir():
        copy = tmp_path / "traffic_lights" / file.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert answer(misfire("check", "traffic-lights", "--json", "--data", str(tmp_path)))["datasets"] == [
        {"name": "traffic-lights", "state": "present"}
    ]
    data = bytearray(copy.read_bytes())
    data[1000] ^= 1
    copy.write_bytes(data)
    changed = misfire("check", "traffic-lights", "--data", str(tmp_path))
    assert changed.exit_code == 1
    assert "changed" in changed.stdout
    assert misfire("check", "mnist", "--data", str(tmp_path)).exit_code == 1


def test_show_says_what_is_in_a_set() -> None:
    found = answer(misfire("show", "digits", "--json"))
    assert (found["train"], found["test"], found["input"]) == (1352, 445, "8x8 gray")
    assert "classes" in misfire("show", "digits").stdout


def test_fetch_of_what_is_here_asks_nobody() -> None:
    assert answer(misfire("fetch", "mnist", "--json", data=data_root()))["fetched"] == []
    assert "here already" in misfire("fetch", "digits").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fetch", "nonsense"), "there is no data set 'nonsense'"),
        (("show", "mnist"), "misfire data fetch mnist"),
        (("show", "image-folder:nowhere"), "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_done_says_why(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    result = misfire(*arguments, "--data", str(tmp_path))
    assert isinstance(result.exception, MisfireError)
    assert text in str(result.exception)


def test_on_the_command_line_that_is_one_line_and_exit_1(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "misfire_runtime.cli",
        "data",
        "fetch",
        "traffic-lights",
        "--data",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 1
    assert result.stderr.startswith("misfire: traffic-lights: traffic_lights/train.npz has no public address")
    assert result.stderr.count("\n") == 1
