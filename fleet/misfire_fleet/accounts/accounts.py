"""Adds and changes accounts, and checks passwords; each change is a line of the audit log.

A change of role or password, and disabling, ends the account's sessions in the same transaction. The last
admin who can sign in is neither disabled nor made less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, or_, select

from misfire_fleet.accounts.passwords import Passwords
from misfire_fleet.accounts.records import Account, account_name
from misfire_fleet.accounts.roles import Role, role_of
from misfire_fleet.errors import AccountConflictError, AccountError, NoSuchAccountError
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.schema import accounts, sessions
from misfire_runtime.clock import wall_time


class Accounts:
    """Holds the accounts of a store. Thread-safe.

    Args:
        store: the open store.
        passwords: hashes passwords.
    """

    def __init__(self, store: Store, *, passwords: Passwords | None = None) -> None:
        self._store = store
        self._passwords = passwords or Passwords()

    def all(self) -> list[Account]:
        """Returns all accounts by name."""
        with self._store.database.read() as connection:
            rows = connection.execute(select(accounts).order_by(accounts.c.name)).mappings().all()
        return [account_of(row) for row in rows]

    def get(self, name: str) -> Account:
        """Returns an account. Raises NoSuchAccountError."""
        with self._store.database.read() as connection:
            return account_of(_row(connection, name))

    def needs_admin(self) -> bool:
        """Returns True if no admin can sign in."""
        with self._store.database.read() as connection:
            return not _admins(connection)

    def add(
        self,
        name: str,
        role: Role,
        *,
        password: str | None = None,
        external: tuple[str, str] | None = None,
        actor: str,
        via: str = "",
    ) -> Account:
        """Adds an account.

        Args:
            name: of the account; kept in lower case.
            role: what it may do.
            password: None if it gets one by a link, or has none.
            external: issuer and subject at the identity provider.
            actor, via: for the audit log.

        Raises:
            AccountError: the name or the password will not do.
            AccountConflictError: the name is in use.
        """
        name, now = account_name(name), wall_time()
        kept = None if password is None else self._passwords.hashed(password, name=name)
        issuer, subject = external or (None, None)
        row = {
            "name": name,
            "role": role,
            "password": kept,
            "issuer": issuer,
            "subject": subject,
            "created_at": now,
            "changed_at": now,
        }
        with self._store.database.write() as connection:
            insert = self._store.database.insert_statement(accounts).values(row).on_conflict_do_nothing()
            # Not by rowcount, which psycopg leaves at -1.
            if connection.scalar(insert.returning(accounts.c.name)) is None:
                raise AccountConflictError(f"account {name!r} exists already")
            after = _state(_row(connection, name))
            record(connection, Change(actor, "account-add", f"account:{name}", None, after, via=via))
            return account_of(_row(connection, name))

    def set_role(self, name: str, role: Role, *, actor: str, via: str = "") -> Account:
        """Changes what an account may do, and signs it out everywhere.

        Raises:
            NoSuchAccountError: there is no such account.
            AccountConflictError: it is the last admin.
        """
        return self._change(name, "account-role", {"role": role_of(role)}, actor=actor, via=via)

    def set_disabled(self, name: str, disabled: bool, *, actor: str, via: str = "") -> Account:
        """Disables or enables an account. Raises NoSuchAccountError, AccountConflictError."""
        action = "account-disable" if disabled else "account-enable"
        values = {"disabled_at": wall_time() if disabled else None}
        return self._change(name, action, values, actor=actor, via=via)

    def set_password(
        self, name: str, password: str, *, actor: str, via: str = "", keep_session: str = ""
    ) -> Account:
        """Sets a password, and signs the account out everywhere but in the session `keep_session` (its id).

        Raises:
            AccountError: the password will not do.
            NoSuchAccountError: there is no such account.
        """
        kept = self._passwords.hashed(password, name=account_name(name))
        return self._change(
            name, "account-password", {"password": kept}, actor=actor, via=via, keep_session=keep_session
        )

    def check_password(self, name: str, password: str) -> Account | None:
        """Returns the account if name and password are right and it is enabled.

        It takes as long for a name that does not exist. Raises TooManyRequestsError.
        """
        try:
            wanted = account_name(name)
        except AccountError:
            wanted = ""
        query = select(accounts).where(accounts.c.name == wanted)
        with self._store.database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        right = self._passwords.matches(password, None if row is None else row["password"])
        if row is None or not right or row["disabled_at"] is not None:
            return None
        return account_of(row)

    def signed_in_externally(self, issuer: str, subject: str, name: str, role: Role) -> Account:
        """Returns the account of a person whom the identity provider knows; adds it at the first time.

        Its role follows the provider's claim. An account of that name that belongs to somebody else is never
        handed over.

        Raises:
            AccountConflictError: the name belongs to another account.
            AccountError: the name will not do, or the account is disabled.
        """
        where = (accounts.c.issuer == issuer, accounts.c.subject == subject)
        with self._store.database.read() as connection:
            row = connection.execute(select(accounts).where(*where)).mappings().one_or_none()
        if row is None:
            return self.add(name, role, external=(issuer, subject), actor="oidc", via="oidc")
        if row["disabled_at"] is not None:
            raise AccountError(f"account {row['name']!r} is disabled")
        if row["role"] != role:
            return self.set_role(row["name"], role, actor="oidc", via="oidc")
        return account_of(row)

    def _change(
        self,
        name: str,
        action: str,
        values: Mapping[str, Any],
        *,
        actor: str,
        via: str,
        keep_session: str = "",
    ) -> Account:
        now = wall_time()
        with self._store.database.write() as connection:
            # Of two admins who make each other less at the same moment, the second has to see the first.
            connection.execute(select(accounts.c.name).where(accounts.c.role == "admin").with_for_update())
            before = _row(connection, name)
            had = _admins(connection)
            mine = accounts.c.name == before["name"]
            connection.execute(accounts.update().where(mine).values(**values, changed_at=now))
            if had and not _admins(connection):
                raise AccountConflictError(f"{name}: the last admin has to stay one; make another one first")
            ends = sessions.c.account == before["name"], sessions.c.id != keep_session
            connection.execute(delete(sessions).where(*ends))
            after = _row(connection, name)
            states = _state(before), _state(after)
            record(connection, Change(actor, action, f"account:{before['name']}", *states, via=via))
            return account_of(after)


def account_of(row: RowMapping | dict[str, Any]) -> Account:
    """Returns the account of a row of `accounts`."""
    return Account(
        name=row["name"],
        role=role_of(row["role"]),
        has_password=row["password"] is not None,
        external=row["subject"] is not None,
        disabled=row["disabled_at"] is not None,
        created_at=row["created_at"],
        changed_at=row["changed_at"],
        seen_at=row["seen_at"],
    )


def _row(connection: Connection, name: str) -> RowMapping:
    query = select(accounts).where(accounts.c.name == account_name(name))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NoSuchAccountError(f"account {name[:64]!r}: there is none of that name")
    return row


def _state(row: RowMapping) -> dict[str, Any]:
    """Returns what the audit log keeps of an account: no hash of a password."""
    return {
        "role": row["role"],
        "disabled": row["disabled_at"] is not None,
        "has_password": row["password"] is not None,
        "external": row["subject"] is not None,
    }


def _admins(connection: Connection) -> int:
    """Returns how many admins can sign in."""
    can = or_(accounts.c.password.is_not(None), accounts.c.subject.is_not(None))
    query = select(func.count()).where(accounts.c.role == "admin", accounts.c.disabled_at.is_(None), can)
    return int(connection.scalar(query) or 0)
