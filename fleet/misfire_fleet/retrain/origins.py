"""Records which run came of which run and snapshot, and which bundle of which run, in the fleet's store."""

from __future__ import annotations

from typing import Any

from misfire_fleet.actor import current_actor
from misfire_fleet.store import Store
from misfire_fleet.store.curated.lineage import Link, record
from misfire_runtime.bundle import Bundle
from misfire_train.runs import Run


def record_origins(store: Store, run: Run, *, snapshot: str | None, bundle: Bundle | None) -> None:
    """Records the links of a run and its bundle; what is recorded already stays.

    Args:
        store: the fleet's store.
        run: the new run.
        snapshot: name of the snapshot that it was trained on; None if the labels were a CSV.
        bundle: the bundle that was made of it, if one was.

    Raises:
        StoreUnavailableError: nothing was recorded; the run and the bundle are complete.
    """
    made = run.record
    numbers: dict[str, Any] = {
        "dataset": made.dataset.name,
        "task": made.task,
        "created_at": made.created_at,
        "test_accuracy": made.metrics.get("test_accuracy"),
        "uploads": dict(made.dataset.uploads),
    }
    links = []
    if made.parent_run_id is not None:
        links.append(Link("run", made.run_id, "run", made.parent_run_id, detail=numbers))
    if snapshot is not None:
        detail = numbers | {"snapshot_sha256": made.snapshot}
        links.append(Link("run", made.run_id, "snapshot", snapshot, detail=detail))
    if bundle is not None:
        label = f"{bundle.manifest.name}@{bundle.manifest.version}"
        links.append(Link("bundle", label, "run", made.run_id, detail={"created_at": made.created_at}))
    record(store.deletion, links, actor=current_actor())
