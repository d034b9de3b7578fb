"""Keeps what people collect: pins, named selections of samples, and saved views of the gallery.

A selection is what a person fills, sample by sample; a snapshot is made of it once, and does not change.
Pins and selections go with their samples when those are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, or_, select

from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.schema import pins, samples, selection_samples, selections, views
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError

MAX_SAMPLES = 20_000
"""Samples of a selection: as many as `--where ids=` takes."""
MAX_VIEWS = 200
"""Saved views of a person, and selections of a store."""
MAX_QUERY = 4000
_NAME = re.compile(r"[^\W_][\w .@+-]{0,39}")
_ACTOR = 64


@dataclass(frozen=True)
class SavedView:
    """A gallery with its filters, under a name. `query`: as in its address."""

    owner: str
    name: str
    query: str
    shared: bool
    created_at: float


@dataclass(frozen=True)
class Selection:
    """A named selection and its number of samples that are in the store."""

    name: str
    owner: str
    created_at: float
    count: int


class Collected:
    """Adds, removes and lists them. Thread-safe, as the store is."""

    def __init__(self, store: Store) -> None:
        self._database = store.database

    def pin(self, ids: Sequence[str], *, actor: str) -> list[str]:
        """Pins samples; returns those that were not pinned before."""
        with self._database.write() as connection:
            known = _known(connection, ids)
            there = set(
                connection.scalars(select(pins.c.sample).where(one_of(pins.c.sample, known, on=connection)))
            )
            fresh = [each for each in known if each not in there]
            rows = [{"sample": each, "actor": actor[:_ACTOR], "at": wall_time()} for each in fresh]
            if rows:
                connection.execute(self._database.insert_statement(pins).on_conflict_do_nothing(), rows)
        return fresh

    def unpin(self, ids: Sequence[str]) -> list[str]:
        """Takes pins away; returns the samples that had one."""
        with self._database.write() as connection:
            chosen = one_of(pins.c.sample, list(ids), on=connection)
            there = list(connection.scalars(select(pins.c.sample).where(chosen)))
            connection.execute(delete(pins).where(chosen))
        return there

    def pinned_by(self, sample: str) -> tuple[str, float] | None:
        """Returns who pinned a sample, and when; None if nobody did."""
        with self._database.read() as connection:
            row = connection.execute(select(pins).where(pins.c.sample == sample)).one_or_none()
        return None if row is None else (row.actor, row.at)

    def add(self, name: str, ids: Sequence[str], *, actor: str) -> int:
        """Adds samples to a selection, which is made if it is new; returns how many it did not have.

        Raises:
            ConfigError: the name is none, or there are too many samples or selections.
        """
        _require_name("selection", name)
        with self._database.write() as connection:
            known = _known(connection, ids)
            self._make(connection, name, actor)
            own = selection_samples.c.selection == name
            count = connection.scalar(select(func.count()).select_from(selection_samples).where(own)) or 0
            query = select(selection_samples.c.sample).where(
                own, one_of(selection_samples.c.sample, known, on=connection)
            )
            there = set(connection.scalars(query))
            fresh = [each for each in known if each not in there]
            if count + len(fresh) > MAX_SAMPLES:
                raise ConfigError(f"selection {name!r}: it would have more than {MAX_SAMPLES:,} samples")
            now = wall_time()
            rows = [{"selection": name, "sample": each, "actor": actor[:_ACTOR], "at": now} for each in fresh]
            if rows:
                statement = self._database.insert_statement(selection_samples)
                connection.execute(statement.on_conflict_do_nothing(), rows)
        return len(fresh)

    def remove(self, name: str, ids: Sequence[str]) -> int:
        """Takes samples out of a selection; returns how many were in it."""
        with self._database.write() as connection:
            return connection.execute(
                delete(selection_samples).where(
                    selection_samples.c.selection == name.replace("\0", ""),
                    one_of(selection_samples.c.sample, list(ids), on=connection),
                )
            ).rowcount

    def drop(self, name: str) -> bool:
        """Removes a selection, not its samples; returns False if there is none."""
        name = name.replace("\0", "")
        with self._database.write() as connection:
            connection.execute(delete(selection_samples).where(selection_samples.c.selection == name))
            return bool(connection.execute(delete(selections).where(selections.c.name == name)).rowcount)

    def selections(self) -> list[Selection]:
        """Returns all selections, the newest first."""
        # With samples: a selection counts what is still in the store.
        counts = (
            select(selection_samples.c.selection, func.count().label("members"))
            .join(samples, samples.c.id == selection_samples.c.sample)
            .group_by(selection_samples.c.selection)
        )
        with self._database.read() as connection:
            known = {row.selection: int(row.members) for row in connection.execute(counts)}
            query = select(selections).order_by(selections.c.created_at.desc(), selections.c.name)
            return [
                Selection(row.name, row.owner, row.created_at, known.get(row.name, 0))
                for row in connection.execute(query)
            ]

    def selection_ids(self, name: str) -> list[str]:
        """Returns the ids of a selection's samples that are in the store, sorted."""
        query = (
            select(samples.c.id)
            .join(selection_samples, selection_samples.c.sample == samples.c.id)
            .where(selection_samples.c.selection == name.replace("\0", ""))
            .order_by(samples.c.id)
        )
        with self._database.read() as connection:
            return list(connection.scalars(query))

    def ids_of(self, seqs: Sequence[int]) -> list[str]:
        """Returns the ids of rows by their `seq`, sorted."""
        with self._database.read() as connection:
            query = select(samples.c.id).where(one_of(samples.c.seq, list(seqs), on=connection))
            return sorted(connection.scalars(query))

    def save_view(self, name: str, query: str, *, owner: str, shared: bool) -> None:
        """Saves a view of a person, in place of theirs of that name. Raises ConfigError."""
        _require_name("view", name)
        if len(query) > MAX_QUERY or "\0" in query:
            raise ConfigError(f"view {name!r}: its address has more than {MAX_QUERY} characters")
        row = {
            "owner": owner[:_ACTOR],
            "name": name,
            "query": query,
            "shared": shared,
            "created_at": wall_time(),
        }
        with self._database.write() as connection:
            own = select(func.count()).select_from(views)
            if (connection.scalar(own.where(views.c.owner == owner[:_ACTOR])) or 0) >= MAX_VIEWS:
                raise ConfigError(f"you have {MAX_VIEWS} views; delete one")
            self._database.upsert(connection, views, [row])

    def drop_view(self, name: str, *, owner: str, any_owner: bool = False) -> bool:
        """Removes a view of a person, or with `any_owner` a shared one; returns False if there is none."""
        own = views.c.owner == owner[:_ACTOR]
        allowed = or_(own, views.c.shared) if any_owner else own
        with self._database.write() as connection:
            statement = delete(views).where(views.c.name == name.replace("\0", ""), allowed)
            return bool(connection.execute(statement).rowcount)

    def views(self, owner: str) -> list[SavedView]:
        """Returns the views of a person and the shared ones, by name."""
        query = select(views).where(or_(views.c.owner == owner[:_ACTOR], views.c.shared))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(views.c.name, views.c.owner)).mappings()
            return [SavedView(**row) for row in rows]

    def _make(self, connection: Connection, name: str, actor: str) -> None:
        if connection.scalar(select(selections.c.name).where(selections.c.name == name)) is not None:
            return
        if (connection.scalar(select(func.count()).select_from(selections)) or 0) >= MAX_VIEWS:
            raise ConfigError(f"there are {MAX_VIEWS} selections; delete one")
        row = {"name": name, "owner": actor[:_ACTOR], "created_at": wall_time()}
        connection.execute(self._database.insert_statement(selections).on_conflict_do_nothing(), [row])


def _known(connection: Connection, ids: Sequence[str]) -> list[str]:
    query = select(samples.c.id).where(one_of(samples.c.id, list(ids), on=connection))
    return sorted(connection.scalars(query))


def _require_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name[:60]!r}: a name has 1 to 40 letters, digits, spaces and . - _ @ +, "
            "and begins with a letter or digit"
        )
