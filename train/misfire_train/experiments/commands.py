"""`misfire experiment`: published numbers, computed again on real data, as text or JSON.

gamma-tables       LearningLoss++ Tables 1 and 2 in closed form, and a gamma fit to any losses
wrong-prediction   Aljundi et al. Table 1 on balanced MNIST, beside the free scores that it omits
loss-ranking       which objective ranks losses best, clean and shifted
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import typer

from misfire_runtime.errors import ConfigError
from misfire_train import gamma

app = typer.Typer(help="Reproduce published numbers.", no_args_is_help=True, rich_markup_mode=None)

JSON = typer.Option(False, "--json", help="Print one JSON object.")


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=1))


@app.command("gamma-tables")
def gamma_tables(
    fit: Path | None = typer.Option(None, help="A .npy file of losses to fit k and Theta to."),  # noqa: B008
    as_json: bool = JSON,
) -> None:
    """Tables 1 and 2 of LearningLoss++ from the closed forms, k = 4 and Theta = 0.0666."""
    result: dict[str, Any] = {
        "shape": gamma.SHAPE,
        "scale": gamma.SCALE,
        "delta1": list(gamma.TABLE_1_DELTAS),
        "table1": gamma.table_1(),
        "delta2": list(gamma.TABLE_2_DELTAS),
        "table2": gamma.table_2(),
    }
    if fit is not None:
        result["fit"] = asdict(gamma.fit_gamma(load_losses(fit)))
    if as_json:
        _print_json(result)
        return
    typer.echo(f"Gamma(k = {gamma.SHAPE}, Theta = {gamma.SCALE}), closed forms")
    typer.echo("Table 1  delta: " + "  ".join(f"{delta:<6}" for delta in result["delta1"]))
    typer.echo("  P(|l_i-l_j|<=d) " + "  ".join(f"{value:<6.3f}" for value in result["table1"]))
    typer.echo("Table 2  delta: " + "  ".join(f"{delta:<6}" for delta in result["delta2"]))
    typer.echo("  E p_i           " + "  ".join(f"{value:<6.2f}" for value in result["table2"]))
    if fit is not None:
        found = result["fit"]
        typer.echo(f"fit to {found['count']} losses: k = {found['shape']:.4f}, Theta = {found['scale']:.6f}")


def load_losses(path: Path) -> np.ndarray[Any, Any]:
    """The array in a .npy file. Raises ConfigError where it is missing or no array of numbers."""
    try:
        losses = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: not a .npy file of numbers ({error})") from error
    if not isinstance(losses, np.ndarray) or losses.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: expected one array of numbers (np.save)")
    return losses
