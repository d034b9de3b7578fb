"""Reads a pool from a table of scores that `misfire evaluate --scores-out` or `misfire fleet scores` wrote.

FILE.parquet[:SCORE] --clean rows--> ids [N], scores [N]

A corrupted copy is no frame that anybody could label: only rows of the shift "clean" are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.errors import SelectionError
from misfire_train.judge.evidence import CLEAN
from misfire_train.judge.files.score_table import read_facts
from misfire_train.selection.files import read_column, split_source


@dataclass(frozen=True)
class JudgedPool:
    """Holds the clean frames of a table. ids: [N]. scores: [N]."""

    ids: NDArray[Any]
    scores: NDArray[np.float64]


def read_judged(source: str) -> JudgedPool | None:
    """Returns the pool of a table that the project wrote; None if it is another file.

    Args:
        source: FILE.parquet, for the score that the table triggers on, or FILE.parquet:SCORE.

    Raises:
        SelectionError: no such score, one without a value, or none is named and the table triggers on none.
    """
    path, column = split_source(source, "")
    facts = read_facts(path)
    if path.suffix != ".parquet" or not facts.written:
        return None
    name = column or facts.trigger
    if not name:
        raise SelectionError(f"{source}: name the score to choose by: {path}:SCORE")
    clean = read_column(f"{path}:shift", column="shift") == CLEAN
    scores = np.asarray(read_column(f"{path}:{name}", column=name), np.float64)
    return JudgedPool(read_column(f"{path}:id", column="id").astype(str)[clean], scores[clean])
