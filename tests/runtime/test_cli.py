"""The command line: lazy, and clear where an extra is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from misfire_runtime import cli
from misfire_runtime.errors import MissingExtraError


def run_misfire(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "misfire_runtime.cli", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_every_command_without_importing_any() -> None:
    code = (
        "import sys\nfrom misfire_runtime import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'fastapi', 'onnxruntime', 'cv2'} & set(sys.modules), 'imported too much'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    for name in cli.COMMANDS:
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_of_the_table_has_a_help_page(name: str) -> None:
    result = run_misfire(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_a_missing_library_becomes_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("torchless_library.x:train", "train", ""))
    with pytest.raises(MissingExtraError, match=r"pip install 'misfire\[train\]' -c constraints.txt"):
        cli.load("train")


def test_a_missing_module_of_misfire_itself_is_not_blamed_on_an_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("misfire_nowhere.x:train", "train", ""))
    with pytest.raises(ModuleNotFoundError):
        cli.load("train")


def test_an_unknown_command_is_an_error() -> None:
    result = run_misfire("fly")
    assert result.returncode == 2
    assert "fly" in result.stderr


def test_version() -> None:
    assert run_misfire("--version").stdout.startswith("misfire ")
