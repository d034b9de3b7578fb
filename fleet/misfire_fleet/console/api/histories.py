"""Serves a vehicle and its history, and the drift of a bundle: /api/vehicles/{name}[/history], /api/drift."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from misfire_fleet.console.api.fleet import FleetVehicleJson, vehicle_json
from misfire_fleet.console.board.board import Board
from misfire_fleet.console.board.calibration import Reference
from misfire_fleet.console.board.drift import Drift, Group, read_drift
from misfire_fleet.console.board.history import MAX_DAYS, read_history
from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.shared import Shared
from misfire_fleet.truth.bins import MIN_FRAMES, PSI_DRIFT, PSI_WATCH
from misfire_fleet.truth.rollups import behind
from misfire_fleet.truth.stream import PREFERRED

Days = Annotated[int, Query(ge=1, le=MAX_DAYS)]


class BandsJson(BaseModel):
    """Holds quantiles of a score over time; null where there was no frame."""

    p50: list[float | None]
    p90: list[float | None]
    p99: list[float | None]
    frames: list[float]


class UploadsJson(BaseModel):
    """Counts uploads by step."""

    at: list[int]
    count: list[int]
    random: list[int]


class HealthJson(BaseModel):
    """Holds what heartbeats say; `dropped` counts since the heartbeat before."""

    at: list[float]
    pending: list[int]
    dropped: list[int]
    degradation: list[int]


class HistoryJson(BaseModel):
    """Holds a vehicle's last days. `at`: begin of each step, seconds since 1970."""

    score: str
    scores: list[str]
    step_s: int
    at: list[int]
    vehicle: BandsJson
    fleet: BandsJson
    """All vehicles with the bundles that this one ran."""
    uploads: UploadsJson
    health: HealthJson
    behind: int
    """Heartbeats and samples that are not yet in the score histories."""


class ReferenceJson(BaseModel):
    """Describes the expected distribution: from the bundle's calibration, or from its first days."""

    source: str
    p50: float
    p90: float
    p99: float
    ends_at: int | None


class GroupJson(BaseModel):
    """Describes the last frames of a group."""

    name: str
    frames: float
    p50: float
    p90: float
    p99: float
    psi: float | None
    verdict: str
    """ok, watch, drift, few frames, or no reference."""
    p90_over_time: list[float | None]
    """At the times of the answer; empty for groups that are not among the farthest."""


class DriftJson(BaseModel):
    """Describes a bundle's score over time and by group, against what it should look like."""

    bundle: str
    score: str
    by: str
    days: int
    step_s: int
    at: list[int]
    all: BandsJson
    stream: BandsJson
    reference: ReferenceJson | None
    whole: GroupJson | None
    groups: list[GroupJson]
    source: str
    """What groups are of: all frames, or the random stream."""
    window_s: int
    psi_watch: float = PSI_WATCH
    psi_drift: float = PSI_DRIFT
    min_frames: int = MIN_FRAMES
    bundles: list[str]
    scores: list[str]
    slicings: list[str]
    behind: int


def histories_api(shared: Shared) -> APIRouter:
    """Returns the routes."""
    routes, board = APIRouter(), shared.board

    @routes.get("/api/vehicles/{name}")
    def vehicle(name: str) -> FleetVehicleJson:
        """Describes one vehicle, as /api/fleet does."""
        return vehicle_json(board, _known(board, name))

    @routes.get("/api/vehicles/{name}/history")
    def history(name: str, score: Text = "", days: Days = 7) -> HistoryJson:
        """Returns a vehicle's scores against the fleet's, its uploads and its health, over time."""
        board.rolling.ask()
        found = read_history(
            shared.store,
            _known(board, name),
            score=readable("score", score) or None,
            scores=scores_of(board),
            days=days,
        )
        return HistoryJson(**asdict(found), behind=behind(shared.store))

    @routes.get("/api/drift")
    def drift(bundle: Text = "", score: Text = "", by: Text = "", days: Days = 7) -> DriftJson:
        """Returns a bundle's scores over time and by group; by default of the first bundle and score."""
        board.rolling.ask()
        return drift_json(shared, drift_of(shared, bundle=bundle, score=score, by=by, days=days))

    return routes


def scores_of(board: Board) -> list[str]:
    """Returns the names of all scores, the one to use first."""
    _, scores, _ = board.choices()
    return sorted(scores, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else 99, name))


def drift_of(shared: Shared, *, bundle: str, score: str, by: str, days: int) -> Drift:
    """Returns the drift that is asked for. Raises HTTPException 422 if a text is not readable."""
    for field, text in (("bundle", bundle), ("score", score), ("by", by)):
        readable(field, text)
    bundles, _, _ = shared.board.choices()
    scores = scores_of(shared.board)
    return read_drift(
        shared.store,
        shared.board.calibrations,
        bundle=bundle or (bundles[-1] if bundles else ""),
        score=score or (scores[0] if scores else ""),
        by=by,
        days=days,
    )


def drift_json(shared: Shared, found: Drift) -> DriftJson:
    """Returns the answer of /api/drift."""
    bundles, _, slicings = shared.board.choices()
    return DriftJson(
        **{name: getattr(found, name) for name in ("bundle", "score", "by", "days", "step_s", "at")},
        all=BandsJson(**asdict(found.all)),
        stream=BandsJson(**asdict(found.stream)),
        reference=_reference(found.reference),
        whole=None if found.whole is None else _group(found.whole),
        groups=[_group(each) for each in found.groups],
        source=found.source,
        window_s=found.window_s,
        bundles=bundles,
        scores=scores_of(shared.board),
        slicings=slicings,
        behind=behind(shared.store),
    )


def _known(board: Board, name: str) -> str:
    readable("name", name)
    if all(row.name != name for row in board.rows()):
        raise HTTPException(404, f"vehicle {name[:64]!r} is not known")
    return name


def _reference(found: Reference | None) -> ReferenceJson | None:
    if found is None:
        return None
    p50, p90, p99 = found.quantiles
    return ReferenceJson(source=found.source, p50=p50, p90=p90, p99=p99, ends_at=found.ends_at)


def _group(group: Group) -> GroupJson:
    values: dict[str, Any] = dict(zip(("p50", "p90", "p99"), group.quantiles, strict=True))
    return GroupJson(
        name=group.name,
        frames=group.frames,
        psi=group.psi,
        verdict=group.verdict,
        p90_over_time=list(group.p90),
        **values,
    )
