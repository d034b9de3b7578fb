"""The gamma tables to every printed digit, the closed forms against quadrature and sampling, and the fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate
from typer.testing import CliRunner

from misfire_train import gamma
from misfire_train.experiments.commands import app
from misfire_train.scores import ScoreError

PRINTED_1 = [0.094, 0.185, 0.274, 0.358, 0.437, 0.527, 0.607]
PRINTED_2 = [0.5, 0.39, 0.30, 0.25, 0.21, 0.18]


def test_table_1_has_every_printed_digit() -> None:
    assert [round(value, 3) for value in gamma.table_1()] == PRINTED_1


def test_table_2_has_every_printed_digit() -> None:
    assert [round(value, 2) for value in gamma.table_2()] == PRINTED_2


@pytest.mark.parametrize("shape", [1, 2, 3, 5, 6, 8])
def test_no_other_integer_shape_prints_table_1(shape: int) -> None:
    for scale in np.linspace(0.01, 0.4, 400):
        ours = gamma.within(gamma.TABLE_1_DELTAS, shape=shape, scale=scale).round(3).tolist()
        assert ours != PRINTED_1


def test_closed_forms_of_k_4_are_those_written_out() -> None:
    u = np.linspace(0, 20, 50)
    written = 1 - np.exp(-u) * (48 + 33 * u + 9 * u**2 + u**3) / 48
    np.testing.assert_allclose(gamma.within(u, scale=1.0), written, atol=1e-13)


@pytest.mark.parametrize("shape", [1, 2, 4, 7])
@pytest.mark.parametrize("u", [1e-6, 0.3, 2.0, 12.0, 40.0])
def test_expected_share_is_the_integral(shape: int, u: float) -> None:
    def integrand(s: float, power: int) -> float:
        return s**power * (s * s - u * u) ** (shape - 1) * math.exp(u - s)

    above = [integrate.quad(integrand, u, u + 300, args=(power,), limit=400)[0] for power in (-1, 0)]
    expected = 0.5 * (1 - u * above[0] / above[1])
    assert float(gamma.lower_share(u, shape=shape, scale=1.0)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_both_tables_against_sampled_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.gamma(4, 0.0666, (2, 2_000_000))
    gap = np.abs(x - y)
    for delta, closed in zip(gamma.TABLE_1_DELTAS, gamma.table_1(), strict=True):
        assert float((gap <= delta).mean()) == pytest.approx(closed, abs=1.5e-3)
    near = np.abs(gap - 0.3) < 0.005
    sampled = float((np.minimum(x, y) / (x + y))[near].mean())
    assert sampled == pytest.approx(float(gamma.lower_share(0.3)), abs=2e-3)


@pytest.mark.parametrize(("shape", "scale"), [(0.5, 2.0), (4.0, 0.0666), (30.0, 1e-4)])
def test_fit_recovers_shape_and_scale(shape: float, scale: float) -> None:
    found = gamma.fit_gamma(np.random.default_rng(1).gamma(shape, scale, 50_000))
    assert found.shape == pytest.approx(shape, rel=0.03)
    assert found.shape * found.scale == pytest.approx(shape * scale, rel=0.02)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([1.0, -1.0, 2.0], "1 of 3 .* position 1"),
        ([0.0, 1.0], "position 0"),
        ([1.0, float("nan")], "position 1"),
        ([1.0, 1.0], "different losses"),
        ([], "got 0"),
    ],
)
def test_losses_that_cannot_be_fitted_say_why(losses: list[float], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        gamma.fit_gamma(losses)


def test_negative_differences_and_scales_are_errors() -> None:
    with pytest.raises(ScoreError, match="at least 0"):
        gamma.within(-0.1)
    with pytest.raises(ScoreError, match="scale 0"):
        gamma.lower_share(0.1, scale=0)


def test_command_prints_both_tables_as_json_and_fits_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "losses.npy", np.random.default_rng(0).gamma(4, 0.0666, 5000))
    result = CliRunner().invoke(app, ["gamma-tables", "--json", "--fit", str(tmp_path / "losses.npy")])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [round(value, 3) for value in printed["table1"]] == PRINTED_1
    assert [round(value, 2) for value in printed["table2"]] == PRINTED_2
    assert printed["fit"]["shape"] == pytest.approx(4, rel=0.1)
    plain = CliRunner().invoke(app, ["gamma-tables"])
    assert "0.094" in plain.stdout
    assert "0.18" in plain.stdout


def test_command_refuses_files_that_are_no_losses(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("not an array")
    for name in ("text.npy", "absent.npy"):
        result = CliRunner().invoke(app, ["gamma-tables", "--fit", str(tmp_path / name)])
        assert result.exit_code != 0
        assert name in str(result.exception)
