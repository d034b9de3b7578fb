"""Benchmarks start in the same way, record what is needed to repeat them, and lean on no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.__main__ import main, names, question
from benchmarks.record import LEFT_OUT, ROOT, command_line, finish, run, work_folder

from misfire_train.errors import DatasetError
from proving_ground.services import MissingServiceError


def options_of(*arguments: str) -> Any:
    return command_line("What it asks.").parse_args(arguments)


def test_a_result_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "results" / "peers.json"
    monkeypatch.setattr(sys, "argv", ["peers.py", "--json", "--out", str(out), "--seed", "3", "4"])
    options = options_of(*sys.argv[1:])
    measured = {"ratios": {"k_center": np.float32(2.0)}, "undefined": float("nan")}
    assert finish(str(ROOT / "benchmarks/speed/peers.py"), measured, options, met=False) == 1
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result == json.loads(capsys.readouterr().out)
    assert result["benchmark"] == "speed/peers"
    assert result["command"] == "python benchmarks/speed/peers.py --json --seed 3 4"
    assert result["seeds"] == [3, 4] and result["quick"] is False
    assert result["versions"]["misfire"] and result["date"].endswith("Z") and result["commit"]
    assert result["ratios"] == {"k_center": 2.0} and result["undefined"] is None


@pytest.mark.parametrize("error", [MissingServiceError("mosquitto is not here"), DatasetError("no mnist")])
def test_what_is_not_installed_leaves_a_benchmark_out(error: Exception, capsys: Any) -> None:
    def measure() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(measure)
    assert ended.value.code == LEFT_OUT
    assert capsys.readouterr().err == f"left out: {error}\n"


def test_a_short_run_leaves_no_networks_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = options_of("--quick")
    options.work = None
    folder = work_folder(options)
    assert folder.is_dir() and not list(tmp_path.iterdir())
    options.holder.cleanup()
    assert not folder.exists()


def test_every_benchmark_is_listed_with_its_question_and_has_a_row_in_the_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert len(lines) == len(names()) >= 18
    for name, line in zip(names(), lines, strict=True):
        assert line.split()[0] == name and question(name) in line
        assert f"`{Path(name).name}.py`" in page, name


@pytest.mark.parametrize("how", [["benchmarks/endurance/faults.py"], ["-m", "benchmarks.endurance.faults"]])
def test_a_benchmark_starts_by_its_path_and_as_a_module(how: list[str]) -> None:
    command = [sys.executable, *how, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--quick", "--json", "--out", "--seed"):
        assert option in done.stdout


def test_neither_benchmarks_nor_the_proving_ground_import_tests() -> None:
    files = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "fleet" / "proving_ground").rglob("*.py")]
    assert len(files) > 40
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "from tests" not in text and "import tests" not in text, file


def test_the_product_does_not_import_its_doubles() -> None:
    for unit in ("runtime", "train", "export", "fleet"):
        for file in (ROOT / unit / f"misfire_{unit}").rglob("*.py"):
            assert "misfire_runtime.testing import" not in file.read_text(encoding="utf-8"), file
