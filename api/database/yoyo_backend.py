"""The private parts of yoyo that the migrations rely on, all in one place; `tests/database/test_driver.py` checks them.

They are in yoyo's backends/base.py, backends/core/postgresql.py and migrations.py. pyproject.toml caps yoyo below its
next minor release: raise the cap together with a passing run of that test.
"""

import codecs
import hashlib
import socket
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psycopg
import yoyo.migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, default_migration_table

CHECKSUM_TABLE = "_users_api_migration_checksum"


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc] # yoyo has no types
    """Yoyo's connection, which `with` closes. It also records checksums, and needs neither a user's name nor DNS."""

    # Yoyo tries to create the table on each run and ignores the error, which PostgreSQL would log each time.
    create_lock_table_sql = PostgresqlPsycopgBackend.create_lock_table_sql.replace("TABLE", "TABLE IF NOT EXISTS", 1)

    def init_connection(self, connection: Any) -> None:
        """Look for names in public first, whatever the role's search_path; yoyo calls this after a rollback too.

        The statements of the server name that schema. Temporary tables, which come first by default, come last.
        """
        connection.execute("set search_path to public, pg_temp")

    def __exit__(self, *_: object) -> None:
        """Close the connection; yoyo opens one for each migration too, with that migration's settings."""
        leave_nothing(self.connection)
        self.connection.close()

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        """Return a row for yoyo's log, with the role as the user's name.

        Yoyo calls getpass.getuser(), which raises for a numeric UID without a name (usual in containers) after the
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
        self.execute(f"delete from {CHECKSUM_TABLE} where migration_id = :id", {"id": migration.id})  # noqa: S608

    def record_checksum(self, migration: Migration) -> None:
        """Record the checksum of a migration's file, in place of one from before a `yoyo rollback`."""
        self.execute(
            f"insert into {CHECKSUM_TABLE} (migration_id, checksum) values (:id, :checksum) "  # noqa: S608
            "on conflict (migration_id) do update set checksum = excluded.checksum",
            {"id": migration.id, "checksum": checksum(migration)},
        )


def leave_nothing(session: psycopg.Connection) -> None:
    """Give up the locks and settings of a session before it is closed: a session pooler may reset nothing."""
    with suppress(psycopg.Error):
        session.execute("discard all")


def _open(path: str, mode: str = "r", encoding: str = "") -> TextIO:
    return Path(path).open(mode, encoding="utf-8-sig")  # type: ignore[return-value] # yoyo's mode is "r"


# Some editors begin a file with a BOM, which is a syntax error in SQL. Yoyo opens migrations, and nothing else, by this
# name: in its module it now comes before the built-in function.
yoyo.migrations.open = _open


def connect(arguments: dict[str, str]) -> Backend:
    """Connect with libpq's keywords instead of a URL, which an error or a log could show. Raises psycopg.Error."""
    return Backend(DatabaseURI("postgresql+psycopg", *[None] * 5, args=arguments), default_migration_table)


def checksum(migration: Migration) -> str:
    """Return the SHA-256 of the file's lines, without a BOM, in hexadecimal: tools convert line ends, and add a BOM.

    The rollback file is left out: it is no part of the schema, and a wrong one may be corrected.
    """
    text = Path(migration.path).read_bytes().removeprefix(codecs.BOM_UTF8)
    return hashlib.sha256(b"\n".join(text.splitlines())).hexdigest()
