"""Runs migrations on the connection that `store.database.upgrade` brings; there is no other way in."""

from alembic import context

from misfire_fleet.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
