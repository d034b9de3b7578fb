"""Stores for tests: on SQLite with a folder, on PostgreSQL with S3, and what goes into them."""

from __future__ import annotations

import psycopg

from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs, ObjectBlobs
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import Clock
from misfire_runtime.testing import make_offer
from proving_ground.services import ObjectStore, Postgres

NOON = 1_700_000_000.0


def open_postgres(database: Postgres, bucket: ObjectStore) -> Store:
    return Store.open(database.url, f"{bucket.url}/fleet", blob_options=bucket.options)


def without_tables(database: Postgres) -> None:
    """Takes everything out of the database, whatever a test left there."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def again(store: Store) -> Store:
    """The same store as another process would open it."""
    if isinstance(store.blobs, FolderBlobs):
        return Store.open_folder(store.blobs.root.parent)
    url = store.database.engine.url.render_as_string(hide_password=False)
    assert isinstance(store.blobs, ObjectBlobs)
    return Store.open(url, store.blobs.url, blob_options=store.blobs.options)


def at(second: float) -> Clock:
    """So many seconds after NOON by the vehicle's clock."""
    return Clock(wall=NOON + second, monotonic=0, boot_id="")


def sample(number: int, **fields: object) -> NewSample:
    data = b"pixels of sample %d" % number
    return NewSample(make_offer(data, **fields), data, 640, 480, "collector-1")
