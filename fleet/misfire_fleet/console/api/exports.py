"""Serves what leaves the fleet as files: samples as MCAP, snapshots with manifest, differences and sidecars.

GET /api/samples/ID/mcap          GET /api/mcap?...                  of what the gallery's filters match
GET /api/snapshots                GET /api/snapshots/NAME            GET /api/snapshots/NAME/manifest
GET /api/snapshots/NAME/diff/OTHER                                   GET /api/snapshots/NAME/fiftyone
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.background import BackgroundTask

from misfire_fleet.console.filters import GalleryQuery, gallery_query, readable, sample_id
from misfire_fleet.console.shared import Shared
from misfire_fleet.datasets.snapshots import Snapshots
from misfire_fleet.errors import StoreError
from misfire_fleet.gallery.foxglove import write_recording
from misfire_fleet.labels.content import Label
from misfire_fleet.labels.exchange.exporting import export
from misfire_fleet.labels.formats.base import Plan
from misfire_fleet.labels.formats.registry import format_of
from misfire_fleet.labels.items import export_items
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store.curated import snapshots as snapshot_rows
from misfire_fleet.store.curated.snapshots import SnapshotRow
from misfire_fleet.store.records import SampleFilter, StoredSample
from misfire_runtime.errors import ConfigError, MissingExtraError

Name = Annotated[str, InPath(min_length=1, max_length=64)]
_MOST_SAMPLES = 500
_MOST_BYTES = 2 * 10**9
"""Samples and bytes of one MCAP file from the console; `misfire fleet export --to mcap` has no limit."""


class SnapshotJson(BaseModel):
    """Describes a snapshot. `deleted`: its samples that were deleted since."""

    name: str
    sha256: str
    created_at: float
    actor: str
    kind: str
    samples: int
    frozen: bool
    deleted: int
    counts: dict[str, int] = {}


class DifferenceJson(BaseModel):
    """Lists the samples in which two snapshots differ. `moved`: side before and after."""

    added: list[str]
    removed: list[str]
    relabelled: list[str]
    moved: dict[str, tuple[str, str]]


def exports_api(shared: Shared) -> APIRouter:
    """Returns the routes of what leaves the fleet as files."""
    router = APIRouter(prefix="/api")
    router.include_router(_recordings(shared))
    router.include_router(_snapshots(shared))
    return router


def _recordings(shared: Shared) -> APIRouter:
    router, store = APIRouter(), shared.store
    any_file: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

    @router.get("/samples/{sample}/mcap", response_class=Response, responses=any_file)
    def one(sample: str) -> Response:
        """Returns a sample as an MCAP file for Foxglove."""
        row = store.get(sample_id(sample))
        return _recording(shared, [row], f"{row.id[:16]}.mcap")

    @router.get("/mcap", response_class=Response, responses=any_file)
    def matching(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> Response:
        """Returns the first samples that match, at most 500, as one MCAP file in the order of capture."""
        try:
            page = shared.gallery.page(query.question, limit=min(query.limit, _MOST_SAMPLES))
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        rows = sorted((each.sample for each in page.shown), key=lambda row: row.captured_at)
        if sum(row.size for row in rows) > _MOST_BYTES:
            raise HTTPException(422, f"these samples have more than {_MOST_BYTES:,} bytes; ask for fewer")
        return _recording(shared, rows, "uploads.mcap")

    return router


def _snapshots(shared: Shared) -> APIRouter:
    router, store = APIRouter(prefix="/snapshots"), shared.store
    snapshots = Snapshots(store)
    any_file: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

    @router.get("")
    def listing() -> list[SnapshotJson]:
        """Lists all snapshots, the newest first."""
        return [_json_of(row) for row in reversed(snapshots.listed())]

    @router.get("/{name}")
    def one(name: Name) -> SnapshotJson:
        """Describes a snapshot, with the number of samples on each side."""
        manifest, _sha256 = _found(lambda: snapshots.read(readable("name", name)))
        return _json_of(snapshot_rows.found(store.database, name)).model_copy(
            update={"counts": manifest.counts()}
        )

    @router.get("/{name}/manifest", response_class=Response, responses=any_file)
    def manifest(name: Name) -> Response:
        """Returns a snapshot's manifest, byte for byte as it was made."""
        row = _found(lambda: snapshot_rows.found(store.database, readable("name", name)))
        data = _found(lambda: snapshot_rows.manifest_bytes(store.blobs, row))
        return Response(data, media_type="application/json", headers=_as_file(f"{row.name}.json"))

    @router.get("/{name}/diff/{other}")
    def diff(name: Name, other: Name) -> DifferenceJson:
        """Compares a snapshot with another one: what the other one has, and this one has not."""
        found = _found(lambda: snapshots.diff(readable("name", name), readable("other", other)))
        return DifferenceJson(
            added=list(found.added),
            removed=list(found.removed),
            relabelled=list(found.relabelled),
            moved=found.moved,
        )

    @router.get("/{name}/fiftyone", response_class=Response, responses=any_file)
    def fiftyone(name: Name) -> Response:
        """Returns labels, answers and scores of a snapshot for FiftyOne, as a ZIP without the pictures."""
        row = _found(lambda: snapshot_rows.found(store.database, readable("name", name)))
        filters, ledger = SampleFilter(snapshot=row.name), LabelLedger(store)
        folder = Path(tempfile.mkdtemp(prefix="misfire-export-"))
        try:
            plan = Plan(classes=tuple(each.name for each in ledger.classes()), pictures=False)
            items = export_items(store, filters, pictures=False)
            target = folder / f"{row.name}.zip"
            export(items, format_of("fiftyone"), target, plan=plan, where=[f"snapshot={row.name}"])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _file(target, folder, "application/zip")

    return router


def _recording(shared: Shared, rows: Iterable[StoredSample], name: str) -> Response:
    folder = Path(tempfile.mkdtemp(prefix="misfire-export-"))
    ledger = LabelLedger(shared.store)

    def label_of(sample: str) -> Label | None:
        record = ledger.label_of(sample)
        return None if record is None else record.label

    try:
        target = folder / name
        with target.open("wb") as stream:
            written, left_out = write_recording(
                rows,
                stream,
                read=shared.store.read_blob,
                packets=shared.thumbnails.decoder.packets,
                label_of=label_of,
            )
        if not written:
            raise HTTPException(422, "; ".join(left_out[:3]) or "no sample matches")
    except MissingExtraError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise HTTPException(501, str(error)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _file(target, folder, "application/octet-stream")


def _file(target: Path, folder: Path, media_type: str) -> Response:
    """Returns a file, whose folder is removed when it was sent."""
    clean = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(target, media_type=media_type, headers=_as_file(target.name), background=clean)


def _as_file(name: str) -> dict[str, str]:
    # Names of snapshots and ids have no quotes: both are checked where they are made.
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _found(read: Any) -> Any:
    """Returns what `read` does. Raises HTTPException 404 if there is no such snapshot, or it is damaged."""
    try:
        return read()
    except StoreError as error:
        raise HTTPException(404, str(error)) from error
    except (ConfigError, ValueError) as error:
        raise HTTPException(422, str(error)) from error


def _json_of(row: SnapshotRow) -> SnapshotJson:
    return SnapshotJson(
        name=row.name,
        sha256=row.sha256,
        created_at=row.created_at,
        actor=row.actor,
        kind=row.kind,
        samples=row.count,
        frozen=row.frozen,
        deleted=row.gone,
    )
