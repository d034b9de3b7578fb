"""Keeps the sessions of browsers: rows with the hash of the cookie, an idle limit and an absolute one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, RowMapping, delete, select

from misfire_fleet.accounts.records import Account, Session
from misfire_fleet.accounts.roles import role_of
from misfire_fleet.accounts.secret import MAX_CHARS, hash_of, new_id, new_secret
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.schema import accounts, sessions
from misfire_runtime.clock import wall_time

_TOUCHES = 100
"""`seen_at` is written this many times in the idle limit: a write for every picture of a page is too many."""
_PER_ACCOUNT = 50
"""Sessions of one account; the oldest end first."""


@dataclass(frozen=True)
class SessionLimits:
    """Holds how long a session lasts: without a request, and at most."""

    idle_s: float = 12 * 3600.0
    absolute_s: float = 7 * 86_400.0


class Sessions:
    """Holds the sessions of a store. Thread-safe."""

    def __init__(self, store: Store, *, limits: SessionLimits | None = None) -> None:
        self._store = store
        self.limits = limits or SessionLimits()

    def start(self, account: Account, *, address: str, agent: str, replaces: str = "", via: str = "") -> str:
        """Returns the secret of a new session, for the cookie.

        Args:
            account: who signed in.
            address, agent: of the browser.
            replaces: the secret of the session that the browser had; it ends.
            via: how they signed in, for the audit log.
        """
        now, secret, name = wall_time(), new_secret(), new_id()
        row = {
            "hash": hash_of(secret),
            "id": name,
            "account": account.name,
            "created_at": now,
            "seen_at": now,
            "expires_at": now + self.limits.absolute_s,
            "address": address[:64],
            "agent": agent[:200].replace("\0", ""),
        }
        with self._store.database.write() as connection:
            connection.execute(delete(sessions).where(self._over(now)))
            if replaces:
                connection.execute(delete(sessions).where(sessions.c.hash == hash_of(replaces[:MAX_CHARS])))
            connection.execute(sessions.insert(), row)
            newest = select(sessions.c.hash).where(sessions.c.account == account.name)
            kept = newest.order_by(sessions.c.created_at.desc()).limit(_PER_ACCOUNT)
            oldest = sessions.c.account == account.name, sessions.c.hash.not_in(kept)
            connection.execute(delete(sessions).where(*oldest))
            mine = accounts.c.name == account.name
            connection.execute(accounts.update().where(mine).values(seen_at=now))
            detail = {"session": name, "address": row["address"]}
            record(
                connection, Change(account.name, "sign-in", f"account:{account.name}", detail=detail, via=via)
            )
        return secret

    def find(self, secret: str) -> Session | None:
        """Returns the session of a cookie, if it has not expired and its account is enabled."""
        if not secret or len(secret) > MAX_CHARS:
            return None
        now = wall_time()
        query = (
            select(sessions, accounts.c.role, accounts.c.disabled_at)
            .join(accounts, accounts.c.name == sessions.c.account)
            .where(sessions.c.hash == hash_of(secret))
        )
        with self._store.database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None or row["disabled_at"] is not None or self._is_over(row, now):
            return None
        if now - row["seen_at"] > self.limits.idle_s / _TOUCHES:
            with self._store.database.write() as connection:
                mine = sessions.c.hash == row["hash"]
                connection.execute(sessions.update().where(mine).values(seen_at=now))
        return _session(row)

    def of(self, account: str) -> list[Session]:
        """Returns an account's sessions, the newest first."""
        now = wall_time()
        query = (
            select(sessions, accounts.c.role)
            .join(accounts, accounts.c.name == sessions.c.account)
            .where(sessions.c.account == account)
            .order_by(sessions.c.created_at.desc())
        )
        with self._store.database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [_session(row) for row in rows if not self._is_over(row, now)]

    def end(self, account: str, *, only: str = "", actor: str, via: str = "") -> int:
        """Ends all sessions of an account, or the one with the id `only`; returns how many."""
        where = [sessions.c.account == account]
        if only:
            where.append(sessions.c.id == only)
        with self._store.database.write() as connection:
            ended = connection.execute(delete(sessions).where(*where)).rowcount
            if ended:
                detail = {"session": only} if only else {"sessions": ended}
                change = Change(actor, "sign-out", f"account:{account}", detail=detail, via=via)
                record(connection, change)
        return int(ended)

    def _over(self, now: float) -> ColumnElement[bool]:
        return (sessions.c.expires_at <= now) | (sessions.c.seen_at <= now - self.limits.idle_s)

    def _is_over(self, row: RowMapping, now: float) -> bool:
        return bool(row["expires_at"] <= now or row["seen_at"] <= now - self.limits.idle_s)


def _session(row: RowMapping) -> Session:
    return Session(
        id=row["id"],
        account=row["account"],
        role=role_of(row["role"]),
        created_at=row["created_at"],
        seen_at=row["seen_at"],
        expires_at=row["expires_at"],
        address=row["address"],
        agent=row["agent"],
    )
