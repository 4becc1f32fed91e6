"""PostgreSQL as the tests use it: statements outside the pool, locks, and waiting for a state of the server."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg

from api.database.files import MIGRATIONS_DIRECTORY
from api.neon.url import parse_url
from tests.support.waiting import wait_until

MakeDatabase = Callable[[], str]


NewDatabase = Callable[..., AbstractContextManager[str]]
"""Takes the name of a template, and of an owner other than the superuser; the value is the database's URL."""


KILL_ALL = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
"""
"""End every other session of a database, as a compute does that is suspended."""


SLOW_WRITES = """
    create function sleep() returns trigger language plpgsql as $$ begin perform pg_sleep(9); return null; end $$;
    create trigger slow after insert on users for each row execute function sleep()
"""
"""Make a creation take 9 s, longer than any test waits for it."""


MIGRATIONS = sorted(file.stem for file in MIGRATIONS_DIRECTORY.glob("*.sql") if not file.stem.endswith(".rollback"))
"""The ids of our migrations, in the order in which they are applied."""


SESSION_STATE = """
    select (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks,
           (select count(*) from pg_cursors where name <> '') as cursors,
           (select count(*) from pg_listening_channels()) as channels,
           (select count(*) from pg_class where relpersistence = 't') as temporary_tables,
           (select count(*) from pg_prepared_statements where name !~ '^__asyncpg_') as prepared,
           (select string_agg(name || '=' || setting, ',' order by name) from pg_settings where source = 'session')
               as settings,
           pg_backend_pid() as session
"""


WAITING = """
    select count(*) = {} from pg_stat_activity
    where datname = current_database() and state = 'active' and wait_event_type = 'Lock'
"""


def execute(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL over a connection of its own, outside the pool; return the rows of the last statement, if any."""
    with psycopg.connect(**parse_url(url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def wait_until_true(url: str, query: str) -> None:
    """Return once a query answers true. It uses one connection: opening one costs more than the query."""
    with psycopg.connect(**parse_url(url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        wait_until(lambda: connection.execute(query.encode()).fetchone() == (True,))


@contextmanager
def locked(database: str, sql: str = "lock table users") -> Iterator[psycopg.Connection]:
    """Hold locks in another session."""
    with psycopg.connect(**parse_url(database).psycopg_arguments()) as other:  # type: ignore[arg-type]
        other.execute(sql.encode())
        yield other


def wait_until_waiting(database: str, statements: int) -> None:
    """Return once exactly so many statements wait for a lock; the test's timeout bounds it."""
    wait_until_true(database, WAITING.format(statements))


def connections(database: str) -> int:
    """Return how many connections the service has: a session of ours that has just been closed may still be ending."""
    counted = execute(
        database,
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and backend_type = 'client backend' and usename <> current_user",
    )
    return int(str(counted[0][0]))


def database_url(postgres: str, name: str) -> str:
    """Return the URL of another database of the tests' PostgreSQL."""
    return postgres.replace("/postgres?", f"/{name}?")


def in_memory() -> str | None:
    """Return a file system in memory with room for the databases: cloning takes a fifth of the time. Else None."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 2 * 1024**3 else None
