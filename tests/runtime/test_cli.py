"""The command line: lazy, and clear where an extra is missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import misfire_runtime
from misfire_runtime import cli
from misfire_runtime.choices import Provider
from misfire_runtime.errors import MissingExtraError

pytestmark = pytest.mark.slow


def run_misfire(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "misfire_runtime.cli", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


HEAVY = ("torch", "sqlalchemy", "onnx", "onnxruntime", "fastapi", "matplotlib", "sklearn", "cv2", "numpy")
EVERY_HELP = f"""
import contextlib, io, sys
from misfire_runtime import cli


def show(*arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.app([*arguments, "--help"])
    loaded = set({HEAVY!r}) & set(sys.modules)
    assert not loaded, f"misfire {{' '.join(arguments)}} --help imports {{', '.join(sorted(loaded))}}"


show()
for name in cli.COMMANDS:
    show(name)
    for part in getattr(cli.load(name), "commands", {{}}):
        show(name, part)
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )


def test_the_help_of_no_command_imports_what_the_command_uses() -> None:
    result = run_python(EVERY_HELP)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_option_and_argument_has_a_help_text(name: str) -> None:
    command = cli.load(name)
    for part in (command, *getattr(command, "commands", {}).values()):
        missing = [parameter.name for parameter in part.params if not parameter.help]
        assert not missing, f"{part.name}: {missing}"
        assert part.help


def test_a_vehicles_commands_run_without_a_servers_libraries(tmp_path: Path) -> None:
    code = (
        "import contextlib, sys\nfrom misfire_runtime import cli\n"
        f"for arguments in (['schemas', '--out', {str(tmp_path)!r}], ['doctor']):\n"
        "    with contextlib.suppress(SystemExit):\n        cli.app(arguments)\n"
        "assert not {'torch', 'onnx', 'sqlalchemy', 'fastapi'} & set(sys.modules), 'imported too much'\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "python" in result.stdout, "the doctor said nothing"


@pytest.mark.parametrize("unit", ["misfire_runtime", "misfire_train", "misfire_export", "misfire_fleet"])
def test_a_units_front_door_is_small_and_loads_nothing_until_asked(unit: str) -> None:
    code = (
        f"import sys, {unit} as unit\n"
        f"loaded = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert 5 <= len(unit.__all__) <= 8, unit.__all__\n"
        "assert set(unit.__all__) <= set(dir(unit))\n"
        "for name in unit.__all__:\n    assert getattr(unit, name) is not None\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_a_front_door_has_only_its_public_names() -> None:
    with pytest.raises(AttributeError, match="module 'misfire_runtime' has no attribute 'fly'"):
        misfire_runtime.fly  # noqa: B018


def test_a_wrong_choice_is_an_error_that_names_the_choices() -> None:
    result = run_misfire("bench", "bundle", "--provider", "abacus")
    assert result.returncode == 2
    assert "--provider" in result.stderr
    for choice in get_args(Provider):
        assert f"'{choice}'" in result.stderr


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


def test_a_library_that_is_missing_when_the_command_runs_becomes_the_same_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("misfire_train.commands.train.train", _needs_a_library)
    with pytest.raises(MissingExtraError, match=r"`misfire train` needs torchless_library.*misfire\[train\]"):
        cli.app(["train"], standalone_mode=False)


def _needs_a_library() -> None:
    importlib.import_module("torchless_library.parts")


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
