"""Defines the manifest of a snapshot: a JSON file with a line for each sample, and the hash of its bytes.

The same manifest is always the same bytes: keys are sorted, samples are in the order of their ids, and
nothing in it depends on the machine. The database, and the ledger beside the blobs, have the SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_fleet.datasets.splits import SIDES, GroupBy, Side
from misfire_fleet.errors import StoreError
from misfire_runtime.toml import explain

FORMAT = "misfire-snapshot/1"
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_SEPARATORS = (",", ":")


# A snapshot may have a hundred thousand of these: a model of pydantic takes several times as long to make.
@dataclass(frozen=True, slots=True)
class Member:
    """A sample of a snapshot: its side and group, and which label record it has. Checked when it is read."""

    id: _Id
    side: Side
    group: Annotated[str, Field(max_length=300)]
    label: _Id
    """Hash of the label's content."""
    source: Annotated[str, Field(max_length=64)]
    annotator: Annotated[str, Field(max_length=200)]
    version: Annotated[int, Field(ge=1)]


_FIELDS = tuple(each.name for each in fields(Member))


class SnapshotRef(BaseModel):
    """Names a snapshot by its name and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: _Id


class Query(BaseModel):
    """Everything that decides which samples a snapshot has, and on which sides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: tuple[str, ...]
    kind: str
    """Kind of its labels; empty: the labels had one kind, and no other."""
    labels_up_to: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Labels that were recorded later are ignored, seconds since 1970."""
    group_by: GroupBy
    seed: int
    holdout: float
    test: float
    test_from: SnapshotRef | None = None
    frozen_tests: tuple[SnapshotRef, ...] = ()


class Provenance(BaseModel):
    """Where and when a snapshot was made. `created`: ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    actor: str
    misfire: str
    schema_version: str


@dataclass(frozen=True)
class Manifest:
    """Holds a snapshot. `classes`: the number of samples by side and class that their labels name."""

    name: str
    query: Query
    provenance: Provenance
    frozen: bool
    kind: str
    left_out: int
    """Samples that match, and belong to a frozen test set that this snapshot does not have."""
    classes: dict[str, dict[str, int]]
    members: tuple[Member, ...]

    def counts(self) -> dict[str, int]:
        """Returns the number of samples by side."""
        found = Counter(member.side for member in self.members)
        return {side: found[side] for side in SIDES}

    def groups(self) -> dict[str, int]:
        """Returns the number of groups by side."""
        pairs = {(member.side, member.group) for member in self.members}
        return {side: sum(1 for of, _ in pairs if of == side) for side in SIDES}

    def header(self) -> dict[str, Any]:
        """Returns all but the samples."""
        return {
            "format": FORMAT,
            "name": self.name,
            "query": self.query.model_dump(mode="json"),
            "provenance": self.provenance.model_dump(mode="json"),
            "frozen": self.frozen,
            "kind": self.kind,
            "samples": len(self.members),
            "sides": self.counts(),
            "groups": self.groups(),
            "left_out": self.left_out,
            "classes": self.classes,
        }

    def to_bytes(self) -> bytes:
        """Returns the file: the header on the first line, and then a line for each sample."""
        lines = ['{"snapshot":' + _text(self.header()) + ',"members":[']
        encode = json.JSONEncoder(sort_keys=True, separators=_SEPARATORS, ensure_ascii=False).encode
        written = [encode({name: getattr(each, name) for name in _FIELDS}) for each in self.members]
        if written:
            lines += [f"{line}," for line in written[:-1]] + written[-1:]
        return "\n".join([*lines, "]}", ""]).encode()


def digest(data: bytes) -> str:
    """Returns the SHA-256 of a manifest's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["misfire-snapshot/1"]
    name: str
    query: Query
    provenance: Provenance
    frozen: bool
    kind: str
    left_out: int
    classes: dict[str, dict[str, int]]


class _File(BaseModel):
    snapshot: _Header
    members: tuple[Member, ...]


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Returns the manifest in a file whose hash was checked. Raises StoreError if it is none."""
    try:
        found = _File.model_validate_json(data)
    except ValidationError as error:
        problem = explain(error, most=1, show_input=False)[:300]
        raise StoreError(f"{where}: not a snapshot of this version: {problem}") from error
    header = found.snapshot
    return Manifest(
        name=header.name,
        query=header.query,
        provenance=header.provenance,
        frozen=header.frozen,
        kind=header.kind,
        left_out=header.left_out,
        classes=header.classes,
        members=found.members,
    )


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=_SEPARATORS, ensure_ascii=False)
