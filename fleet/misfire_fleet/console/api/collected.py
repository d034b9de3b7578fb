"""Serves what people collect: pins, selections and saved views, and the map of embeddings.

POST /api/pins                         pins samples, or takes pins away
GET  /api/selections                   POST /api/selections/NAME   adds and removes samples
POST /api/selections/NAME/snapshot     makes a snapshot of it     DELETE /api/selections/NAME
GET  /api/views                        PUT, DELETE /api/views/NAME
GET  /api/map                          places in a plane, as arrays
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.console.access.callers import Caller, requires
from misfire_fleet.console.filters import MAX_PAGE, GalleryQuery, gallery_query
from misfire_fleet.console.shared import Shared
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import GroupBy, Shares
from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.gallery.collected import MAX_QUERY, MAX_SAMPLES
from misfire_fleet.gallery.plane import plane_of
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.errors import ConfigError

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, InPath(min_length=1, max_length=40)]
Viewer = Annotated[Caller, Depends(requires("viewer"))]
Labeller = Annotated[Caller, Depends(requires("labeller"))]
Operator = Annotated[Caller, Depends(requires("operator"))]
_ARRAYS = (
    *(("seq", "<f8"), ("x", "<u2"), ("y", "<u2")),
    *(("verdict", "u1"), ("level", "u1"), ("loss", "u1"), ("random", "u1")),
)
"""Of the map: JavaScript has no 64-bit integers that compare with numbers, but a float64 holds any `seq`."""


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PinsIn(_In):
    """Samples to pin, or to take the pin of."""

    samples: Annotated[list[Id], Field(min_length=1, max_length=MAX_PAGE)]
    pinned: bool


class ChangedJson(BaseModel):
    """Lists the samples that changed."""

    changed: list[str]


class SelectionIn(_In):
    """Samples to add to a selection and to remove; `seqs` adds samples by the number that the map has."""

    add: Annotated[list[Id], Field(max_length=MAX_PAGE)] = []
    remove: Annotated[list[Id], Field(max_length=MAX_PAGE)] = []
    seqs: Annotated[list[Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=MAX_SAMPLES)] = []


class SelectionJson(BaseModel):
    """Describes a selection. changed: samples that the request added or removed."""

    name: str
    count: int
    owner: str = ""
    created_at: float = 0.0
    changed: int = 0


class SnapshotIn(_In):
    """How a snapshot of a selection is divided. `name`: never used before."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    group_by: GroupBy = "drive"
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    frozen: bool = False


class SnapshotMade(BaseModel):
    """Describes a new snapshot. left_out: samples of the selection without a label."""

    name: str
    sha256: str
    samples: int
    left_out: int
    warnings: list[str]


class ViewIn(_In):
    """A gallery's address after the `?`, and whether everybody sees the view."""

    query: Annotated[str, Field(max_length=MAX_QUERY)]
    shared: bool = False


class ViewJson(BaseModel):
    """Describes a saved view."""

    owner: str
    name: str
    query: str
    shared: bool
    created_at: float


def collected_api(shared: Shared) -> APIRouter:
    """Returns the routes for pins, selections, views and the map."""
    router = APIRouter(prefix="/api")
    for part in (_selections, _views_and_pins, _map):
        router.include_router(part(shared))
    return router


def _selections(shared: Shared) -> APIRouter:
    router, kept = APIRouter(), shared.collected

    @router.get("/selections")
    def selections(_caller: Viewer) -> list[SelectionJson]:
        """Lists all selections, the newest first."""
        return [SelectionJson(**asdict(each)) for each in kept.selections()]

    @router.post("/selections/{name}")
    def select(name: Name, body: SelectionIn, caller: Labeller) -> SelectionJson:
        """Adds samples to a selection, which is made if it is new, and removes others."""
        ids = [*body.add, *kept.ids_of(body.seqs)]
        try:
            changed = kept.add(name, ids, actor=caller.name) if ids or not body.remove else 0
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        changed += kept.remove(name, body.remove) if body.remove else 0
        return SelectionJson(name=name, count=len(kept.selection_ids(name)), changed=changed)

    @router.delete("/selections/{name}", status_code=204)
    def drop(name: Name, _caller: Labeller) -> None:
        """Removes a selection; its samples stay."""
        if not kept.drop(name):
            raise HTTPException(404, f"there is no selection {name[:40]!r}")

    @router.post("/selections/{name}/snapshot", status_code=201)
    def snapshot(name: Name, body: SnapshotIn, caller: Operator) -> SnapshotMade:
        """Makes a snapshot of the labelled samples of a selection. A snapshot never changes."""
        ids = tuple(kept.selection_ids(name))
        if not ids:
            raise HTTPException(404, f"there is no selection {name[:40]!r} with samples")
        try:
            plan = Plan(
                group_by=body.group_by,
                seed=body.seed,
                shares=Shares(holdout=body.holdout, test=body.test),
                frozen=body.frozen,
            )
            made = Snapshots(shared.store).create(
                body.name, SampleFilter(ids=ids), plan=plan, actor=caller.name
            )
        except StoreUnavailableError:
            raise
        except (ConfigError, StoreError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        count = len(made.manifest.members)
        return SnapshotMade(
            name=body.name,
            sha256=made.sha256,
            samples=count,
            left_out=len(ids) - count,
            warnings=list(made.warnings),
        )

    return router


def _views_and_pins(shared: Shared) -> APIRouter:
    router, kept = APIRouter(), shared.collected

    @router.post("/pins")
    def pins(body: PinsIn, caller: Labeller) -> ChangedJson:
        """Pins samples, or takes their pins away."""
        changed = kept.pin(body.samples, actor=caller.name) if body.pinned else kept.unpin(body.samples)
        return ChangedJson(changed=changed)

    @router.get("/views")
    def views(caller: Viewer) -> list[ViewJson]:
        """Lists the views of the caller and the shared ones."""
        return [ViewJson(**asdict(each)) for each in kept.views(caller.name)]

    @router.put("/views/{name}", status_code=204)
    def save(name: Name, body: ViewIn, caller: Viewer) -> None:
        """Saves a view under a name, in place of the caller's view of that name."""
        if body.shared and not caller.may("labeller"):
            raise HTTPException(403, "a shared view needs the role 'labeller'")
        try:
            kept.save_view(name, body.query, owner=caller.name, shared=body.shared)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error

    @router.delete("/views/{name}", status_code=204)
    def forget(name: Name, caller: Viewer) -> None:
        """Deletes the caller's view; an operator also deletes shared ones."""
        if not kept.drop_view(name, owner=caller.name, any_owner=caller.may("operator")):
            raise HTTPException(404, f"you have no view {name[:40]!r}")

    return router


def _map(shared: Shared) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/map", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}}
    )
    def plane(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> Response:
        """Returns places of embeddings: bytes of a header (uint32), JSON, then the arrays that it names."""
        try:
            found = plane_of(shared.gallery, query.question)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        arrays = [np.asarray(getattr(found, name)).astype(kind).tobytes() for name, kind in _ARRAYS]
        head: dict[str, Any] = {
            "count": len(found.seq),
            "bundle": found.bundle,
            "matching": found.matching,
            "compared": found.compared,
            "explained": found.explained,
            "arrays": [list(each) for each in _ARRAYS],
        }
        text = json.dumps(head).encode()
        # Typed arrays of JavaScript start at multiples of their size.
        text += b" " * (-(4 + len(text)) % 8)
        return Response(
            len(text).to_bytes(4, "little") + text + b"".join(arrays), media_type="application/octet-stream"
        )

    return router
