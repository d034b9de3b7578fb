"""The scripts of examples/ run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_model_of_ones_own_gets_a_score_and_is_judged() -> None:
    command = [sys.executable, str(EXAMPLES / "own_model.py"), "--steps", "60"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert result.returncode == 0, result.stderr
    table = [
        line.split() for line in result.stdout.splitlines() if line.startswith(("clean", "fog", "glare"))
    ]
    assert [row[0] for row in table] == ["clean", "fog", "glare"]
    for row in table:
        assert 0 < float(row[1]) <= 1
        assert row[2::2] == ["msp", "entropy", "learning_loss_pp"]
    assert float(table[0][1]) > float(table[1][1])
    assert "score.learning_loss_pp (2,)" in result.stdout
