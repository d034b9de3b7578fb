"""Checks that a bundle was not trained on the frames that it is judged on, as far as lineage tells.

Freezing keeps a test set out of later training. A set that was frozen late may have been trained on before.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select

from misfire_fleet.candidates.answers import Pair
from misfire_fleet.candidates.frames import TestFrames
from misfire_fleet.candidates.verdict import Check
from misfire_fleet.store import Store
from misfire_fleet.store.curated.lineage import Link, links
from misfire_fleet.store.curated.snapshots import found
from misfire_fleet.store.database import one_of
from misfire_fleet.store.schema import snapshot_samples, snapshots
from misfire_runtime.bundle import Manifest

_MOST = 1000
_PAGE = 500


def compare_independence(store: Store, pair: Pair, frames: TestFrames) -> tuple[Check, list[str]]:
    """Judges whether a bundle was trained on test frames: a candidate that was does not pass.

    Returns:
        The check, and a note if the incumbent was.
    """
    new, old = (side.manifest for side in (pair.candidate, pair.incumbent))
    seen = {manifest.label: _seen(store, manifest, frames.members) for manifest in (new, old)}
    notes = []
    if seen[old.label]:
        notes.append(
            f"The incumbent was trained on {seen[old.label]} of the test samples, which flatters it: they "
            "were frozen later."
        )
    if seen[new.label]:
        sentence = f"trained on {seen[new.label]} of the test samples, so its numbers here mean nothing"
        return Check("test frames", "failed", sentence), notes
    untold = _untold(store, new, frames)
    if untold:
        sentence = (
            f"the candidate was retrained on {untold} uploads of a CSV before {frames.name} was made, and "
            "nothing tells which: retrain with --snapshot"
        )
        return Check("test frames", "unknown", sentence), notes
    return Check("test frames", "passed", "no lineage says that the candidate was trained on one"), notes


def _untold(store: Store, manifest: Manifest, frames: TestFrames) -> int:
    """Returns how many uploads without a snapshot a bundle's runs were trained on before the test was made.

    Those that were trained on later are no test samples: a retraining refuses them.
    """
    frozen_at = found(store.database, frames.name).created_at
    own = _ancestry(store, manifest)
    told = {link.child for link in own if link.parent_kind == "snapshot"}
    count = 0
    for link in own:
        early = link.child_kind == "run" and link.parent_kind == "run" and link.at < frozen_at
        if early and link.child not in told:
            count += sum(map(int, (link.detail or {}).get("uploads", {}).values()))
    return count


def _seen(store: Store, manifest: Manifest, tested: Collection[str]) -> int:
    """Returns how many of the test samples the snapshots of a bundle and its ancestors train on."""
    names = _snapshots_of(store, manifest)
    if not names:
        return 0
    ids, seen = sorted(tested), 0
    with store.database.read() as connection:
        for start in range(0, len(ids), _PAGE):
            query = select(func.count(snapshot_samples.c.sample.distinct())).where(
                snapshot_samples.c.snapshot.in_(sorted(names)),
                snapshot_samples.c.side != "test",
                one_of(snapshot_samples.c.sample, ids[start : start + _PAGE], on=connection),
            )
            seen += int(connection.scalar(query) or 0)
    return seen


def _snapshots_of(store: Store, manifest: Manifest) -> set[str]:
    names = {link.parent for link in _ancestry(store, manifest) if link.parent_kind == "snapshot"}
    with store.database.read() as connection:
        query = select(snapshots.c.name).where(snapshots.c.sha256 == (manifest.lineage.snapshot_id or ""))
        names |= set(connection.scalars(query))
    return names


def _ancestry(store: Store, manifest: Manifest) -> list[Link]:
    """Returns the links of a bundle, its run and all runs before it."""
    own: list[Link] = []
    queue, known = [manifest.label, manifest.lineage.run_id], set[str]()
    while queue and len(known) < _MOST:
        child = queue.pop()
        if child in known:
            continue
        known.add(child)
        made = links(store.database, child=child)
        own += made
        queue += [link.parent for link in made if link.parent_kind != "snapshot"]
    return own
