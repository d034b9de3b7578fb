"""Says in conditions what people collected, and takes deleted samples out of it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, select

from misfire_fleet.store.database import one_of
from misfire_fleet.store.schema import pins, samples, selection_samples


def is_in_selection(name: str) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that a selection holds it."""
    query = select(selection_samples.c.sample).where(
        selection_samples.c.sample == samples.c.id, selection_samples.c.selection == name
    )
    return query.correlate(samples).exists()


def is_pinned() -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that somebody pinned it."""
    return select(pins.c.sample).where(pins.c.sample == samples.c.id).correlate(samples).exists()


def uncollect(connection: Connection, ids: Sequence[str]) -> None:
    """Removes samples from pins and selections."""
    for table in (pins, selection_samples):
        connection.execute(delete(table).where(one_of(table.c.sample, ids, on=connection)))
