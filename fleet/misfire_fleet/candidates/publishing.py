"""Publishes a bundle that passed the gate, and lists candidates with what the gate said.

    folder --Bundle.open--> verified --pack--> archive beside the blobs, row, line of the audit log

A bundle that did not pass, or that nobody judged, is published only with `force` and a reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from misfire_fleet.candidates import archive
from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.curated import candidates as rows
from misfire_fleet.store.curated.candidates import PublishedRow, VerdictRow
from misfire_runtime.bundle import Bundle
from misfire_runtime.errors import ConfigError

_REASON = 1000


@dataclass(frozen=True)
class Candidate:
    """Holds a bundle that was judged or published. `verdicts`: newest first."""

    label: str
    sha256: str
    verdicts: tuple[VerdictRow, ...]
    published: PublishedRow | None


def publish_bundle(
    store: Store, path: Path, *, actor: str, force: bool = False, reason: str = ""
) -> PublishedRow:
    """Publishes a bundle; a second time changes nothing.

    Args:
        store: the fleet's store.
        path: folder of the bundle.
        actor: who publishes, for the audit log.
        force: publish although the newest verdict is no pass, or there is none.
        reason: why, which `force` needs.

    Raises:
        ConfigError: the bundle did not pass and `force` is missing, or there is no reason.
        StoreError: another bundle is published under this name and version.
        BundleError: the bundle is damaged.
        StoreUnavailableError: nothing was published.
    """
    bundle = Bundle.open(path)
    data = archive.pack(bundle)
    sha256, size = archive.digest(bundle)
    reason = reason.strip()[:_REASON]
    if force and not reason:
        raise ConfigError("--force needs --reason: it is kept in the audit log")
    why_not = _why_not(rows.verdicts(store.database, sha256=sha256), bundle.manifest.label)
    known = any(each.sha256 == sha256 for each in rows.published(store.database))
    if why_not and not force and not known:
        raise ConfigError(f"{why_not}; publish it all the same with --force --reason TEXT")
    made = PublishedRow(
        bundle=bundle.manifest.label,
        sha256=sha256,
        bytes=size,
        actor=actor,
        # A reason for what passed anyway is no forcing.
        forced=bool(why_not),
        reason=reason,
    )
    return rows.publish(store.deletion, store.blobs, made, data)


def _why_not(verdicts: list[VerdictRow], label: str) -> str:
    """Returns why a bundle is not published as it is; empty if its newest verdict is a pass."""
    if not verdicts:
        return f"{label} was never judged by misfire fleet gate"
    newest = verdicts[0]
    if newest.passed:
        return ""
    reasons = newest.summary.get("reasons") or ["it did not pass"]
    return f"{label} did not pass against {newest.incumbent} on {newest.snapshot}: {'; '.join(reasons)}"


def listed(store: Store) -> list[Candidate]:
    """Returns all bundles that were judged or published, those with the newest verdict first."""
    verdicts = rows.verdicts(store.database)
    published = {(row.bundle, row.sha256): row for row in rows.published(store.database)}
    keys = [(each.candidate, each.candidate_sha256) for each in verdicts]
    found = []
    for key in dict.fromkeys([*keys, *published]):
        own = tuple(v for v in verdicts if (v.candidate, v.candidate_sha256) == key)
        found.append(Candidate(*key, own, published.get(key)))
    return found


@contextmanager
def bundle_folder(store: Store, name: str) -> Iterator[Path]:
    """Yields the folder of a bundle: the folder of that name, or a copy of the published NAME@VERSION.

    Raises:
        ConfigError: it is neither.
        StoreError: the archive of a published bundle is lost or altered.
    """
    path = Path(name)
    if path.is_dir():
        yield path
        return
    if "@" not in name:
        raise ConfigError(f"{name}: there is no such folder, and NAME@VERSION of a published bundle has an @")
    try:
        row = rows.found(store.database, name)
    except StoreError as error:
        raise ConfigError(f"{name}: there is no such folder, and {error}") from error
    with tempfile.TemporaryDirectory(prefix="misfire-bundle-") as made:
        yield archive.unpack(rows.archive_bytes(store.blobs, row), Path(made) / "bundle").path
