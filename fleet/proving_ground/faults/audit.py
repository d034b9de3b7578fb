"""Compares what vehicles chose with what the fleet has, sample by sample: every test here ends with it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from misfire_fleet.store import Store
from misfire_runtime.spool import Spool


@dataclass
class Audit:
    """Sums over vehicles.

    lost: the spool had taken it, and it is neither in the fleet nor in its counters.
    deleted_unstored: a verdict made a vehicle delete it, the fleet does not hold it, and nothing is wrong
        with it; what a policy declined, or a full spool evicted, is not meant.
    """

    chosen: int = 0
    stored: int = 0
    pending: int = 0
    declined: int = 0
    rejected: int = 0
    evicted: int = 0
    lost: int = 0
    deleted_unstored: int = 0
    duplicated: int = 0
    damaged: int = 0
    unheard: int = 0
    orphan_blobs: int = 0
    own_faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.deleted_unstored or self.duplicated or self.damaged or self.problems)


def audit(store: Store, folders: Iterable[Path]) -> Audit:
    """Compares the journals and spools of stopped vehicles with the fleet's rows and blobs.

    duplicated: rows above one per id, or samples recorded as stored more often than they are in the fleet.
    damaged: blobs whose bytes are not those of their id. unheard: in the fleet, evicted or declined on the
    vehicle before the word came. orphan_blobs: bytes without a row, of a collector killed between the two.
    """
    result = Audit()
    rows = Counter(sample.id for sample in store.newest(10_000_000))
    result.duplicated += sum(count - 1 for count in rows.values())
    confirmed: set[str] = set()
    ended: set[str] = set()
    for folder in folders:
        _vehicle(folder, set(rows), result, confirmed, ended)
    for name in rows:
        if hashlib.sha256(store.read_blob(name)).hexdigest() != name:
            result.damaged += 1
    result.orphan_blobs = len(set(store.blobs.names()) - set(rows))
    result.unheard = len(set(rows) - confirmed)
    unknown = set(rows) - confirmed - ended
    if unknown:
        result.problems.append(f"{len(unknown)} rows in the fleet that no vehicle's spool explains")
    return result


def _vehicle(folder: Path, rows: set[str], result: Audit, confirmed: set[str], ended: set[str]) -> None:
    # So large that opening it evicts nothing.
    with Spool(folder / "spool", max_bytes=1 << 40, reserve_bytes=0) as spool:
        counters = spool.counters()
    settled = dict(
        sqlite3.connect(folder / "spool" / "spool.sqlite").execute("SELECT id, verdict FROM settled")
    )
    pending = {
        row[0] for row in sqlite3.connect(folder / "spool" / "spool.sqlite").execute("SELECT id FROM samples")
    }
    lines = (folder / "journal").read_text().splitlines()
    at_fault = {line.split()[2] for line in lines if line.startswith("b ")}
    final = {sample for sample, verdict in settled.items() if verdict in {"stored", "rejected"}}
    result.deleted_unstored += len(final - rows - at_fault)
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "f":
            result.own_faults[rest] += 1
        elif kind == "d":
            sample = rest.split()[1]
            verdict = settled.get(sample)
            if sample not in pending and (verdict is None or (verdict == "stored" and sample not in rows)):
                result.lost += 1
    result.chosen += counters.captured
    result.stored += counters.stored
    result.pending += counters.pending
    result.declined += counters.declined
    result.rejected += counters.rejected
    result.evicted += counters.evicted
    result.lost += max(0, counters.captured - counters.accounted)
    # A vehicle takes only newer versions, so the journal must be in their order.
    versions = [int(line[2:]) for line in lines if line.startswith("w ")]
    if versions != sorted(versions):
        result.problems.append(f"{folder.name}: an older wish replaced a newer one: {versions}")
    if counters.captured != counters.accounted:
        result.problems.append(f"{folder.name}: {counters}")
    if (folder / "violation").exists():
        result.problems.append((folder / "violation").read_text())
    mine = {sample for sample, verdict in settled.items() if verdict == "stored"}
    result.duplicated += counters.stored - len(mine) + len(mine & confirmed)
    confirmed |= mine
    ended |= set(settled) - mine
