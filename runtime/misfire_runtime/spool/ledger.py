"""The spool's books in SQL: pending rows, what became of the others, and the counters that must add up.

Nothing here commits: the Spool opens a transaction around one or several calls. Order of offers: the rank of
a sample is priority * AGEING - seq, so it is overtaken by at most AGEING later ones per level of priority:
ageing that needs no clock, survives restarts, and is one index.
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
MAX_SETTLED = 200_000
"""Settled ids that are remembered, so that the same bytes are not captured twice."""
_COUNTER_OF = {"damaged": "rejected"}
_RETURNS = ("evicted", "damaged")
"""A sample that ended so may be captured again."""
WAVE = 10
"""So many samples rejected in a row, with none `stored` between, are taken for a fault of the fleet."""
_STREAK = "rejected_in_a_row"
_MAX_ACCOUNTS = 500


@dataclass(frozen=True)
class Hold:
    """Why samples are not offered any more, and since when (seconds since 1970)."""

    reason: str
    since: float


@dataclass(frozen=True)
class Row:
    """A pending sample."""

    id: str
    size: int
    disk: int
    priority: int
    value: float
    offer: bytes


@dataclass(frozen=True)
class PendingGroup:
    """Samples that wait, of one priority and trigger."""

    priority: int
    trigger: str
    samples: int
    bytes: int


class Ledger:
    """Statements over one connection; callers serialise. `disk_bytes` is the sum over pending rows."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._increments: dict[str, int] = {}
        self.disk_bytes = self._sum()

    def close(self) -> None:
        """Folds the WAL into the database and closes."""
        self._sql.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits at the end, counters with it; rolls back on any exception."""
        before = self.disk_bytes
        self._increments.clear()
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._write_increments()
            self._sql.execute("COMMIT")
        except BaseException:
            self.disk_bytes = before
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    def begin_session(self) -> int:
        """Counts openings."""
        self.increase({"session": 1})
        return self._value("session") + 1

    def knows(self, sample: str) -> bool:
        """True for what is pending, or was settled in a way that lasts."""
        if self.size_of(sample) is not None:
            return True
        verdict = self.verdict_of(sample)
        return verdict is not None and verdict not in _RETURNS

    def size_of(self, sample: str) -> int | None:
        """Of the payload of a pending sample."""
        row = self._sql.execute("SELECT size FROM samples WHERE id = ?", (sample,)).fetchone()
        return None if row is None else int(row[0])

    def insert(self, offer: Offer, *, disk: int, priority: int, value: float, text: bytes) -> bool:
        """Books a captured sample; False where it is known."""
        if self.knows(offer.id):
            return False
        self._sql.execute("DELETE FROM settled WHERE id = ?", (offer.id,))
        self._insert(offer, disk=disk, priority=priority, value=value, text=text)
        self.increase({"captured": 1})
        return True

    def offer_again(self, offer: Offer, *, disk: int, value: float, text: bytes) -> bool:
        """Makes a rejected sample pending again; False if it is not booked as rejected.

        Its old verdict is remembered: a sample that is rejected again does not count towards a wave.
        """
        if self.size_of(offer.id) is not None or self.verdict_of(offer.id) != "rejected":
            return False
        self._insert(offer, disk=disk, priority=offer.priority, value=value, text=text)
        self.increase({"rejected": -1})
        self._book("offered again", "was rejected", offer.size)
        return True

    def _insert(self, offer: Offer, *, disk: int, priority: int, value: float, text: bytes) -> None:
        self._sql.execute(
            "INSERT INTO samples (id, size, disk, priority, value, rank, offer) VALUES (?, ?, ?, ?, ?, 0, ?)",
            (offer.id, offer.size, disk, priority, value, text.decode()),
        )
        self._sql.execute("UPDATE samples SET rank = priority * ? - seq WHERE id = ?", (AGEING, offer.id))
        self.disk_bytes += disk

    def refuse(self, offer: Offer, *, reason: str) -> None:
        """Books a newcomer that found no room."""
        self.increase({"captured": 1})
        self._end_many([(offer.id, offer.size, "evicted", reason)])

    def settle_many(
        self, verdicts: Sequence[Stored | Declined | Rejected]
    ) -> list[Stored | Declined | Rejected]:
        """Books verdicts of the fleet, in few statements; returns those that were news.

        `stored` corrects an earlier eviction or refusal of the same sample: the fleet has it after all. After
        a wave of rejections no further one counts, and the samples stay pending (see Hold).
        """
        of = self._before_wave({verdict.id: verdict for verdict in reversed(verdicts)})
        rows = self._sql.execute(
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
        """The verdicts without rejections that come after a wave of them, which begins a hold."""
        streak = before = self._value(_STREAK)
        if not streak and not any(isinstance(verdict, Rejected) for verdict in verdicts.values()):
            return verdicts
        held = self.hold() is not None
        kept = dict(verdicts)
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
        """Why nothing is offered; None while samples are offered."""
        row = self._sql.execute("SELECT reason, since FROM hold").fetchone()
        return None if row is None else Hold(*row)

    def lift(self) -> None:
        """Ends the hold; rejections are counted anew."""
        self._sql.execute("DELETE FROM hold")
        self.increase({_STREAK: -self._value(_STREAK)})

    def verdict_of(self, sample: str) -> str | None:
        """How a sample ended last; "damaged" if its file was."""
        row = self._sql.execute("SELECT verdict FROM settled WHERE id = ?", (sample,)).fetchone()
        return None if row is None else str(row[0])

    def reason_of(self, sample: str) -> str:
        """Why a sample was declined, rejected or evicted last; empty if unknown."""
        row = self._sql.execute("SELECT reason FROM settled WHERE id = ?", (sample,)).fetchone()
        return "" if row is None else str(row[0])

    def lose(self, lost: Mapping[str, int]) -> None:
        """Adds to the counts of chosen frames that never became samples, by reason."""
        self._sql.executemany(
            "INSERT INTO account VALUES ('lost', ?, ?, 0) ON CONFLICT (verdict, reason) "
            "DO UPDATE SET samples = samples + excluded.samples",
            list(lost.items()),
        )

    def lost(self) -> dict[str, int]:
        """Chosen frames that never became samples, by reason."""
        return dict(self._sql.execute("SELECT reason, samples FROM account WHERE verdict = 'lost'"))

    def _corrects(self, verdict: Stored | Declined | Rejected) -> bool:
        if not isinstance(verdict, Stored):
            return False
        row = self._sql.execute("SELECT verdict, size FROM settled WHERE id = ?", (verdict.id,)).fetchone()
        if row is None or row[0] == "stored":
            return False
        self.increase({_COUNTER_OF.get(row[0], row[0]): -1, "stored": 1, "bytes_stored": int(row[1])})
        self._sql.execute("UPDATE settled SET verdict = 'stored' WHERE id = ?", (verdict.id,))
        self._book("stored", "corrected: was " + row[0], int(row[1]))
        return True

    def drop(self, sample: str, *, verdict: str, reason: str) -> bool:
        """A pending sample ends."""
        row = self._sql.execute("DELETE FROM samples WHERE id = ? RETURNING size, disk", (sample,)).fetchone()
        if row is None:
            return False
        self.disk_bytes -= int(row[1])
        self._end_many([(sample, int(row[0]), verdict, reason)])
        return True

    def first(self, limit: int, *, skip: Collection[str], min_priority: int) -> list[Row]:
        """By rank, at most `limit`, without those in `skip`."""
        query = (
            "SELECT id, size, disk, priority, value, offer FROM samples "
            "WHERE priority >= ? ORDER BY rank DESC, seq"
        )
        found: list[Row] = []
        for row in self._sql.execute(query, (min_priority,)):
            if len(found) >= limit:
                break
            if row[0] not in skip:
                found.append(_row(row))
        return found

    def worth_less(self, need: int, *, priority: int, value: float) -> list[Row] | None:
        """The least worthy rows that free `need` bytes; None where not enough is worth as little as this."""
        query = (
            "SELECT id, size, disk, priority, value, '' FROM samples "
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
        """What waits, the first to go first."""
        rows = self._sql.execute(
            "SELECT priority, coalesce(json_extract(offer, '$.trigger.name'), ''), count(*), sum(size) "
            "FROM samples GROUP BY 1, 2 ORDER BY 1 DESC, 2"
        )
        return [PendingGroup(*row) for row in rows]

    def sizes(self) -> list[tuple[str, int]]:
        """(id, bytes of the payload) of every pending row."""
        return self._sql.execute("SELECT id, size FROM samples").fetchall()

    def lengths(self) -> Iterator[tuple[str, int]]:
        """(id, length of its file) of every pending row."""
        return iter(self._sql.execute("SELECT id, disk FROM samples").fetchall())

    def increase(self, increments: Mapping[str, int]) -> None:
        """Adds to counters; written once, at the end of the transaction."""
        for name, value in increments.items():
            self._increments[name] = self._increments.get(name, 0) + value

    def counters(self) -> dict[str, int]:
        """All, with `pending` from the rows."""
        own = ("session", _STREAK)
        values = dict(self._sql.execute("SELECT name, value FROM counters WHERE name NOT IN (?, ?)", own))
        values["pending"] = int(self._sql.execute("SELECT count(*) FROM samples").fetchone()[0])
        return values

    def account(self) -> list[tuple[str, str, int, int]]:
        """(verdict, reason, samples, bytes)."""
        return self._sql.execute(
            "SELECT verdict, reason, samples, bytes FROM account ORDER BY 1, 2"
        ).fetchall()

    def reuse_log(self) -> None:
        """Folds the WAL into the database, so that the next commit overwrites it and needs no room."""
        with suppress(sqlite3.OperationalError):
            self._sql.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def empty(self) -> bool:
        """True where nothing is pending."""
        return self._sql.execute("SELECT 1 FROM samples LIMIT 1").fetchone() is None

    def _write_increments(self) -> None:
        self._sql.executemany(
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            list(self._increments.items()),
        )

    def _end_many(self, ends: Sequence[tuple[str, int, str, str]]) -> None:
        """(id, size, verdict, reason) of samples that are pending no more."""
        if not ends:
            return
        cursor = self._sql.execute(
            "INSERT OR REPLACE INTO settled (id, verdict, size, reason) SELECT json_extract(value, '$[0]'), "
            "json_extract(value, '$[2]'), json_extract(value, '$[1]'), json_extract(value, '$[3]') "
            "FROM json_each(?)",
            (json.dumps(ends),),
        )
        last = cursor.lastrowid or 0
        if last // 1000 != (last - len(ends)) // 1000:
            self._sql.execute("DELETE FROM settled WHERE n <= ?", (last - MAX_SETTLED,))
        for _, size, verdict, reason in ends:
            self.increase({_COUNTER_OF.get(verdict, verdict): 1})
            if verdict == "stored":
                self.increase({"bytes_stored": size})
            else:
                self._book(verdict, reason, size)

    def _book(self, verdict: str, reason: str, size: int) -> None:
        """Adds to an account. A reason may name sizes or ids, so of their endless number some are kept."""
        known = self._sql.execute("SELECT 1 FROM account WHERE (verdict, reason) = (?, ?)", (verdict, reason))
        if known.fetchone() is None:
            (lines,) = self._sql.execute("SELECT count(*) FROM account").fetchone()
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
