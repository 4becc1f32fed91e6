"""The PostgreSQL of the benchmarks: durable commits, migrated, seeded identically for every system."""

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
    # No checkpoint falls into a measurement by chance: each measurement begins right after one.
    "checkpoint_timeout": "30min",
    "max_wal_size": "4GB",
}


class Database:
    """The database of a run. It seeds the table again only if its content has changed."""

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
        """Fill the table with `user1@example.com` to `user{rows}@example.com`, ids 1 to rows, unless it is so already.

        `index` is the column of one more unique index, for a system whose statements need it.
        """
        if self._is_dirty or rows != self.rows or index != self._index:
            execute(self.url, "drop index if exists benchmark_extra")
            execute(self.url, "truncate users restart identity cascade")
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
        """Delete all users."""
        execute(self.url, "truncate users restart identity cascade")
        execute(self.url, "checkpoint")
        self._is_dirty = True

    def mark_dirty(self) -> None:
        """Note that a workload wrote, so that the next system gets a fresh table."""
        self._is_dirty = True

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that PostgreSQL and all its processes have used."""
        return cpu_seconds(self.postmaster)


def execute(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL over a connection of its own and return the rows of the last statement."""
    with psycopg.connect(**parse_url(url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@contextmanager
def new_database() -> Iterator[Database]:
    """Start a PostgreSQL with durable commits and the migrated schema; stop and remove it at the end."""
    # PostgreSQL runs as a system user, who can enter a directory directly below the temporary directory.
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
