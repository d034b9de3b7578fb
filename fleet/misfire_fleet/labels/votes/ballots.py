"""Defines what voters are asked and what they answer, and keeps every answer in a file.

question, picture --Voter.vote--> Ballot --Journal.add, durable--> ballots.jsonl --Journal.ballots--> a rerun

An answer has cost money or time, so it is durable before the next question is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_fleet.labels.content import BoxesLabel
from misfire_runtime.errors import ConfigError, MisfireError

Image = NDArray[np.uint8]
Opinion: TypeAlias = str | BoxesLabel | None
"""A class, boxes, or None of a voter that cannot tell."""


class VoteError(MisfireError):
    """Reports that a voter cannot be asked now, or answers nonsense. Earlier answers are kept."""


@dataclass(frozen=True)
class Picture:
    """Holds a sample's file and its pixels, [H,W,3] RGB."""

    data: bytes
    media_type: str
    image: Image


class Ballot(BaseModel):
    """What one voter said about one sample.

    Attributes:
        sample: id of the sample.
        voter: name of the voter.
        question: `question_of` the classes that it could choose from.
        answer: a class; None if it named none of them, or votes on boxes.
        boxes: of a voter on boxes; None if it cannot tell, or votes on classes.
        seconds: that the answer took.
        tokens_in, tokens_out: that the endpoint counted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    sample: str = Field(pattern=r"^[0-9a-f]{64}$")
    voter: Annotated[str, Field(min_length=1, max_length=200)]
    question: Annotated[str, Field(max_length=64)]
    answer: Annotated[str, Field(max_length=200)] | None = None
    boxes: BoxesLabel | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    tokens_in: Annotated[int, Field(ge=0)] = 0
    tokens_out: Annotated[int, Field(ge=0)] = 0

    @property
    def opinion(self) -> Opinion:
        """Returns what the voter said."""
        return self.answer if self.boxes is None else self.boxes


class Voter(Protocol):
    """Answers which class a picture shows, or which boxes it has, if its `kind` is "boxes"."""

    name: str
    kind: Literal["class", "boxes"]

    def vote(self, picture: Picture, classes: Sequence[str]) -> tuple[Opinion, int, int]:
        """Returns a class or boxes, or None if it cannot tell, and the tokens read and written.

        Raises:
            VoteError: it does not answer.
        """

    def close(self) -> None:
        """Frees what it holds."""


def question_of(classes: Sequence[str], kind: str = "class") -> str:
    """Returns a short hash of the classes: a ballot among other classes answers another question."""
    asked = [*classes] if kind == "class" else [kind, *classes]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


class Journal:
    """Keeps ballots in a file, one JSON object a line. One process may have it open.

    Args:
        file: created if missing.

    Raises:
        ConfigError: the file cannot be read, or a line other than the last is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ballots: dict[tuple[str, str, str], Ballot] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
            good = self._read(lines)
            self._stream = file.open("ab")
            # A line that a kill cut short would damage the next one.
            self._stream.truncate(good)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error

    def _read(self, lines: Sequence[bytes]) -> int:
        good = 0
        for number, line in enumerate(lines, start=1):
            try:
                ballot = Ballot.model_validate_json(line)
            except ValidationError as error:
                if number == len(lines):
                    break
                raise ConfigError(f"{self._file}:{number}: not a ballot; move the file away") from error
            if not line.endswith(b"\n"):
                break
            self._ballots[ballot.sample, ballot.voter, ballot.question] = ballot
            good += len(line)
        return good

    def add(self, ballot: Ballot) -> None:
        """Keeps a ballot durably."""
        self._stream.write(ballot.model_dump_json().encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._ballots[ballot.sample, ballot.voter, ballot.question] = ballot

    def find(self, sample: str, voter: str, question: str) -> Ballot | None:
        """Returns a ballot, or None if the voter was not asked yet."""
        return self._ballots.get((sample, voter, question))

    def samples(self, question: str) -> list[str]:
        """Returns the samples that somebody voted on, sorted."""
        return sorted({sample for sample, _voter, asked in self._ballots if asked == question})

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
