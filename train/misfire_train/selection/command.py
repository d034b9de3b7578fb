"""`misfire select`: choose what to label next from files, write the ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from misfire_train.errors import SelectionError
from misfire_train.selection.choosing import METHODS
from misfire_train.selection.choosing import select as choose
from misfire_train.selection.files import read_column, read_matrix, write_chosen

_SOURCE = "FILE.npy or FILE.parquet[:COLUMN]"


def select(
    *,
    k: int = typer.Option(..., "--budget", "-k", help="How many to choose."),
    out: str = typer.Option(..., help="Where the chosen rows go: .csv or .json."),
    method: str = typer.Option("k-center", help="One of: " + ", ".join(METHODS)),
    embeddings: str | None = typer.Option(None, help=f"Table [N,D]: {_SOURCE}; column 'embedding'."),
    scores: str | None = typer.Option(None, help=f"[N]: {_SOURCE}; column 'score'."),
    probabilities: str | None = typer.Option(None, help=f"[N,K], for badge: {_SOURCE}."),
    ids: str | None = typer.Option(None, help=f"[N] names: {_SOURCE}; column 'id'."),
    labelled: str | None = typer.Option(
        None, help="Labelled already: rows [M], ids [M], or embeddings [M,D] of frames elsewhere."
    ),
    balance: str | None = typer.Option(None, help="[N] class or group, for equal shares; column 'group'."),
    seed: int = typer.Option(0, help="Same seed, same choice."),
    power: float = typer.Option(1.0, help="score-diversity: 0 is only far apart, large is only high scores."),
    radius: float | None = typer.Option(
        None, help="probcover: radius of a ball; found by purity if not given."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON summary."),
) -> None:
    """Choose what to label next: by score, diversity, density, and fair shares."""
    names = None if ids is None else read_column(ids, column="id").astype(str)
    values = None if embeddings is None else read_matrix(embeddings, column="embedding")
    ranks = None if scores is None else read_column(scores, column="score")
    chosen = choose(
        values,
        method=method,
        k=k,
        scores=ranks,
        probabilities=None if probabilities is None else read_matrix(probabilities, column="probabilities"),
        labelled=None if labelled is None else _labelled(labelled, names),
        balance=None if balance is None else read_column(balance, column="group"),
        ids=None if names is None else names.tolist(),
        seed=seed,
        power=power,
        radius=radius,
    )
    if names is not None and len(np.unique(names[chosen])) < len(chosen):
        raise SelectionError(f"{ids}: ids are not unique: two chosen rows share one")
    write_chosen(Path(out), chosen, ids=names, scores=ranks)
    if as_json:
        typer.echo(json.dumps({"method": method, "seed": seed, "chosen": len(chosen), "out": out}))
    else:
        typer.echo(f"chose {len(chosen)} by {method}: {out}")


def _labelled(source: str, names: NDArray[Any] | None) -> NDArray[Any]:
    values = read_column(source, column="labelled")
    if values.ndim != 1 or np.issubdtype(values.dtype, np.integer):
        return values
    if not np.issubdtype(values.dtype, np.str_):
        raise SelectionError(f"{source}: labelled must hold rows (integers), ids (text), or embeddings [M,D]")
    if names is None:
        raise SelectionError(f"{source}: holds ids, so --ids of the pool are needed")
    places = {str(name): row for row, name in enumerate(names)}
    unknown = [str(value) for value in values if str(value) not in places]
    if unknown:
        raise SelectionError(
            f"{source}: labelled id {unknown[0]!r} is not in the pool ({len(unknown)} unknown)"
        )
    return np.array([places[str(value)] for value in values], np.int64)
