"""Schema migrations: yoyo applies the files, one run at a time, and checksums show which were edited afterwards.

Yoyo applies a file and records it in two transactions (its backends/base.py): if a run is killed in between, the next
one applies the file again. So every migration is written to run twice.
"""

import glob
import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
from yoyo import read_migrations
from yoyo.exceptions import BadMigration, MigrationConflict
from yoyo.migrations import Migration, default_migration_table, topological_sort

from api.database.files import MIGRATIONS_DIRECTORY
from api.database.migration_session import (
    LOCK_TIMEOUT_SECONDS,
    Report,
    connected,
    connection_arguments,
    exclusive,
    explained,
    explained_connecting,
)
from api.database.yoyo_backend import CHECKSUM_TABLE, Backend, checksum, connect
from api.errors import MigrationError
from api.neon.drivers import DatabaseURL


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration. `edited`: its file has changed since it was applied. `missing`: it was applied and has no file."""

    id: str  # The file's name without ".sql".
    state: Literal["applied", "pending", "edited", "missing"]
    applied_at: datetime | None  # In UTC; None while pending.


def migrate(
    url: DatabaseURL,
    *,
    directory: Path = MIGRATIONS_DIRECTORY,
    report: Report = print,
    lock_timeout: float = LOCK_TIMEOUT_SECONDS,
) -> list[str]:
    """Apply the pending migrations of `directory` one by one and return their ids; `report` gets lines of progress.

    Waits up to `lock_timeout` seconds for any other run to end. Raises MigrationError if that does not suffice or if a
    migration fails; and, before any is applied, if an applied one was edited or the URL is that of a pooler.
    """
    migrations = _read(directory)
    with _exclusive(url, lock_timeout, report) as (backend, lock):
        statuses = _compare(migrations, lock)
        for each in statuses:
            if each.state == "missing":
                report(f"{each.id} was applied and is not in {directory}: is this release older than the database?")
            if each.state == "edited":
                raise _edited(migrations[each.id], each)
            if each.state == "applied":
                with explained("cannot record a checksum"):  # The `yoyo` command records none.
                    backend.record_checksum(migrations[each.id])
        pending = [each.id for each in statuses if each.state == "pending"]
        for id in pending:
            report(f"applying {id}")
            started = time.perf_counter()
            with explained(migrations[id].path, lock), redirect_stdout(io.StringIO()):
                backend.apply_one(migrations[id])
            report(f"applied in {time.perf_counter() - started:.1f} s")
        if left := [each.id for each in _compare(migrations, lock) if each.state == "pending"]:
            raise MigrationError(f"still not applied, although nothing failed: {', '.join(left)}")
    return pending


def rollback(
    url: DatabaseURL,
    *,
    directory: Path = MIGRATIONS_DIRECTORY,
    report: Report = print,
    lock_timeout: float = LOCK_TIMEOUT_SECONDS,
) -> str | None:
    """Undo the migration that was applied last, by its `.rollback.sql` file; return its id, or None if there is none.

    The statements of that file run in their order. Raises MigrationError as migrate does, also if the migration was
    edited, has no file or no rollback file.
    """
    migrations = _read(directory)
    with _exclusive(url, lock_timeout, report) as (backend, lock):
        applied = [each for each in _compare(migrations, lock) if each.state != "pending"]
        if not applied:
            return None
        newest = applied[-1]
        if newest.state == "missing":
            raise MigrationError(f"{newest.id} was applied last and is not in {directory}: use the release that has it")
        migration = migrations[newest.id]
        if newest.state == "edited":
            raise _edited(migration, newest)
        file = Path(migration.path).with_suffix(".rollback.sql")
        if not file.is_file():
            raise MigrationError(f"{newest.id} cannot be undone without {file}: write it, or a new migration")
        report(f"rolling back {newest.id}")
        with explained(str(file), lock), redirect_stdout(io.StringIO()):
            backend.rollback_one(migration)
    return newest.id


def status(url: DatabaseURL, *, directory: Path = MIGRATIONS_DIRECTORY) -> list[MigrationStatus]:
    """List the applied migrations, the oldest first, then the pending ones in the order in which they will be applied.

    It only reads: it works on a database that was never migrated and with a read-only role. Raises MigrationError.
    """
    migrations = _read(directory)
    with connected(url) as connection:
        return _compare(migrations, connection)


@contextmanager
def _exclusive(url: DatabaseURL, lock_timeout: float, report: Report) -> Iterator[tuple[Backend, psycopg.Connection]]:
    """Lock out other runs and make the tables that record migrations; yield yoyo's connection and the lock's.

    Yoyo's own lock is a committed row, which a killed run leaves behind. The session's lock covers the whole run, so a
    row that is found under it is stale. Raises MigrationError.
    """
    # Progress goes to `report` alone. Yoyo also prints the rows that a migration selects, which redirect_stdout drops.
    logging.getLogger("yoyo").setLevel(logging.ERROR)
    with exclusive(url, lock_timeout, report) as lock, _connect(url) as backend:
        with explained("cannot prepare the database for migrations", lock):
            _require_public(lock)
            backend.execute(
                f"create table if not exists {CHECKSUM_TABLE} (migration_id text, checksum text not null, "
                f"constraint {CHECKSUM_TABLE}_pkey primary key (migration_id))"
            )
            backend.create_lock_table()
            for (pid,) in backend.execute(f"select pid from {backend.lock_table}").fetchall():  # noqa: S608
                report(f"clearing the lock of a run that was killed (process {pid})")
            backend.break_lock()
            backend.ensure_internal_schema_updated()
        yield backend, lock


def _require_public(connection: psycopg.Connection) -> None:
    """Raise MigrationError if migrations are recorded in another schema: earlier releases went by the search_path."""
    for (schema,) in connection.execute(
        "select schemaname from pg_catalog.pg_tables where tablename = %s and schemaname <> 'public'"
        " and not exists (select from pg_catalog.pg_tables where tablename = %s and schemaname = 'public')",
        [CHECKSUM_TABLE, CHECKSUM_TABLE],
    ).fetchall():
        raise MigrationError(
            f"the migrations of this database are recorded in the schema {schema}, and the server looks for its tables "
            f"in public: move each table of users-api there first, with: alter table {schema}.NAME set schema public"
        )


def _connect(url: DatabaseURL) -> Backend:
    with explained_connecting():
        return connect(connection_arguments(url))


def _read(directory: Path) -> dict[str, Migration]:
    """Read the migrations, by id, in the order in which they are applied. Raises MigrationError for a faulty file."""
    file = str(directory)
    try:
        migrations = read_migrations(glob.escape(file))
        for migration in migrations:
            file = migration.path
            migration.load()
        file = str(directory)
        by_id = {migration.id: migration for migration in topological_sort(migrations)}
    except (BadMigration, MigrationConflict, ValueError, KeyError, OSError) as error:
        raise MigrationError(f"{file} cannot be read as a migration: {type(error).__name__}: {error}") from error
    if not by_id or migrations.post_apply:
        raise MigrationError(f"{directory} must have migrations in it, and no post-apply scripts")
    return by_id


def _compare(migrations: dict[str, Migration], connection: psycopg.Connection) -> list[MigrationStatus]:
    """Compare the files with what the database has recorded; the order is that of `status`. Raises MigrationError."""

    def rows(table: str, columns: str) -> list[tuple[Any, ...]]:
        # With the schema: a pooled session keeps the search_path that another client has set.
        if connection.execute("select to_regclass(%s)", [f"public.{table}"]).fetchone() == (None,):
            return []
        return connection.execute(f"select {columns} from public.{table} order by 2".encode()).fetchall()  # noqa: S608

    def state(id: str) -> Literal["applied", "edited", "missing"]:
        if id not in migrations:
            return "missing"
        current = checksum(migrations[id])
        return "applied" if checksums.get(id, current) == current else "edited"

    with explained("cannot read which migrations are applied"):
        checksums = dict(rows(CHECKSUM_TABLE, "migration_id, checksum"))
        applied = dict(rows(default_migration_table, "migration_id, applied_at_utc"))
    return [
        *(MigrationStatus(id, state(id), at.replace(tzinfo=UTC)) for id, at in applied.items()),
        *(MigrationStatus(id, "pending", None) for id in migrations if id not in applied),
    ]


def _edited(migration: Migration, status: MigrationStatus) -> MigrationError:
    return MigrationError(
        f"{migration.path} was edited after it was applied ({status.applied_at:%Y-%m-%d %H:%M:%S} UTC): "
        "restore it, and write a new migration for the change"
    )
