"""Schema migrations: yoyo applies the files, one run at a time, and checksums tell which were edited afterwards.

What is said of yoyo 9.0 is in its backends/base.py, backends/core/postgresql.py and migrations.py. It applies a file
and records it in two transactions: after a run that is killed in between, the next one applies the file again. So
migrations are written such that they can run twice.
"""

import glob
import hashlib
import io
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.exceptions import BadMigration, MigrationConflict
from yoyo.migrations import Migration, default_migration_table, topological_sort

from api.database.files import MIGRATIONS_DIRECTORY
from api.neon.tls import DatabaseURL

Report = Callable[[str], None]

# An advisory lock is named by a signed 64-bit number: the first eight bytes of the SHA-256 of "users-api migrations".
_LOCK_KEY = int.from_bytes(hashlib.sha256(b"users-api migrations").digest()[:8], "big", signed=True)
_LOCK_POLL_SECONDS = 0.2
_CHECKSUM_TABLE = "_users_api_migration_checksum"
# What the URL says goes first. libpq waits for ever by default; and the lock's connection is silent while another one
# works, for longer than some networks keep a silent connection.
_CONNECTION_DEFAULTS = {"connect_timeout": "15", "keepalives_idle": "30", "application_name": "users-api migrate"}


class MigrationError(Exception):
    """What failed, in which file, and what to do: for the operator. It holds no password and no URL."""


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration. `edited` was applied with another content; `missing` was applied and has no file here."""

    id: str  # The file's name without ".sql".
    state: Literal["applied", "pending", "edited", "missing"]
    applied_at: datetime | None  # In UTC; None while pending.


def migrate(url: DatabaseURL, *, directory: Path = MIGRATIONS_DIRECTORY, report: Report = print) -> list[str]:
    """Apply the pending migrations of `directory` one by one and return their ids; `report` gets the progress in lines.

    A run that finds another one at work waits for its end. Raises MigrationError, and applies nothing, if a migration
    that is applied already was edited.
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

    The statements of that file run in the order in which they are written. Raises MigrationError, also if the migration
    was edited, has no file or no rollback file.
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


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc] # yoyo has no types
    """Yoyo's connection (`with` closes it), which records checksums too and needs neither a user's name nor DNS."""

    # Yoyo tries to make the table each time and swallows the error, which would stand in PostgreSQL's log on each run.
    create_lock_table_sql = PostgresqlPsycopgBackend.create_lock_table_sql.replace("TABLE", "TABLE IF NOT EXISTS", 1)

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        """Return a row for yoyo's log, with the role as the user's name.

        Yoyo asks getpass.getuser(), which raises for a numeric UID without a name (usual in containers) once the
        migration is committed, and socket.getfqdn(), which waits for DNS.
        """
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self.connection.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def mark_one(self, migration: Migration, log: bool = True) -> None:
        """Record a migration as applied, with its checksum; yoyo calls this in a transaction."""
        super().mark_one(migration, log)
        self.record_checksum(migration)

    def unmark_one(self, migration: Migration, log: bool = True) -> None:
        """Remove the record and the checksum; yoyo calls this in a transaction."""
        super().unmark_one(migration, log)
        self.execute(f"delete from {_CHECKSUM_TABLE} where migration_id = :id", {"id": migration.id})  # noqa: S608

    def record_checksum(self, migration: Migration) -> None:
        """Record the checksum of a migration's file, in place of one from before a `yoyo rollback`."""
        self.execute(
            f"insert into {_CHECKSUM_TABLE} (migration_id, checksum) values (:id, :checksum) "  # noqa: S608
            "on conflict (migration_id) do update set checksum = excluded.checksum",
            {"id": migration.id, "checksum": _checksum(migration)},
        )


def _connect(url: DatabaseURL) -> _Backend:
    """Connect, by arguments instead of a URL, which an error or a log could show. Raises MigrationError."""
    arguments = _CONNECTION_DEFAULTS | url.psycopg_arguments()
    try:
        return _Backend(DatabaseURI("postgresql+psycopg", *[None] * 5, args=arguments), default_migration_table)
    except psycopg.Error as error:
        # libpq writes a line for every address that it tried.
        raise MigrationError(f"cannot connect to the database: {' '.join(str(error).split())}") from error


@contextmanager
def _exclusive(url: DatabaseURL, report: Report) -> Iterator[_Backend]:
    """Wait until no other run is at work, keep others out, and make the tables that record migrations.

    Yoyo's own lock is a committed row, which a killed run leaves behind; an advisory lock ends with its connection. So
    ours covers the whole run, and a row that is found under it is stale. Raises MigrationError.
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
            # Polled, since a statement that waits for the lock holds a snapshot, and a `create index concurrently` of
            # the other run would wait for the end of that: a deadlock that PostgreSQL does not see.
            while not lock.execute(f"select pg_try_advisory_lock({_LOCK_KEY})").fetchone()[0]:
                if not waiting:
                    report("another migration is running: waiting")
                waiting = True
                time.sleep(_LOCK_POLL_SECONDS)
            backend.execute(
                f"create table if not exists {_CHECKSUM_TABLE} (migration_id text, checksum text not null, "
                f"constraint {_CHECKSUM_TABLE}_pkey primary key (migration_id))"
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


def _compare(migrations: dict[str, Migration], backend: _Backend) -> list[MigrationStatus]:
    """Compare the files with what the database has recorded; the order is that of `status`. Raises MigrationError."""

    def rows(table: str, columns: str) -> list[tuple[Any, ...]]:
        exists = backend.execute("select to_regclass(:table) is not null", {"table": table}).fetchone()[0]
        return list(backend.execute(f"select {columns} from {table} order by 2")) if exists else []  # noqa: S608

    def state(id: str) -> Literal["applied", "edited", "missing"]:
        if id not in migrations:
            return "missing"
        checksum = _checksum(migrations[id])
        return "applied" if checksums.get(id, checksum) == checksum else "edited"

    with _explained("cannot read which migrations are applied"):
        checksums = dict(rows(_CHECKSUM_TABLE, "migration_id, checksum"))
        applied = dict(rows(default_migration_table, "migration_id, applied_at_utc"))
    return [
        *(MigrationStatus(id, state(id), at.replace(tzinfo=UTC)) for id, at in applied.items()),
        *(MigrationStatus(id, "pending", None) for id in migrations if id not in applied),
    ]


def _checksum(migration: Migration) -> str:
    """Return the SHA-256 of the file's lines in hexadecimal: git may have converted their ends.

    The rollback file is left out: it is no part of the schema, and a wrong one must be mended.
    """
    return hashlib.sha256(b"\n".join(Path(migration.path).read_bytes().splitlines())).hexdigest()


def _edited(migration: Migration, status: MigrationStatus) -> MigrationError:
    return MigrationError(
        f"{migration.path} was edited after it was applied ({status.applied_at:%Y-%m-%d %H:%M:%S} UTC): "
        "restore it, and write a new migration for the change"
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise an error of PostgreSQL's or yoyo's as a MigrationError that says `what` failed, why, and what to do."""
    try:
        yield
    except (psycopg.Error, BadMigration) as error:
        cause: BaseException = error
        # On a lost connection yoyo's clean-up fails as well: the first error tells what happened.
        while isinstance(cause.__context__, psycopg.Error):
            cause = cause.__context__
        remedy = "It is not recorded as done: mend the cause and run it again."
        raise MigrationError(f"{what}: {str(cause).strip()}\n{remedy}") from error
