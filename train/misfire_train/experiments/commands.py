"""Implements `misfire experiment`: published numbers, computed again on real data, as text or JSON.

gamma-tables       LearningLoss++ Tables 1 and 2 in closed form, and a gamma fit to any losses
wrong-prediction   Aljundi et al. Table 1 on balanced MNIST, beside the free scores that it omits
loss-ranking       which objective ranks losses best, clean and shifted
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_runtime.errors import ConfigError
from misfire_train.options import AsJson, DataFolder, ExperimentMethod

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(help="Reproduce published numbers.", no_args_is_help=True, rich_markup_mode=None)

OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Write the JSON and the plot to this folder. Default: neither.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of independent repetitions.")]


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=1))


@app.command("gamma-tables")
def gamma_tables(
    fit: Annotated[
        Path | None, typer.Option(help="Fit k and Theta to the losses in this .npy file, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute Tables 1 and 2 of LearningLoss++ from the closed forms, k = 4 and Theta = 0.0666."""
    from misfire_train import gamma

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


@app.command("wrong-prediction")
def run_wrong_prediction(
    *,
    dataset: Annotated[str, typer.Option(help="Select from this classification data set.")] = "mnist",
    data: DataFolder = None,
    seeds: Seeds = 10,
    steps: Annotated[int, typer.Option(min=1, help="Number of selections, of 50 samples each.")] = 10,
    method: Annotated[
        list[ExperimentMethod] | None,
        typer.Option(help="Run only this method; repeat it for several. Default: all."),
    ] = None,
    pool: Annotated[
        int, typer.Option(min=1, help="Select from this many samples, balanced over classes.")
    ] = 20_000,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Measure the share of wrong predictions in what each score selects (Aljundi et al. Table 1).

    A result in --out of the same protocol, seeds and versions is continued: its methods are not run again.
    """
    from misfire_train.data import load_dataset
    from misfire_train.experiments import plots, wrong_prediction
    from misfire_train.experiments.record import provenance, read_json, same_setting, write_json

    protocol = wrong_prediction.Protocol(seeds=seeds, steps=steps, pool=pool)
    record = provenance(_command_line(), seeds=range(seeds), dataset=dataset)
    path = None if out is None else out / "wrong_prediction.json"
    earlier = {} if path is None else read_json(path)
    known = earlier.get("methods") if same_setting(earlier, record, asdict(protocol)) else None

    def keep(found: dict[str, Any]) -> None:
        if path is not None:
            write_json({**record, **found}, path)

    found = wrong_prediction.run(
        load_dataset(dataset, root=data),
        protocol=protocol,
        methods=[each.value for each in method or ExperimentMethod],
        done=known,
        progress=lambda line: typer.echo(line, err=True),
        finished=keep,
    )
    result = {**record, **found}
    # Written once more for a result whose methods were all known, which `finished` never saw.
    keep(found)
    if path is not None:
        plots.plot_wrong_prediction(result, path.with_suffix(".png"))
    if as_json:
        _print_json(result)
        return
    typer.echo("% wrong among the selected, mean (standard deviation over seeds)")
    for name, row in result["methods"].items():
        shown = [f"{row['wrong_mean'][i]:5.1f} ({row['wrong_std'][i]:4.1f})" for i in (0, 4, 9) if i < steps]
        typer.echo(f"{name:<24} {'  '.join(shown)}   accuracy at the end {row['accuracy_mean'][-1]:.1f}")
    for name, passed in result["gate"].items():
        typer.echo(f"{name:<40} {'yes' if passed else 'NO'}")


@app.command("loss-ranking")
def run_loss_ranking(
    *,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Rank on this data set; repeat it for several. Default: fashion-mnist and traffic-lights."
        ),
    ] = None,
    data: DataFolder = None,
    seeds: Seeds = 5,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare four objectives by Spearman, pair accuracy, AURC and weight norm, clean and shifted.

    A result in --out of the same protocol keeps the data sets that this call does not name.
    """
    from misfire_train.data import load_dataset
    from misfire_train.experiments import loss_ranking
    from misfire_train.experiments.record import provenance, read_json, write_json

    protocol = loss_ranking.Protocol(seeds=seeds)
    names = dataset or ["fashion-mnist", "traffic-lights"]
    record = provenance(_command_line(), seeds=range(seeds), dataset=", ".join(names))
    path = None if out is None else out / "loss_ranking.json"
    earlier = {} if path is None else read_json(path).get("datasets", {})
    # Results of another protocol are not comparable.
    kept = {
        name: row for name, row in earlier.items() if row.get("setting") == loss_ranking.setting(protocol)
    }
    result: dict[str, Any] = {**record, "datasets": kept}
    for name in names:
        result["datasets"][name] = loss_ranking.run(
            load_dataset(name, root=data), protocol=protocol, progress=lambda line: typer.echo(line, err=True)
        )
        if path is not None:
            write_json(result, path)
    if as_json:
        _print_json(result)
        return
    for name, found in result["datasets"].items():
        typer.echo(f"{name}: mean over {seeds} seeds (standard deviation)")
        for line in loss_ranking.table_lines(found["table"]):
            typer.echo("  " + line)


def _command_line() -> str:
    """Returns the command as typed, without the folder of the program."""
    return " ".join(["misfire", *sys.argv[1:]])


def load_losses(path: Path) -> np.ndarray[Any, Any]:
    """Returns the array in a .npy file. Raises ConfigError if it is missing or no array of numbers."""
    import numpy as np

    try:
        losses = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: not a .npy file of numbers ({error})") from error
    if not isinstance(losses, np.ndarray) or losses.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: expected one array of numbers (np.save)")
    return losses
