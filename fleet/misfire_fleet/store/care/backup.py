"""Backs up the database while the fleet runs. Blobs, offers and ledger are files: copy them as files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from misfire_fleet.errors import StoreError
from misfire_fleet.store.care.integrity import sqlite_file
from misfire_runtime.files import replace_durably


def backup(database: str | Path, file: Path) -> int:
    """Writes a backup of the database to `file` and returns its size in bytes.

    SQLite: a complete, compact database at one point in time, checked before it is renamed to `file`.
    PostgreSQL: the output of `pg_dump --format=custom`. An existing file is replaced only by a complete one.

    Args:
        database: path of an SQLite file, or the URL of a database.
        file: path of the backup.

    Raises:
        StoreError: the backup failed; `file` is unchanged.
    """
    source = sqlite_file(database)
    # Beside the file: a rename is atomic only within one file system.
    part = file.with_name(file.name + ".part")
    if not file.parent.is_dir():
        raise StoreError(f"{file.parent}: there is no such folder")
    try:
        if source is None:
            _dump(make_url(str(database)), part)
        else:
            _copy(source, part, file)
        replace_durably(part, file)
        return file.stat().st_size
    except OSError as error:
        raise StoreError(f"{file}: the backup cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _copy(source: Path, part: Path, file: Path) -> None:
    if not source.is_file():
        raise StoreError(f"{source}: there is no database to back up")
    if file.exists() and file.samefile(source):
        raise StoreError(f"{file} is the database itself; name another file")
    part.unlink(missing_ok=True)
    try:
        with closing(_opened(source)) as connection:
            # VACUUM INTO reads one snapshot. A copied file would lack what is still in the -wal file.
            connection.execute("VACUUM INTO ?", (str(part),))
        # Checked before it replaces an older backup.
        with closing(_opened(part)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{source}: cannot be backed up ({error}); see misfire fleet check") from error
    if said != "ok":
        raise StoreError(f"{source}: the backup is damaged ({said})")


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30.0, isolation_level=None)


def _dump(url: URL, part: Path) -> None:
    """Runs pg_dump. The password is passed in the environment: every user can read a process's arguments."""
    program = shutil.which("pg_dump")
    if program is None:
        raise StoreError("PostgreSQL is backed up by pg_dump, which is not here; install postgresql-client")
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = os.environ | ({} if url.password is None else {"PGPASSWORD": str(url.password)})
    command = [program, "--format=custom", f"--file={part}", f"--dbname={plain}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StoreError(f"pg_dump: {said}")
