"""Reads and writes the spool's database: pending rows, the outcome of other samples, and the counters.

Nothing here commits: the Spool opens a transaction around one or several calls. Offers are ordered by rank,
which is priority * AGEING - seq. So at most AGEING later samples per level of priority overtake a sample.
This ageing needs no clock, survives restarts, and is one index.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from misfire_runtime import clock
from misfire_runtime.messages import MAX_TEXT, Declined, Offer, Rejected, Stored

AGEING = 500
"""Number of later samples that one level of priority is worth; see the module's docstring."""
MAX_SETTLED = 200_000
"""Number of settled ids to remember, so that the same bytes are not captured twice."""
# The heartbeat has no counter of damaged samples: they count as rejected.
_COUNTER_OF = {"damaged": "rejected"}
_RETURNS = ("evicted", "damaged")
"""A sample with one of these outcomes may be captured again."""
WAVE = 10
"""This many consecutive rejections, without a `stored` in between, indicate a fault of the fleet."""
_STREAK = "rejected_in_a_row"
_MAX_ACCOUNTS = 500
"""Lines of the account; further reasons are counted as "other"."""


@dataclass(frozen=True)
class Hold:
    """Holds the reason why samples are no longer offered, and since when (seconds since 1970)."""

    reason: str
    since: float


@dataclass(frozen=True)
class Row:
    """Holds a row of a pending sample; `disk` is the length of its file in bytes."""

    id: str
    size: int
    disk: int
    priority: int
    value: float
    offer: bytes


@dataclass(frozen=True)
class PendingGroup:
    """Counts pending samples of one priority and trigger."""

    priority: int
    trigger: str
    samples: int
    bytes: int


