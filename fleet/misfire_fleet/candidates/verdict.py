"""Holds what the gate found: checks with a sentence each, the numbers behind them, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from misfire_train.metrics import Estimate

Status = Literal["passed", "failed", "unknown"]


@dataclass(frozen=True)
class Contender:
    """Names one of both bundles. `sha256`: of its archive; `score`: the one that it triggers on."""

    label: str
    sha256: str
    task: str
    score: str
    graph_bytes: int
    archive_bytes: int


@dataclass(frozen=True)
class Measure:
    """Holds a number of both bundles. `difference`: candidate minus incumbent, paired; None if undefined.

    `higher`: whether a higher value is better; None if neither is.
    """

    name: str
    candidate: float | None
    incumbent: float | None
    difference: Estimate | None = None
    higher: bool | None = True
    unit: str = ""


@dataclass(frozen=True)
class Check:
    """Holds one question that the gate asks.

    Attributes:
        name: what is asked about.
        status: `unknown` if the frames do not tell.
        sentence: the answer, with its numbers.
        needed: a candidate passes only if this check does; of others, only `failed` counts.
        measures: the numbers behind it.
    """

    name: str
    status: Status
    sentence: str
    needed: bool = False
    measures: tuple[Measure, ...] = ()

    @property
    def blocks(self) -> bool:
        """Returns whether the candidate does not pass because of this check."""
        return self.status == "failed" or (self.needed and self.status == "unknown")


@dataclass(frozen=True)
class Verdict:
    """Holds the gate's answer about a candidate.

    Attributes:
        candidate, incumbent: the bundles.
        snapshot, snapshot_sha256: whose test side they were judged on.
        frames, groups, failures: how many frames, of how many groups, and how many of them fail
            (candidate, incumbent).
        checks: in the order in which a report shows them.
        notes: what limits the numbers, in sentences.
        detail: slices, calibration, pictures and settings, for the report.
    """

    candidate: Contender
    incumbent: Contender
    snapshot: str
    snapshot_sha256: str
    frames: int
    groups: int
    failures: tuple[int, int]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Returns whether the candidate may be published."""
        return not any(check.blocks for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Returns why it did not pass, one sentence each; empty if it passed."""
        return [f"{check.name}: {check.sentence}" for check in self.checks if check.blocks]

    def summary(self) -> dict[str, Any]:
        """Returns what the store and the audit log keep: the reasons, and the numbers that decided."""
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            "frames": self.frames,
            "groups": self.groups,
            "failures": list(self.failures),
            "checks": [plain(asdict(check)) for check in self.checks],
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that --json prints."""
        return {
            "candidate": asdict(self.candidate),
            "incumbent": asdict(self.incumbent),
            "snapshot": self.snapshot,
            "snapshot_sha256": self.snapshot_sha256,
            **self.summary(),
            "detail": plain({key: value for key, value in self.detail.items() if key != "pictures"}),
        }


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: NaN becomes null, and tuples and dataclasses lists and objects."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else plain(asdict(value))
