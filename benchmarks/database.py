"""A PostgreSQL of the harness's own: durable, migrated, seeded the same for every system."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg

from api.database import embedded, migrations
from api.neon.url import parse_url
from benchmarks.processes import cpu_seconds

SETTINGS = {
    "max_connections": "300",
    # Every commit reaches the disk, as in production.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # No checkpoint falls into a measurement by chance: each begins right after one.
    "checkpoint_timeout": "30min",
    "max_wal_size": "4GB",
}


class Database:
    """The benchmark's database. It knows what is in the table, and seeds it again only where that has changed."""

    def __init__(self, url: str, postmaster: psutil.Process) -> None:
        self.url = url
        self.rows = 0
        self.postmaster = postmaster
        self._index: str | None = None
        self._is_dirty = True

    @property
    def socket(self) -> Path:
        """The Unix socket that PostgreSQL listens on."""
        directory = parse_qs(urlsplit(self.url).query)["host"][0]
        return Path(directory) / ".s.PGSQL.5432"

    @property
    def version(self) -> str:
        """PostgreSQL's version, such as `18.1`."""
        return str(execute(self.url, "show server_version")[0][0])

    def prepare(self, rows: int, index: str | None = None) -> None:
        """Fill the table with `user1@example.com` to `user{rows}@example.com`, ids 1 to rows, where it is not so yet.

        `index` is the column of one more unique index, for a system whose statements cannot do without it.
        """
        if self._is_dirty or rows != self.rows or index != self._index:
            execute(self.url, "drop index if exists benchmark_extra")
            execute(self.url, "truncate users restart identity")
            execute(
                self.url,
                "insert into users (email, name) "
                f"select 'user' || n || '@example.com', 'User ' || n from generate_series(1, {rows}) as n",
            )
            if index:
                execute(self.url, f"create unique index benchmark_extra on users ({index})")
            execute(self.url, "vacuum (analyze, freeze) users")
            self.rows, self._index, self._is_dirty = rows, index, False
        execute(self.url, "checkpoint")

    def empty(self) -> None:
        """Leave no user in the table."""
        execute(self.url, "truncate users restart identity")
        execute(self.url, "checkpoint")
        self._is_dirty = True

    def soil(self) -> None:
        """Note that a workload wrote: the next system needs a fresh table."""
        self._is_dirty = True

    def cpu_seconds(self) -> float:
        """CPU seconds that PostgreSQL has used, with every process that it started."""
        return cpu_seconds(self.postmaster)


def execute(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL over a connection of its own; the rows of the last statement, if it has any."""
    with psycopg.connect(**parse_url(url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@contextmanager
def new_database() -> Iterator[Database]:
    """Start a PostgreSQL with durable commits and the migrated schema; it is stopped and removed at the end."""
    # Directly below the system's temporary directory, which the system user that PostgreSQL runs as can enter.
    directory = Path(tempfile.mkdtemp(prefix="users-api-bench-"))
    try:
        url = embedded.start(directory)
        for name, value in SETTINGS.items():
            execute(url, f"alter system set {name} = '{value}'")
        embedded.stop(directory)  # max_connections needs a restart
        url = embedded.start(directory)
        migrations.migrate(parse_url(url), report=lambda line: None)
        postmaster = int((directory / "postgres" / "postmaster.pid").read_text().split()[0])
        yield Database(url, psutil.Process(postmaster))
    finally:
        embedded.stop(directory)
        shutil.rmtree(directory, ignore_errors=True)