class Ledger:
    """Runs statements on one connection. Not thread-safe. `disk_bytes` is the sum over pending rows."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._increments: dict[str, int] = {}
        # Kept in memory: a sum over all rows for each new sample would read the whole table.
        self.disk_bytes = self._sum()

    def close(self) -> None:
        """Closes the database, which merges its write-ahead log."""
        self._sql.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Opens a transaction; commits it with the counters at the end, or rolls back on any exception."""
        before = self.disk_bytes
        self._increments.clear()
        # IMMEDIATE takes the write lock now; a read lock that is upgraded later may fail as busy.
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._write_increments()
            self._sql.execute("COMMIT")
        except BaseException:
            # The sum in memory is not part of the transaction, so a rollback must restore it here.
            self.disk_bytes = before
            # SQLite rolls some errors back itself (a full disk); a second ROLLBACK would be an error.
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    def begin_session(self) -> int:
        """Increases the number of sessions and returns it."""
        self.increase({"session": 1})
        return self._value("session") + 1

    def knows(self, sample: str) -> bool:
        """Returns True if a sample is pending, or has an outcome that excludes another capture."""
        if self.size_of(sample) is not None:
            return True
        verdict = self.verdict_of(sample)
        return verdict is not None and verdict not in _RETURNS

    def size_of(self, sample: str) -> int | None:
        """Returns the bytes of a pending sample's payload; None if it is not pending."""
        row = self._sql.execute("SELECT size FROM samples WHERE id = ?", (sample,)).fetchone()
        return None if row is None else int(row[0])

    def insert(self, offer: Offer, *, disk: int, priority: int, value: float, text: bytes) -> bool:
        """Inserts a captured sample; returns False if it is known."""
        if self.knows(offer.id):
            return False
        # A pending sample has no outcome: its old one (evicted, damaged) no longer holds.
        self._sql.execute("DELETE FROM settled WHERE id = ?", (offer.id,))
        self._insert(offer, disk=disk, priority=priority, value=value, text=text)
        self.increase({"captured": 1})
        return True

    def offer_again(self, offer: Offer, *, disk: int, value: float, text: bytes) -> bool:
        """Makes a rejected sample pending again; returns False if its outcome is not `rejected`.

        The old verdict is kept: a sample that is rejected again does not count towards WAVE.
        """
        if self.size_of(offer.id) is not None or self.verdict_of(offer.id) != "rejected":
            return False
        self._insert(offer, disk=disk, priority=offer.priority, value=value, text=text)
        self.increase({"rejected": -1})
        self._add_to_account("offered again", "was rejected", offer.size)
        return True

    def _insert(self, offer: Offer, *, disk: int, priority: int, value: float, text: bytes) -> None:
        self._sql.execute(
            "INSERT INTO samples (id, size, disk, priority, value, rank, offer) VALUES (?, ?, ?, ?, ?, 0, ?)",
            (offer.id, offer.size, disk, priority, value, text.decode()),
        )
        # After the INSERT, because `seq` exists only then.
        self._sql.execute("UPDATE samples SET rank = priority * ? - seq WHERE id = ?", (AGEING, offer.id))
        self.disk_bytes += disk

    def refuse(self, offer: Offer, *, reason: str) -> None:
        """Counts a new sample that did not fit into the spool as captured and evicted."""
        self.increase({"captured": 1})
        self._end_many([(offer.id, offer.size, "evicted", reason)])

    def settle_many(
        self, verdicts: Sequence[Stored | Declined | Rejected]
    ) -> list[Stored | Declined | Rejected]:
        """Records verdicts of the fleet in few statements; returns those that changed something.

        `stored` corrects an earlier eviction or refusal of the same sample: the fleet has it after all. After
        WAVE consecutive rejections, further ones do not count, and their samples stay pending (see Hold).
        """
        # Reversed, so that the first verdict of an id is the one that counts.
        of = self._before_wave({verdict.id: verdict for verdict in reversed(verdicts)})
        rows = self._sql.execute(
            # json_each: one statement for any number of ids, which SQLite's limit of variables would bound.
            "DELETE FROM samples WHERE id IN (SELECT value FROM json_each(?)) RETURNING id, size, disk",
            (json.dumps(list(of)),),
        ).fetchall()
        self.disk_bytes -= sum(row[2] for row in rows)
        ended = [of.pop(row[0]) for row in rows]
        self._end_many(
            [
                (verdict.id, row[1], verdict.verdict, "" if isinstance(verdict, Stored) else verdict.reason)
                for verdict, row in zip(ended, rows, strict=True)
            ]
        )
        return [*ended, *(verdict for verdict in of.values() if self._corrects(verdict))]

    def _before_wave(
        self, verdicts: dict[str, Stored | Declined | Rejected]
    ) -> dict[str, Stored | Declined | Rejected]:
        """Returns the verdicts without the rejections after a wave of them; a wave begins a hold."""
        streak = before = self._value(_STREAK)
        if not streak and not any(isinstance(verdict, Rejected) for verdict in verdicts.values()):
            return verdicts
        held = self.hold() is not None
        kept = dict(verdicts)
        # Back in the order of arrival, which decides which rejections are consecutive.
        for verdict in reversed(verdicts.values()):
            if self.size_of(verdict.id) is None:
                continue
            if isinstance(verdict, Stored):
                streak = 0
            elif isinstance(verdict, Rejected) and held:
                del kept[verdict.id]
            elif isinstance(verdict, Rejected) and self.verdict_of(verdict.id) != "rejected":
                streak += 1
                if held := streak >= WAVE:
                    self._hold(f"{WAVE} samples in a row were rejected, the last: {verdict.reason}")
        self.increase({_STREAK: streak - before})
        return kept

    def _hold(self, reason: str) -> None:
        self._sql.execute("INSERT INTO hold VALUES (?, ?)", (reason[:MAX_TEXT], clock.wall_time()))

    def hold(self) -> Hold | None:
        """Returns why nothing is offered; None while samples are offered."""
        row = self._sql.execute("SELECT reason, since FROM hold").fetchone()
        return None if row is None else Hold(*row)

    def lift(self) -> None:
        """Ends the hold and resets the count of consecutive rejections."""
        self._sql.execute("DELETE FROM hold")
        self.increase({_STREAK: -self._value(_STREAK)})

    def verdict_of(self, sample: str) -> str | None:
        """Returns the last outcome of a sample ("damaged" if its file was); None if unknown."""
        row = self._sql.execute("SELECT verdict FROM settled WHERE id = ?", (sample,)).fetchone()
        return None if row is None else str(row[0])

    def reason_of(self, sample: str) -> str:
        """Returns why a sample was last declined, rejected or evicted; empty if unknown."""
        row = self._sql.execute("SELECT reason FROM settled WHERE id = ?", (sample,)).fetchone()
        return "" if row is None else str(row[0])

    def lose(self, lost: Mapping[str, int]) -> None:
        """Adds to the counts of selected frames that never became samples, by reason."""
        self._sql.executemany(
            "INSERT INTO account VALUES ('lost', ?, ?, 0) ON CONFLICT (verdict, reason) "
            "DO UPDATE SET samples = samples + excluded.samples",
            list(lost.items()),
        )

    def lost(self) -> dict[str, int]:
        """Returns the counts of selected frames that never became samples, by reason."""
        return dict(self._sql.execute("SELECT reason, samples FROM account WHERE verdict = 'lost'"))

    def _corrects(self, verdict: Stored | Declined | Rejected) -> bool:
        if not isinstance(verdict, Stored):
            return False
        row = self._sql.execute("SELECT verdict, size FROM settled WHERE id = ?", (verdict.id,)).fetchone()
        # A verdict that is repeated must not be counted twice.
        if row is None or row[0] == "stored":
            return False
        self.increase({_COUNTER_OF.get(row[0], row[0]): -1, "stored": 1, "bytes_stored": int(row[1])})
        self._sql.execute("UPDATE settled SET verdict = 'stored' WHERE id = ?", (verdict.id,))
        self._add_to_account("stored", "corrected: was " + row[0], int(row[1]))
        return True

    def drop(self, sample: str, *, verdict: str, reason: str) -> bool:
        """Removes a pending sample with this outcome; returns False if it is not pending."""
        row = self._sql.execute("DELETE FROM samples WHERE id = ? RETURNING size, disk", (sample,)).fetchone()
        if row is None:
            return False
        self.disk_bytes -= int(row[1])
        self._end_many([(sample, int(row[0]), verdict, reason)])
        return True

    def first(self, limit: int, *, skip: Collection[str], min_priority: int) -> list[Row]:
        """Returns the first `limit` rows by rank, without those in `skip`."""
        query = (
            "SELECT id, size, disk, priority, value, offer FROM samples "
            "WHERE priority >= ? ORDER BY rank DESC, seq"
        )
        found: list[Row] = []
        # Skips here: the ids in the window are few, and the query stays one prepared statement.
        for row in self._sql.execute(query, (min_priority,)):
            if len(found) >= limit:
                break
            if row[0] not in skip:
                found.append(_row(row))
        return found

    def worth_less(self, need: int, *, priority: int, value: float) -> list[Row] | None:
        """Returns the least valuable rows that free `need` bytes; None if better ones had to go, too."""
        query = (
            "SELECT id, size, disk, priority, value, '' FROM samples "
            # Row values, so that the index samples_by_worth answers the query.
            "WHERE (priority, value) <= (?, ?) ORDER BY priority, value, seq"
        )
        victims: list[Row] = []
        for row in self._sql.execute(query, (priority, value)):
            if need <= 0:
                break
            victims.append(_row(row))
            need -= victims[-1].disk
        return victims if need <= 0 else None

    def pending(self) -> list[PendingGroup]:
        """Returns the pending samples by priority and trigger, the highest priority first."""
        rows = self._sql.execute(
            "SELECT priority, coalesce(json_extract(offer, '$.trigger.name'), ''), count(*), sum(size) "
            "FROM samples GROUP BY 1, 2 ORDER BY 1 DESC, 2"
        )
        return [PendingGroup(*row) for row in rows]

    def backlog(self) -> tuple[int, float | None]:
        """Returns the bytes of all pending samples, and the capture time of the oldest by its own clock."""
        size = self._sql.execute("SELECT coalesce(sum(size), 0) FROM samples").fetchone()[0]
        first = self._sql.execute(
            "SELECT json_extract(offer, '$.captured_at.wall') FROM samples ORDER BY seq LIMIT 1"
        ).fetchone()
        return int(size), None if first is None else float(first[0])

    def sizes(self) -> list[tuple[str, int]]:
        """Returns (id, bytes of the payload) of every pending row."""
        return self._sql.execute("SELECT id, size FROM samples").fetchall()

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Returns (id, length of the file in bytes) of every pending row."""
        return iter(self._sql.execute("SELECT id, disk FROM samples").fetchall())

    def increase(self, increments: Mapping[str, int]) -> None:
        """Adds to counters, which are written once, at the end of the transaction."""
        for name, value in increments.items():
            self._increments[name] = self._increments.get(name, 0) + value

    def counters(self) -> dict[str, int]:
        """Returns all counters; `pending` is the number of rows."""
        own = ("session", _STREAK)
        values = dict(self._sql.execute("SELECT name, value FROM counters WHERE name NOT IN (?, ?)", own))
        values["pending"] = int(self._sql.execute("SELECT count(*) FROM samples").fetchone()[0])
        return values

    def account(self) -> list[tuple[str, str, int, int]]:
        """Returns (verdict, reason, samples, bytes) of every line of the account."""
        return self._sql.execute(
            "SELECT verdict, reason, samples, bytes FROM account ORDER BY 1, 2"
        ).fetchall()

    def reuse_log(self) -> None:
        """Merges the write-ahead log, so that the next commit overwrites it and needs no room on the disk."""
        with suppress(sqlite3.OperationalError):
            self._sql.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def empty(self) -> bool:
        """Returns True if nothing is pending."""
        return self._sql.execute("SELECT 1 FROM samples LIMIT 1").fetchone() is None

    def _write_increments(self) -> None:
        self._sql.executemany(
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            list(self._increments.items()),
        )

    def _end_many(self, ends: Sequence[tuple[str, int, str, str]]) -> None:
        """Records samples that are no longer pending, as (id, size, verdict, reason)."""
        if not ends:
            return
        cursor = self._sql.execute(
            "INSERT OR REPLACE INTO settled (id, verdict, size, reason) SELECT json_extract(value, '$[0]'), "
            "json_extract(value, '$[2]'), json_extract(value, '$[1]'), json_extract(value, '$[3]') "
            "FROM json_each(?)",
            (json.dumps(ends),),
        )
        # Old ids are deleted once per thousand: a DELETE in each commit would write more pages.
        last = cursor.lastrowid or 0
        if last // 1000 != (last - len(ends)) // 1000:
            self._sql.execute("DELETE FROM settled WHERE n <= ?", (last - MAX_SETTLED,))
        for _, size, verdict, reason in ends:
            self.increase({_COUNTER_OF.get(verdict, verdict): 1})
            if verdict == "stored":
                self.increase({"bytes_stored": size})
            else:
                self._add_to_account(verdict, reason, size)

    def _add_to_account(self, verdict: str, reason: str, size: int) -> None:
        """Adds to a line of the account. Reasons may contain sizes or ids, so their number is bounded."""
        known = self._sql.execute("SELECT 1 FROM account WHERE (verdict, reason) = (?, ?)", (verdict, reason))
        if known.fetchone() is None:
            (lines,) = self._sql.execute("SELECT count(*) FROM account").fetchone()
            # Only a new line is checked: a known reason is counted exactly for ever.
            reason = reason if lines < _MAX_ACCOUNTS else "other"
        self._sql.execute(
            "INSERT INTO account VALUES (?, ?, 1, ?) ON CONFLICT (verdict, reason) "
            "DO UPDATE SET samples = samples + 1, bytes = bytes + excluded.bytes",
            (verdict, reason, size),
        )

    def _value(self, counter: str) -> int:
        row = self._sql.execute("SELECT value FROM counters WHERE name = ?", (counter,)).fetchone()
        return 0 if row is None else int(row[0])

    def _sum(self) -> int:
        return int(self._sql.execute("SELECT coalesce(sum(disk), 0) FROM samples").fetchone()[0])


def _row(row: tuple[str, int, int, int, float, str]) -> Row:
    return Row(row[0], row[1], row[2], row[3], row[4], row[5].encode())
