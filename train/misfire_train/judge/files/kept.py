"""Keeps the scores of each condition as they come, so that an interrupted evaluation goes on where it was.

Column --put--> FOLDER/CONDITION.npz with the key of what was judged --get--> Column, or None for another key

The key is a hash of content: weights, data, the frames' selection, corruptions, scores and what a failure is.
A file of another key is written over.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misfire_runtime import __version__
from misfire_runtime.files import write_durably
from misfire_train.judge.columns import Column

_COUNT, _SCORE = "count.", "score."


class KeptColumns:
    """Is a folder of scored conditions.

    Args:
        folder: None keeps nothing.
        facts: everything that decides a score or a loss, in plain JSON values.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps({"misfire": __version__, **facts}, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.skipped: dict[str, str] = {}
        """Scores that could not be computed for the conditions that were read, and why."""

    def get(self, name: str) -> Column | None:
        """Returns a condition that was scored before, None if it was not, or not as it is asked for."""
        if self.folder is None:
            return None
        try:
            with np.load(self._file(name), allow_pickle=False) as file:
                values = {each: file[each] for each in file.files}
        # A file that was cut off is scored again.
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        if str(values.get("key")) != self.key:
            return None
        answers = values.get("answers")
        self.skipped |= json.loads(str(values["skipped"]))
        return Column(
            scores={each.removeprefix(_SCORE): v for each, v in values.items() if each.startswith(_SCORE)},
            loss=values["loss"],
            failed=values.get("failed"),
            counts={each.removeprefix(_COUNT): v for each, v in values.items() if each.startswith(_COUNT)},
            answers=None if answers is None else torch.from_numpy(answers),
        )

    def put(self, name: str, column: Column, *, skipped: Mapping[str, str] | None = None) -> None:
        """Keeps a condition, and why scores are missing in it. Raises OSError."""
        if self.folder is None:
            return
        values: dict[str, Any] = {"key": np.array(self.key), "loss": column.loss}
        values["skipped"] = np.array(json.dumps(dict(skipped or {})))
        values |= {f"{_SCORE}{each}": scores for each, scores in column.scores.items()}
        values |= {f"{_COUNT}{each}": counts for each, counts in column.counts.items()}
        if column.failed is not None:
            values["failed"] = column.failed
        if column.answers is not None:
            values["answers"] = column.answers.numpy()
        stream = io.BytesIO()
        np.savez(stream, **values)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._file(name), stream.getvalue())

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.npz"
