"""Implements `misfire fleet check|backup|rebuild`: checks, copies and restores the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.commands.options import (
    DEFAULT_DIR,
    AsJson,
    DatabaseUrl,
    FleetDir,
    StoreOptions,
    show,
    with_options,
)

if TYPE_CHECKING:
    from misfire_fleet.store.care.check import Check


@with_options(place=StoreOptions)
def check(
    *,
    place: StoreOptions,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every blob, too.")] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Add missing rows, offers and ledger entries.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare database, blobs and offers. Exit with 1 if something is wrong."""
    from misfire_fleet.errors import StoreUnavailableError
    from misfire_fleet.store.care.check import Check, repair
    from misfire_fleet.store.care.check import check as check_store
    from misfire_fleet.store.care.integrity import file_damage, sqlite_file

    mended: dict[str, int] = {}
    try:
        with place.open() as store:
            found = check_store(store, deep=deep)
            # Nothing is written into a damaged database: that makes the damage worse.
            if mend and not found.problems["database_damaged"]:
                mended = repair(store, found)
                found = check_store(store, deep=deep)
    except StoreUnavailableError:
        # A badly damaged file cannot even be opened as a store: check the file itself.
        path = sqlite_file(place.database_or_file)
        damage = [] if path is None else file_damage(path)
        if not damage:
            raise
        found = Check(deep)
        found.problems["database_damaged"] += damage
    text = _table(found)
    if mend:
        text += "\nrepaired: " + (", ".join(f"{n} {kind}" for kind, n in mended.items() if n) or "nothing")
    show(found.to_dict() | {"repaired": mended}, as_json=as_json, text=text)
    if not found.sound:
        raise typer.Exit(1)


def backup(
    file: Annotated[
        Path, typer.Argument(help="Write to this file; it is replaced when the new one is complete.")
    ],
    fleet_dir: FleetDir = DEFAULT_DIR,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database while the fleet runs. Blobs are files: copy them as files, after this."""
    from misfire_fleet.console.format import byte_count
    from misfire_fleet.store.care.backup import backup as write_backup

    size = write_backup(database or fleet_dir / "fleet.sqlite", file)
    text = f"{file}: {byte_count(size)}; copy the blob store as well: it has blobs, offers, labels and ledger"
    show({"file": str(file), "bytes": size}, as_json=as_json, text=text)


@with_options(place=StoreOptions)
def rebuild(
    *,
    place: StoreOptions,
    force: Annotated[bool, typer.Option("--force", help="Rebuild even a database that is sound.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the database from the offers and the ledger beside the blobs."""
    from misfire_fleet.store.care.rebuild import NOT_RESTORED
    from misfire_fleet.store.care.rebuild import rebuild as rebuild_store

    done = rebuild_store(place.database_or_file, place.blobs_or_folder, force=force)
    text = (
        f"restored: {done.rows} rows, {done.tombstones} deletions, {done.holds} holds, {done.labels} labels, "
        f"{done.person_verdicts} verdicts of people, {done.classes} classes, {done.snapshots} snapshots, "
        f"{done.verdicts} verdicts of the gate, {done.published} published bundles, "
        f"{done.audit} audit lines\n"
        f"{done.unknown} blobs without an offer are left as they are\n"
        + "".join(f"not restored: {what}\n" for what in NOT_RESTORED)
        + (f"the old database is {done.kept}" if done.kept else "there was no database")
    )
    show(asdict(done) | {"not_restored": list(NOT_RESTORED)}, as_json=as_json, text=text)


def _table(found: Check) -> str:
    from misfire_fleet.console.format import byte_count
    from misfire_fleet.store.care.check import MAX_EXAMPLES, PROBLEMS

    lines = [f"{found.rows} rows, {found.blobs} blobs, {byte_count(found.bytes)}"]
    for kind, what in found.problems.items():
        lines.append(f"{kind.replace('_', ' '):22}{len(what):8}" + (f"  {PROBLEMS[kind]}" if what else ""))
        lines += [f"    {each}" for each in what[:MAX_EXAMPLES]]
    lines.append("nothing is wrong" if found.sound else "something is wrong")
    return "\n".join(lines)
