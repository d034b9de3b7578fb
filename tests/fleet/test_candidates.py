"""Verdicts of the gate and published bundles as records, on both databases."""

from __future__ import annotations

import hashlib

import pytest
from tests.fleet.stores import again, without_tables

from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document, FolderBlobs
from misfire_fleet.store.care.check import check, repair
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.curated import candidates
from misfire_fleet.store.curated.candidates import PublishedRow, VerdictRow, publish, record_verdict
from misfire_fleet.store.schema import gate_verdicts, published_bundles
from proving_ground.services import Postgres

ARCHIVE = b"an archive of a bundle"
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


def row(candidate: str = "lights@2.0.0", *, passed: bool = True) -> VerdictRow:
    return VerdictRow(
        candidate=candidate,
        candidate_sha256=SHA256,
        incumbent="lights@1.0.0",
        incumbent_sha256="1" * 64,
        snapshot="exam",
        snapshot_sha256="2" * 64,
        passed=passed,
        actor="ann",
        summary={"reasons": [] if passed else ["task: worse"], "frames": 100},
    )


def put(store: Store, *, archive: bytes = ARCHIVE, bundle: str = "lights@2.0.0") -> PublishedRow:
    made = PublishedRow(bundle, hashlib.sha256(archive).hexdigest(), len(archive), actor="ann", reason="why")
    return publish(store.deletion, store.blobs, made, archive)


def test_verdicts_are_kept_newest_first_with_a_line_of_the_audit_log(anywhere: Store) -> None:
    record_verdict(anywhere.deletion, row(passed=False))
    record_verdict(anywhere.deletion, row("lights@3.0.0"))
    last = record_verdict(anywhere.deletion, row())
    found = candidates.verdicts(anywhere.database)
    assert [each.candidate for each in found] == ["lights@2.0.0", "lights@3.0.0", "lights@2.0.0"]
    assert found[0] == last and found[2].summary["reasons"] == ["task: worse"]
    assert [v.passed for v in candidates.verdicts(anywhere.database, candidate="lights@2.0.0")] == [
        True,
        False,
    ]
    assert not candidates.verdicts(anywhere.database, sha256="3" * 64)
    at, actor, action, detail = anywhere.deletion.audit(limit=1)[0]
    assert (at, actor, action, detail["passed"]) == (last.at, "ann", "gate", True)


def test_publishing_twice_changes_nothing_and_other_content_is_refused(anywhere: Store) -> None:
    first = put(anywhere)
    lines = len(anywhere.deletion.audit())
    assert put(anywhere) == first and len(anywhere.deletion.audit()) == lines
    with pytest.raises(StoreError, match="published already, with other content"):
        put(anywhere, archive=b"other bytes")
    assert (
        candidates.archive_bytes(anywhere.blobs, candidates.found(anywhere.database, first.bundle)) == ARCHIVE
    )
    assert [each.bundle for each in candidates.published(anywhere.database)] == ["lights@2.0.0"]
    with pytest.raises(StoreError, match="is not published"):
        candidates.found(anywhere.database, "lights@9.0.0")


def test_verdicts_publications_and_audit_survive_the_loss_of_the_database(
    anywhere: Store, request: pytest.FixtureRequest
) -> None:
    record_verdict(anywhere.deletion, row(passed=False))
    put(anywhere)
    before = (
        candidates.verdicts(anywhere.database),
        candidates.published(anywhere.database),
        anywhere.deletion.audit(),
    )
    if isinstance(anywhere.blobs, FolderBlobs):
        folder = anywhere.blobs.root.parent
        anywhere.close()
        done = rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    else:
        database: Postgres = request.getfixturevalue("database")
        without_tables(database)
        done = rebuild(database.url, anywhere.blobs.url, blob_options=anywhere.blobs.options)  # type: ignore[attr-defined]
    assert (done.verdicts, done.published) == (1, 1)
    with again(anywhere) as store:
        after = (
            candidates.verdicts(store.database),
            candidates.published(store.database),
            store.deletion.audit(),
        )
        assert after == before
        assert not any(check(store).to_dict()["problems"].values())


def test_check_finds_lost_archives_and_rows_and_repair_mends_what_it_can(anywhere: Store) -> None:
    record_verdict(anywhere.deletion, row())
    put(anywhere)
    assert check(anywhere).sound
    anywhere.blobs.keep(Document("bundles", candidates.document_of(SHA256), b"altered"))
    with anywhere.database.write() as connection:
        connection.execute(gate_verdicts.delete())
        connection.execute(published_bundles.delete())
    found = check(anywhere)
    assert sorted(found.problems["bundles_without_row"]) == ["gate lights@2.0.0", "publish lights@2.0.0"]
    assert repair(anywhere, found)["bundles_without_row"] == 2
    assert len(candidates.verdicts(anywhere.database)) == 1
    assert "altered" in check(anywhere).problems["bundles_damaged"][0]
    # The way that the message names.
    put(anywhere)
    assert check(anywhere).sound
