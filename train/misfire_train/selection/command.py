"""Implements `misfire select`: chooses what to label next from files and writes the ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_train.errors import SelectionError
from misfire_train.options import AsJson, SelectionMethod

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SOURCE = "FILE.npy or FILE.parquet[:COLUMN]"


def select(
    *,
    k: Annotated[int, typer.Option("--budget", "-k", help="Choose this many.")],
    out: Annotated[str, typer.Option(help="Write the chosen rows to this file: .csv or .json.")],
    method: Annotated[SelectionMethod, typer.Option(help="Choose by this method.")] = "k-center",
    embeddings: Annotated[
        str | None,
        typer.Option(help=f"Read embeddings [N,D] from {_SOURCE}. Default of COLUMN: embedding."),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            help=f"Read scores [N] from {_SOURCE}. Default of COLUMN: score. Of a table by misfire evaluate "
            "--scores-out: the clean frames and their ids; default: the score that it triggers on."
        ),
    ] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(
            help=f"Read probabilities [N,K], for badge, from {_SOURCE}. Default of COLUMN: probabilities."
        ),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help=f"Read names [N] from {_SOURCE}. Default of COLUMN: id.")
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Read what is labelled already: rows [M], ids [M], or embeddings [M,D] of other frames."
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            help=f"Choose equal shares of the classes or groups [N] in {_SOURCE}. Default of COLUMN: group."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    power: Annotated[
        float,
        typer.Option(help="Weigh scores in score-diversity: 0 is distance only, large is scores only."),
    ] = 1.0,
    radius: Annotated[
        float | None, typer.Option(help="Radius of a ball in probcover. Default: found by purity.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose what to label next: by score, diversity, density, and fair shares."""
    import numpy as np

    from misfire_train.selection.choosing import select as choose
    from misfire_train.selection.files import read_column, read_matrix, write_chosen
    from misfire_train.selection.judged import read_judged

    names = None if ids is None else read_column(ids, column="id").astype(str)
    values = None if embeddings is None else read_matrix(embeddings, column="embedding")
    judged = None if scores is None else read_judged(scores)
    ranks: NDArray[Any] | None = None
    if judged is not None:
        names, ranks = judged.ids if names is None else names, judged.scores
    elif scores is not None:
        ranks = read_column(scores, column="score")
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
    # Only the ids are written; two equal ones could not be told apart afterwards.
    if names is not None and len(np.unique(names[chosen])) < len(chosen):
        raise SelectionError(f"{ids}: ids are not unique: two chosen rows share one")
    write_chosen(Path(out), chosen, ids=names, scores=ranks)
    if as_json:
        typer.echo(json.dumps({"method": method, "seed": seed, "chosen": len(chosen), "out": out}))
    else:
        typer.echo(f"chose {len(chosen)} by {method}: {out}")


def _labelled(source: str, names: NDArray[Any] | None) -> NDArray[Any]:
    import numpy as np

    from misfire_train.selection.files import read_column

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
