"""Keeps the tokens of programs: hashed, limited to a role and to areas, with an end, shown once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import RowMapping, func, select

from misfire_fleet.accounts.accounts import account_of
from misfire_fleet.accounts.records import AREAS, Account, Token, account_name
from misfire_fleet.accounts.roles import Role, lesser, role_of, suffices
from misfire_fleet.accounts.secret import hash_of, new_id, new_secret
from misfire_fleet.errors import AccountConflictError, AccountError, NoSuchAccountError
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.schema import accounts, api_tokens
from misfire_runtime.clock import wall_time

PREFIX = "misfire_"
"""Begins every token, so that scanners of repositories recognise one that leaked."""
_TOKEN = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
MAX_DAYS = 730
_DAY_S = 86_400.0
_MOST = 100
_TOUCH_S = 300.0


class Tokens:
    """Holds the tokens of a store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self,
        account: str,
        *,
        title: str,
        role: Role,
        areas: Sequence[str] = (),
        days: float,
        actor: str,
        via: str = "",
    ) -> tuple[Token, str]:
        """Returns a new token and its secret, which is not kept.

        Args:
            account: whose token it is; what the token does is done in this name.
            title: what it is for.
            role: what it may do; at most what the account may.
            areas: parts of the console that it is for; none is all.
            days: it ends after so many.
            actor, via: for the audit log.

        Raises:
            AccountError: a value will not do.
            NoSuchAccountError: there is no such account.
        """
        title = title.strip()
        if not 1 <= len(title) <= 100 or not title.isprintable():
            raise AccountError("title: expected 1 to 100 characters that say what the token is for")
        if not 0 < days <= MAX_DAYS:
            raise AccountError(f"days: a token ends after at most {MAX_DAYS} days")
        unknown = sorted(set(areas) - set(AREAS))
        if unknown:
            raise AccountError(f"areas: {unknown[0]!r} is none of {', '.join(AREAS)}")
        now, secret = wall_time(), new_secret(PREFIX)
        row = {
            "id": new_id(),
            "hash": hash_of(secret),
            "account": account_name(account),
            "title": title,
            "role": role,
            "areas": " ".join(sorted(set(areas))),
            "created_at": now,
            "expires_at": now + days * _DAY_S,
            "revoked_at": None,
            "used_at": None,
        }
        with self._store.database.write() as connection:
            query = select(accounts).where(accounts.c.name == row["account"])
            owner = connection.execute(query).mappings().one_or_none()
            if owner is None:
                raise NoSuchAccountError(f"account {account[:64]!r}: there is none of that name")
            if not suffices(role_of(owner["role"]), role):
                raise AccountError(f"role: {row['account']} is {owner['role']}, and a token may not do more")
            open_ = api_tokens.c.revoked_at.is_(None), api_tokens.c.expires_at > now
            mine = api_tokens.c.account == row["account"]
            if int(connection.scalar(select(func.count()).where(mine, *open_)) or 0) >= _MOST:
                raise AccountConflictError(f"{row['account']} has {_MOST} tokens; revoke some first")
            connection.execute(api_tokens.insert(), row)
            shown = {name: row[name] for name in ("account", "title", "role", "areas", "expires_at")}
            record(connection, Change(actor, "token-add", f"token:{row['id']}", None, shown, via=via))
        return _token(row), secret

    def find(self, secret: str) -> tuple[Token, Account] | None:
        """Returns the token of a secret and its account, if both are good; the role is the lesser of both."""
        if _TOKEN.fullmatch(secret) is None:
            return None
        now = wall_time()
        owner = [column.label(f"account_{column.name}") for column in accounts.c]
        query = (
            select(api_tokens, *owner)
            .join(accounts, accounts.c.name == api_tokens.c.account)
            .where(api_tokens.c.hash == hash_of(secret))
        )
        with self._store.database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        account = account_of({column.name: row[f"account_{column.name}"] for column in accounts.c})
        token = _token(dict(row) | {"role": lesser(role_of(row["role"]), account.role)})
        if account.disabled or token.ended(now):
            return None
        if now - (token.used_at or 0) > _TOUCH_S:
            with self._store.database.write() as connection:
                mine = api_tokens.c.id == token.id
                connection.execute(api_tokens.update().where(mine).values(used_at=now))
        return token, account

    def of(self, account: str | None = None) -> list[Token]:
        """Returns an account's tokens, or all, the newest first."""
        query = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id)
        if account is not None:
            query = query.where(api_tokens.c.account == account)
        with self._store.database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [_token(row) for row in rows]

    def revoke(self, token: str, *, account: str | None = None, actor: str, via: str = "") -> Token:
        """Ends a token; a second time changes nothing.

        Args:
            token: its id.
            account: only if it is this account's.
            actor, via: for the audit log.

        Raises:
            NoSuchAccountError: there is no such token.
        """
        now = wall_time()
        where = [api_tokens.c.id == token[:32].replace("\0", "")]
        if account is not None:
            where.append(api_tokens.c.account == account)
        with self._store.database.write() as connection:
            row = connection.execute(select(api_tokens).where(*where)).mappings().one_or_none()
            if row is None:
                raise NoSuchAccountError(f"token {token[:32]!r}: there is none of that id")
            if row["revoked_at"] is None:
                mine = api_tokens.c.id == row["id"]
                connection.execute(api_tokens.update().where(mine).values(revoked_at=now))
                states = {"revoked_at": None}, {"revoked_at": now}
                record(connection, Change(actor, "token-revoke", f"token:{row['id']}", *states, via=via))
            return _token(dict(row) | {"revoked_at": row["revoked_at"] or now})


def _token(row: RowMapping | dict[str, Any]) -> Token:
    values = {name: row[name] for name in Token.__dataclass_fields__ if name not in ("areas", "role")}
    return Token(**values, role=role_of(str(row["role"])), areas=tuple(str(row["areas"]).split()))
