"""Shows snapshots and selections: sides, counts, labels, what came of them, and how two snapshots differ."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.shared import Shared
from misfire_fleet.datasets.lineage import trace
from misfire_fleet.datasets.snapshots import Difference, Snapshots
from misfire_fleet.datasets.splits import GROUPINGS, SIDES
from misfire_fleet.errors import StoreError
from misfire_fleet.store.curated.snapshots import SnapshotRow

_LISTED_S = 3.0
"""Seconds that the list is reused: counting deleted samples reads the members of all snapshots."""
_SHOWN = 60
_CLASSES = 60


def router(shared: Shared) -> APIRouter:
    """Returns /datasets, with one snapshot if it is named, and its difference to another one."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    snapshots = Snapshots(shared.store)
    listed = Recent(snapshots.listed, max_age_s=_LISTED_S)

    @routes.get("/datasets")
    def datasets(name: Text = "", against: Annotated[str, Query(max_length=130)] = "") -> Response:
        rows = list(reversed(listed()))
        # A snapshot that was just made is not in a list that is reused.
        if name and all(row.name != readable("name", name) for row in rows):
            rows = list(reversed(snapshots.listed()))
        shown: dict[str, Any] = {"row": None, "problem": "", "difference": None}
        if name:
            shown |= _one(shared, snapshots, rows, readable("name", name), readable("against", against))
        return shared.render.page(
            "datasets.html",
            rows=rows,
            against=against,
            sides=SIDES,
            groupings=GROUPINGS,
            selections=shared.collected.selections(),
            **shown,
        )

    return routes


def _one(
    shared: Shared, snapshots: Snapshots, rows: list[SnapshotRow], name: str, against: str
) -> dict[str, Any]:
    row = next((each for each in rows if each.name == name), None)
    if row is None:
        raise HTTPException(404, f"there is no snapshot {name[:64]!r}")
    shown: dict[str, Any] = {"row": row, "chain": trace(shared.store, name, kind="snapshot", limit=0)}
    try:
        manifest, _ = snapshots.read(name)
    except StoreError as error:
        return shown | {"problem": str(error), "manifest": None}
    classes: dict[str, dict[str, int]] = {}
    for side, counted in manifest.classes.items():
        for label, count in counted.items():
            classes.setdefault(label, {})[side] = count
    ordered = sorted(classes.items(), key=lambda each: -sum(each[1].values()))
    versions: dict[str, int] = {}
    for member in manifest.members:
        key = f"{member.source}, version {member.version}"
        versions[key] = versions.get(key, 0) + 1
    shown |= {
        "manifest": manifest,
        "counts": manifest.counts(),
        "groups": manifest.groups(),
        "classes": ordered[:_CLASSES],
        "more_classes": max(0, len(ordered) - _CLASSES),
        "versions": sorted(versions.items(), key=lambda each: -each[1])[:12],
    }
    if against:
        shown["difference"] = _difference(snapshots, against, name)
    return shown


def _difference(snapshots: Snapshots, before: str, after: str) -> dict[str, Any]:
    try:
        found: Difference = snapshots.diff(before, after)
    except StoreError as error:
        return {"problem": str(error)}
    parts = {"added": found.added, "removed": found.removed, "relabelled": found.relabelled}
    parts["moved"] = tuple(sorted(found.moved))
    return {
        "problem": "",
        "parts": {name: {"count": len(ids), "ids": ids[:_SHOWN]} for name, ids in parts.items()},
        "moved": found.moved,
    }
