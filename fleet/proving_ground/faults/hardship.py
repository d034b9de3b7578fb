"""Takes from a running collector or its database what it needs, and gives it back."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Literal

import psycopg

Want = Literal["memory", "descriptors"]

_KINDS: dict[Want, int] = {"memory": resource.RLIMIT_AS, "descriptors": resource.RLIMIT_NOFILE}
_FEW_FILES = 8
"""A new file takes the lowest free number, which must be below the limit. A limit of the number of open files
would leave those that were closed since, and the gaps between them."""

RENEW = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'"
)
"""Ends the connections of a pool, so that settings of the database reach those that take their place."""


WAITING = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
"""Ends the connections that wait for a lock, in the middle of their work."""


def starve(pid: int, want: Want) -> None:
    """Limits the process to the memory that it has now, or leaves it no file descriptor to open."""
    kind = _KINDS[want]
    # Only the soft limit moves: raising a hard one again needs rights.
    _soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (_mapped(pid) if want == "memory" else _FEW_FILES, hard))


def relieve(pid: int, want: Want) -> None:
    """Takes the limit away."""
    kind = _KINDS[want]
    _soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (hard, hard))


def ask(address: str, *statements: str) -> None:
    """Runs statements as the owner of a PostgreSQL database, who may write even if it is read-only."""
    with psycopg.connect(f"{address}?options=-cdefault_transaction_read_only%3Doff", autocommit=True) as link:
        for statement in statements:
            link.execute(statement.encode())


def seal(address: str, *, shut: bool) -> None:
    """Makes a PostgreSQL database read-only, or writable again."""
    value = "on" if shut else "off"
    name = address.rpartition("/")[2]
    ask(address, f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}', RENEW)


def _mapped(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()
