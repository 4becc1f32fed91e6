"""Schema migrations: yoyo applies the files, one run at a time, and checksums show which were edited afterwards.

Yoyo applies a file and records it in two transactions (its backends/base.py): if a run is killed in between, the next
one applies the file again. So every migration is written to run twice.
"""

import glob
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
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
from api.database.yoyo_backend import CHECKSUM_TABLE, Backend, checksum, connect
from api.neon.drivers import DatabaseURL

Report = Callable[[str], None]

# An advisory lock is named by a signed 64-bit number: the first eight bytes of the SHA-256 of "users-api migrations".
_LOCK_KEY = int.from_bytes(hashlib.sha256(b"users-api migrations").digest()[:8], "big", signed=True)
_LOCK_POLL_SECONDS = 0.2
# The URL's own values win. libpq waits for ever by default. The lock's connection is idle while another one works, for
# longer than some networks keep an idle connection.
_CONNECTION_DEFAULTS = {"connect_timeout": "15", "keepalives_idle": "30", "application_name": "users-api migrate"}


class MigrationError(Exception):
    """A failed migration: the message names the file, the cause and the remedy, and holds no password and no URL."""


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration. `edited`: its file has changed since it was applied. `missing`: it was applied and has no file."""

    id: str  # The file's name without ".sql".
    state: Literal["applied", "pending", "edited", "missing"]
    applied_at: datetime | None  # In UTC; None while pending.


def migrate(url: DatabaseURL, *, directory: Path = MIGRATIONS_DIRECTORY, report: Report = print) -> list[str]:
    """Apply the pending migrations of `directory` one by one and return their ids; `report` gets lines of progress.

    Waits for any other run to end. Raises MigrationError if one fails; and, before any is applied, if an applied
    one was edited.
    """
    migrations = _read(directory)
    with _exclusive(url, report) as backend:
        statuses = _compare(migrations, backend)
        for each in statuses:
            if each.state == "missing":
                report(f"{each.id} was applied and is not in {directory}: is this release older than the database?")
            if each.state == "edited":
                raise _edited(migrations[each.id], each)
            if each.state == "applied":
                with _explained("cannot record a checksum"):  # The `yoyo` command records none.
                    backend.record_checksum(migrations[each.id])
        pending = [each.id for each in statuses if each.state == "pending"]
        for id in pending:
            report(f"applying {id}")
            started = time.perf_counter()
            with _explained(migrations[id].path), redirect_stdout(io.StringIO()):
                backend.apply_one(migrations[id])
            report(f"applied in {time.perf_counter() - started:.1f} s")
        if left := [each.id for each in _compare(migrations, backend) if each.state == "pending"]:
            raise MigrationError(f"still not applied, although nothing failed: {', '.join(left)}")
    return pending


def rollback(url: DatabaseURL, *, directory: Path = MIGRATIONS_DIRECTORY, report: Report = print) -> str | None:
    """Undo the migration that was applied last, by its `.rollback.sql` file; return its id, or None if there is none.

    The statements of that file run in their order. Raises MigrationError, also if the migration was edited, has no file
    or no rollback file.
    """
    migrations = _read(directory)
    with _exclusive(url, report) as backend:
        applied = [each for each in _compare(migrations, backend) if each.state != "pending"]
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
        with _explained(str(file)), redirect_stdout(io.StringIO()):
            backend.rollback_one(migration)
    return newest.id


def status(url: DatabaseURL, *, directory: Path = MIGRATIONS_DIRECTORY) -> list[MigrationStatus]:
    """List the applied migrations, the oldest first, then the pending ones in the order in which they will be applied.

    It only reads: it works on a database that was never migrated and with a read-only role. Raises MigrationError.
    """
    migrations = _read(directory)
    with _connect(url) as backend:
        return _compare(migrations, backend)


def _connect(url: DatabaseURL) -> Backend:
    """Connect. Raises MigrationError."""
    arguments = _CONNECTION_DEFAULTS | url.psycopg_arguments()
    try:
        return connect(arguments)
    except psycopg.Error as error:
        # libpq writes a line for every address that it tried.
        raise MigrationError(f"cannot connect to the database: {' '.join(str(error).split())}") from error


@contextmanager
def _exclusive(url: DatabaseURL, report: Report) -> Iterator[Backend]:
    """Wait for any other run to end and lock out further ones; make the tables that record migrations.

    Yoyo's own lock is a committed row, which a killed run leaves behind; an advisory lock ends with its connection. So
    an advisory lock covers the whole run, and a row that is found under it is stale. Raises MigrationError.
    """
    if url.pooled:
        raise MigrationError(
            "migrations need a session, for their lock, and this URL is that of a transaction pooler: "
            "set DIRECT_URL to the same URL without -pooler in its host"
        )
    # Progress goes to `report` alone. Yoyo also prints the rows that a migration selects, which redirect_stdout drops.
    logging.getLogger("yoyo").setLevel(logging.ERROR)
    with _connect(url) as lock, _connect(url) as backend:
        with _explained("cannot prepare the database for migrations"):
            waiting = False
            # Polled: a statement that waits for the lock holds a snapshot, and a `create index concurrently` of the
            # other run would wait for that snapshot. PostgreSQL does not detect this deadlock.
            while not lock.execute(f"select pg_try_advisory_lock({_LOCK_KEY})").fetchone()[0]:
                if not waiting:
                    report("another migration is running: waiting")
                waiting = True
                time.sleep(_LOCK_POLL_SECONDS)
            backend.execute(
                f"create table if not exists {CHECKSUM_TABLE} (migration_id text, checksum text not null, "
                f"constraint {CHECKSUM_TABLE}_pkey primary key (migration_id))"
            )
            backend.create_lock_table()
            for (pid,) in backend.execute(f"select pid from {backend.lock_table}").fetchall():  # noqa: S608
                report(f"clearing the lock of a run that was killed (process {pid})")
            backend.break_lock()
            backend.ensure_internal_schema_updated()
        yield backend


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


def _compare(migrations: dict[str, Migration], backend: Backend) -> list[MigrationStatus]:
    """Compare the files with what the database has recorded; the order is that of `status`. Raises MigrationError."""

    def rows(table: str, columns: str) -> list[tuple[Any, ...]]:
        exists = backend.execute("select to_regclass(:table) is not null", {"table": table}).fetchone()[0]
        return list(backend.execute(f"select {columns} from {table} order by 2")) if exists else []  # noqa: S608

    def state(id: str) -> Literal["applied", "edited", "missing"]:
        if id not in migrations:
            return "missing"
        current = checksum(migrations[id])
        return "applied" if checksums.get(id, current) == current else "edited"

    with _explained("cannot read which migrations are applied"):
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


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise an error of PostgreSQL or yoyo as a MigrationError with `what` failed, the cause and the remedy."""
    try:
        yield
    except (psycopg.Error, BadMigration) as error:
        cause: BaseException = error
        # On a lost connection yoyo's clean-up fails as well: the first error is the cause.
        while isinstance(cause.__context__, psycopg.Error):
            cause = cause.__context__
        remedy = "It is not recorded as done: fix the cause and run it again."
        raise MigrationError(f"{what}: {str(cause).strip()}\n{remedy}") from error
