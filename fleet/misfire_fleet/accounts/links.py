"""Makes links: one-time links that set a password, and signed links that show one picture for a while.

A one-time link's secret is in its fragment (`/welcome#SECRET`), which browsers send to no server, so no proxy
logs it. A signed link names a sample and when it was made; the key is kept in the database, so that `misfire
labels push` and every console have the same.
"""

from __future__ import annotations

from itsdangerous import BadData, URLSafeTimedSerializer
from sqlalchemy import RowMapping, delete, select

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.records import Account, account_name
from misfire_fleet.accounts.secret import MAX_CHARS, hash_of, new_secret
from misfire_fleet.errors import AccountConflictError, AccountError
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.schema import one_time_links, secrets
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import MisfireError

LINK_S = 24 * 3600.0
SIGNED_S = 7 * 86_400
"""Seconds that a signed link works; `misfire labels push` renews those of old tasks."""
_FIRST = ""


class OneTimeLinks:
    """Holds the one-time links of a store."""

    def __init__(self, store: Store, accounts: Accounts) -> None:
        self._store, self._accounts = store, accounts

    def for_first_admin(self, *, lasts_s: float = LINK_S) -> str:
        """Returns the secret of a link that makes the first admin; earlier ones end."""
        return self._add(_FIRST, lasts_s)

    def for_account(self, name: str, *, actor: str, via: str = "", lasts_s: float = LINK_S) -> str:
        """Returns the secret of a link that sets an account's password. Raises NoSuchAccountError."""
        account = self._accounts.get(name)
        change = Change(actor, "account-link", f"account:{account.name}", via=via)
        return self._add(account.name, lasts_s, change)

    def use(self, secret: str, *, name: str, password: str) -> Account:
        """Sets the password that a link is for, and ends the link.

        Args:
            secret: of the link.
            name: of the first admin; ignored for a link of an account.
            password: the new one.

        Raises:
            AccountError: the link or a value will not do; the link can be used again.
        """
        row = self._take(hash_of(secret[:MAX_CHARS]))
        if row is None:
            raise AccountError("this link is wrong, was used, or has expired; ask for another one")
        try:
            if row["account"] != _FIRST:
                return self._accounts.set_password(row["account"], password, actor=row["account"], via="link")
            if not self._accounts.needs_admin():
                raise AccountConflictError("there is an admin already; ask them for an account")
            return self._accounts.add(name, "admin", password=password, actor=account_name(name), via="link")
        except MisfireError:
            # A password that is too short must not cost the link.
            with self._store.database.write() as connection:
                connection.execute(one_time_links.insert(), dict(row))
            raise

    def _take(self, wanted: str) -> RowMapping | None:
        """Ends a link and returns its row: of two who use it at the same moment, one gets it."""
        mine = one_time_links.c.hash == wanted
        query = select(one_time_links).where(mine, one_time_links.c.expires_at > wall_time())
        with self._store.database.write() as connection:
            row = connection.execute(query.with_for_update()).mappings().one_or_none()
            connection.execute(delete(one_time_links).where(mine))
        return row

    def _add(self, account: str, lasts_s: float, change: Change | None = None) -> str:
        now, secret = wall_time(), new_secret()
        row = {
            "hash": hash_of(secret),
            "account": account,
            "created_at": now,
            "expires_at": now + lasts_s,
        }
        with self._store.database.write() as connection:
            old = (one_time_links.c.account == account) | (one_time_links.c.expires_at <= now)
            connection.execute(delete(one_time_links).where(old))
            connection.execute(one_time_links.insert(), row)
            if change is not None:
                record(connection, change)
        return secret


class SignedLinks:
    """Signs links to pictures, and checks them."""

    def __init__(self, store: Store) -> None:
        self._signer = URLSafeTimedSerializer(shared_secret(store, "links"), salt="misfire-picture")

    def query(self, sample: str) -> str:
        """Returns the query string of a link to a sample's bytes, which works for SIGNED_S."""
        return f"link={self._signer.dumps(sample)}"

    def holds(self, sample: str, link: str) -> bool:
        """Returns True if the link is for this sample and has not expired."""
        if not 1 <= len(link) <= 300:
            return False
        try:
            return bool(self._signer.loads(link, max_age=SIGNED_S) == sample)
        except BadData:
            return False


def shared_secret(store: Store, name: str) -> str:
    """Returns a random key that all processes of the store share; made at the first time."""
    query = select(secrets.c.value).where(secrets.c.name == name)
    with store.database.read() as connection:
        found = connection.scalar(query)
    if found is None:
        row = {"name": name, "value": new_secret(), "created_at": wall_time()}
        with store.database.write() as connection:
            # Another process may have made it meanwhile: theirs holds.
            connection.execute(store.database.insert_statement(secrets).values(row).on_conflict_do_nothing())
            found = connection.scalar(query)
    return str(found)
