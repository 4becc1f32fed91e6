"""The sessions that migrations need: proved to be sessions, and locked against other runs after a bounded wait."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from yoyo.exceptions import BadMigration

from api.database.pooling import ASK_BACKEND, ROUNDS, is_pooled
from api.database.yoyo_backend import leave_nothing
from api.errors import MigrationError
from api.neon.drivers import DatabaseURL

Report = Callable[[str], None]

LOCK_TIMEOUT_SECONDS = 60.0
"""How long a run waits for the lock, unless told otherwise."""

# An advisory lock is named by a signed 64-bit number: the first eight bytes of the SHA-256 of "users-api migrations".
LOCK_KEY = int.from_bytes(hashlib.sha256(b"users-api migrations").digest()[:8], "big", signed=True)
_LOCK_POLL_SECONDS = 0.2
CREATE_UTF8 = "`create database NAME template template0 encoding 'UTF8'`"
"""The remedy for a database of another encoding."""
# The URL's own values win. libpq waits for ever by default. The lock's connection is idle while another one works, for
# longer than some networks keep an idle connection. By the name other runs report who holds the lock.
_CONNECTION_DEFAULTS = {"connect_timeout": "15", "keepalives_idle": "30", "application_name": "users-api migrate"}

# PostgreSQL shows a role only part of the sessions of another role: the rest is null.
_SESSIONS = sql.SQL("""
    with held as (
        select * from pg_catalog.pg_locks
        where granted and database = (select oid from pg_catalog.pg_database where datname = current_database())
    )
    select pid, concat_ws(
        ', ', 'process ' || pid, nullif(application_name, ''), 'role ' || usename, 'from ' || host(client_addr),
        'connected since ' || to_char(backend_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
        state || ' since ' || to_char(state_change at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'),
        case when state is null then 'more is not shown to role ' || current_user end
    )
    from pg_catalog.pg_stat_activity
    where pid in (select pid from held where {})
    order by xact_start
    limit 3
""")
# The catalogue has the two halves of the key in two columns.
_HOLDER = _SESSIONS.format(
    sql.SQL("locktype = 'advisory' and objsubid = 1 and (classid::bigint << 32) | objid::bigint = {}").format(LOCK_KEY)
)
# The oldest transactions with a lock on a table: PostgreSQL does not say for which lock a statement waited in vain.
_BLOCKERS = _SESSIONS.format(sql.SQL("locktype = 'relation' and relation >= 16384 and pid <> pg_backend_pid()"))


def connection_arguments(url: DatabaseURL) -> dict[str, str]:
    """Return libpq's keywords for the connection of a command that migrates."""
    return _CONNECTION_DEFAULTS | url.psycopg_arguments()


@contextmanager
def connected(url: DatabaseURL) -> Iterator[psycopg.Connection]:
    """Connect, each statement a transaction of its own. Raises MigrationError."""
    with explained_connecting():
        connection = psycopg.connect(**connection_arguments(url), autocommit=True)  # type: ignore[arg-type]
    with connection:
        yield connection


@contextmanager
def explained_connecting() -> Iterator[None]:
    """Raise a failure to connect as a MigrationError of one line: libpq writes one for every address that it tried."""
    try:
        yield
    except psycopg.Error as error:
        raise MigrationError(f"cannot connect to the database: {' '.join(str(error).split())}") from error


@contextmanager
def exclusive(url: DatabaseURL, lock_timeout: float, report: Report) -> Iterator[psycopg.Connection]:
    """Wait up to `lock_timeout` seconds for any other run to end, and lock out further ones; yield the lock's session.

    The lock is an advisory one, which ends with its connection, however that ends. Raises MigrationError if the wait is
    over, if the database's encoding is not UTF8, and, before anything is sent that lasts longer than its statement, if
    the URL leads through a transaction pooler: the lock would stay on a session that the pooler shares, and so would
    the settings of migrations.
    """
    if url.pooled:
        raise MigrationError(
            "migrations need a session, for their lock, and this URL is that of a transaction pooler: "
            "set DIRECT_URL to the same URL without -pooler in its host"
        )
    with connected(url) as lock:
        _require_utf8(lock)
        with explained("cannot prepare the database for migrations"):
            _require_session(url, lock)
            _wait_for_lock(lock, lock_timeout, report)
        try:
            yield lock
        finally:
            leave_nothing(lock)


def _require_utf8(connection: psycopg.Connection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):  # a pooler for sessions may not tell
        raise MigrationError(
            f"the encoding of the database is {encoding}, and it has to be UTF8: create another one, {CREATE_UTF8}, "
            "and name it in the URL"
        )


def _require_session(url: DatabaseURL, connection: psycopg.Connection) -> None:
    met: tuple[set[int], set[int]] = set(), set()
    with connected(url) as other:
        for _ in range(ROUNDS):
            for each, backends in zip((connection, other), met, strict=True):
                backends.update(*each.execute(ASK_BACKEND, prepare=False).fetchall())
    if is_pooled(*met):
        raise MigrationError(
            "migrations need a session, for their lock, and this URL leads through a transaction pooler, where two "
            "connections share one: set DIRECT_URL to the URL of PostgreSQL itself, with its own host and port"
        )


def _wait_for_lock(lock: psycopg.Connection, timeout: float, report: Report) -> None:
    deadline = time.monotonic() + timeout
    is_told = False
    # Polled: a statement that waits for the lock holds a snapshot, and a `create index concurrently` of the other run
    # would wait for that snapshot. PostgreSQL does not detect this deadlock.
    while lock.execute(f"select pg_try_advisory_lock({LOCK_KEY})".encode()).fetchone() != (True,):
        pid, holder = lock.execute(_HOLDER).fetchone() or ("PID", "a session that has just ended")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise MigrationError(
                f"the lock of migrations was not free within {timeout:g} s: it is held by {holder}\n"
                "If a migration is running there, let it end, or wait longer with --lock-timeout. "
                f"If none is, end that session: select pg_terminate_backend({pid})"
            )
        if not is_told:
            report(f"waiting up to {timeout:g} s for the lock of migrations, held by {holder}")
            is_told = True
        time.sleep(min(_LOCK_POLL_SECONDS, remaining))


@contextmanager
def explained(what: str, lock: psycopg.Connection | None = None) -> Iterator[None]:
    """Raise an error of PostgreSQL or yoyo as a MigrationError with `what` failed, the cause and the remedy.

    With the lock's session the sessions are named for which a statement may have waited until its lock_timeout.
    """
    try:
        yield
    except (psycopg.Error, BadMigration) as error:
        cause: BaseException = error
        # On a lost connection yoyo's clean-up fails as well: the first error is the cause.
        while isinstance(cause.__context__, psycopg.Error):
            cause = cause.__context__
        # The detail may quote a row: "Key (lower(email))=(ada@example.com) is duplicated."
        text, _, _ = str(cause).partition("\nDETAIL:")
        lines = [f"{what}: {text.strip()}"]
        if lock is not None and isinstance(cause, psycopg.errors.LockNotAvailable):
            for pid, session in lock.execute(_BLOCKERS).fetchall():
                lines.append(f"It may wait for {session}; to end that session: select pg_terminate_backend({pid})")
        lines.append("It is not recorded as done: fix the cause and run it again.")
        raise MigrationError("\n".join(lines)) from error
