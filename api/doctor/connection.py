"""The checks over a connection: authentication, the server, pooling, prepared statements and migrations.

They use two connections of one URL without asyncpg's statement cache. So they work through a pooler that cannot prepare
statements, and leave nothing behind on the connections that such a pooler shares between clients.
"""

import asyncio
import secrets
import time
from statistics import median

import asyncpg
from psycopg.errors import InsufficientPrivilege

from api.app import RESOURCES
from api.database import migrations, pooling, statements
from api.database.faults import DATABASE_ERRORS, classify
from api.database.migration_session import CREATE_UTF8
from api.doctor.findings import Finding, green, red, yellow
from api.errors import MigrationError
from api.neon.drivers import DatabaseURL
from api.resources.catalogue import find_gaps
from api.threads import in_daemon_thread

_ROUND_TRIPS = 21
_FAR_SECONDS = 0.02  # more than any round trip within one region
_NEON_POOLER_CLIENTS = 10_000  # https://neon.com/docs/connect/connection-pooling
_WAKING_PAUSE_SECONDS = 0.2
_MIGRATE = (
    "run `users-api migrate`; if none is pending, deploy the release that fits this database; "
    "`users-api check-sql` lists all"
)


class ConnectionChecks:
    """Two connections of one URL. `authenticate` opens them, every other check needs them, `close` closes them."""

    def __init__(self, url: DatabaseURL) -> None:
        self.url = url
        self._connections: list[asyncpg.Connection] = []
        self._began = 0.0
        self._connected_within: list[float] = []
        self.pooled: bool | None = None  # set by find_pooling

    async def close(self) -> None:
        """Close the connections: gracefully, or after a second if the server does not respond."""
        closing = [connection.close(timeout=1) for connection in self._connections]
        await asyncio.gather(*closing, return_exceptions=True)

    @property
    def first(self) -> asyncpg.Connection:
        """The first of both connections."""
        return self._connections[0]

    @property
    def lost(self) -> bool:
        """True if a connection has broken."""
        return any(connection.is_closed() for connection in self._connections)

    async def authenticate(self, deadline: float) -> Finding:
        """Log in twice; wait for a compute that wakes up until `deadline`, a time of the event loop."""
        self._began = time.perf_counter()
        for _ in range(2):
            started = time.perf_counter()
            self._connections.append(await self._connect(deadline))
            self._connected_within.append(time.perf_counter() - started)
        return green(f"logged in to {self.url.database} as {self.url.user}")

    async def _connect(self, deadline: float) -> asyncpg.Connection:
        arguments = {"server_settings": {"application_name": "users-api doctor"}} | self.url.asyncpg_arguments()
        loop = asyncio.get_running_loop()
        refusal: Exception | None = None
        while True:
            try:
                if refusal is not None:
                    await asyncio.sleep(_WAKING_PAUSE_SECONDS)
                return await asyncpg.connect(**arguments, statement_cache_size=0)
            except DATABASE_ERRORS as error:
                if not classify(error).transient or deadline - loop.time() < _WAKING_PAUSE_SECONDS:
                    raise
                refusal = error
            except asyncio.CancelledError:
                if refusal is not None and loop.time() >= deadline:
                    raise refusal from None  # it says more than that the last attempt had no answer
                raise

    async def check_server(self) -> Finding:
        """Run the first statement: report the server's version, and whether it was suspended."""
        ((version, encoding, age, in_recovery),) = await self.first.fetch(
            """
            select current_setting('server_version'), current_setting('server_encoding'),
                extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8,
                pg_is_in_recovery()
            """
        )
        detail = f"PostgreSQL {version}"
        first, second = self._connected_within
        if age < time.perf_counter() - self._began:
            detail += f"; the compute was suspended and started {1000 * age:.0f} ms ago"
        elif first > max(0.2, 3 * second):
            detail += (
                "; the compute seems to have been suspended "
                f"(logging in took {1000 * first:.0f} ms, then {1000 * second:.0f})"
            )
        if in_recovery:
            return red(f"{detail}, a replica: every write fails", "use the URL of the primary")
        if self.first.get_server_version().major < 17:
            return red(detail, "move to PostgreSQL 17 or newer, which the migrations need")
        if encoding != "UTF8":
            return red(
                f"{detail}, but the encoding of the database is {encoding}", f"move to another one: {CREATE_UTF8}"
            )
        return green(detail)

    async def fingerprint(self) -> object:
        """Return a value that no other database has: its server's start, to the microsecond, and its oid."""
        (row,) = await self.first.fetch(
            "select extract(epoch from pg_postmaster_start_time()), oid"
            " from pg_database where datname = current_database()"
        )
        return tuple(row)

    async def find_pooling(self) -> str:
        """Set `pooled` and return the evidence: the backends of PostgreSQL that two connections use."""
        one, other = await pooling.meet_backends(self._connections)
        self.pooled = pooling.is_pooled(one, other)
        if self.pooled:
            return f"two connections share {_count(len(one | other), 'backend')}"
        return "each connection keeps its own backend"

    async def check_prepared_statements(self, cache_size: int) -> Finding:
        """Prepare a statement under a name, and find out whether the pooler passes the name on unchanged.

        It must not: two clients may use one name for different statements. So a pooler that supports them uses names of
        its own, and prepares a statement again on a backend without it (PgBouncer 1.21: PGBOUNCER_1, and so on).
        """
        connection = self.first
        name = f"users_api_doctor_{secrets.token_hex(4)}"
        # In a transaction, which stays on one backend.
        async with connection.transaction():
            prepared = await connection.prepare(
                "select exists (select from pg_prepared_statements where name = $1)", name=name
            )
            works = not (self.pooled and await prepared.fetchval(name))
            del prepared  # asyncpg closes it on the server before the next statement runs
            await connection.fetchval("select 1")
        if works and cache_size == 0:
            return yellow(
                "off (STATEMENT_CACHE_SIZE=0), which costs every statement a round trip",
                "leave out STATEMENT_CACHE_SIZE: statements can be prepared here",
            )
        if works:
            through = "the pooler gives them names of its own" if self.pooled else "there is no pooler in between"
            return green(f"on: {through}")
        if cache_size == 0:
            return green("off (STATEMENT_CACHE_SIZE=0), as this pooler needs")
        return red(
            "the pooler does not support prepared statements: the next backend does not have them",
            "set STATEMENT_CACHE_SIZE=0, or use PgBouncer 1.21 or newer with max_prepared_statements above 0",
        )

    async def check_connections(self, replicas: int, workers: int, pool_max_size: int) -> Finding:
        """Compare the connections of all pools together with PostgreSQL's limit for this role."""
        (limits,) = await self.first.fetch(
            """
            select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                - coalesce(current_setting('reserved_connections', true)::int, 0), rolconnlimit, datconnlimit
            from pg_roles, pg_database where rolname = current_user and datname = current_database()
            """
        )
        limit = min(each for each in limits if each >= 0)
        wanted = replicas * workers * pool_max_size
        detail = (
            f"{_count(replicas, 'replica')} x {_count(workers, 'worker')} x POOL_MAX_SIZE {pool_max_size} "
            f"= {wanted}; PostgreSQL has {limit}"
        )
        lower = "lower POOL_MAX_SIZE, workers or replicas, or take a larger compute"
        if self.pooled:
            if wanted > _NEON_POOLER_CLIENTS:
                return red(f"{detail}, and Neon's pooler takes {_NEON_POOLER_CLIENTS} clients", lower)
            if wanted > limit:
                return yellow(f"{detail}, so statements wait for each other in the pooler", lower)
            return green(f"{detail}, through the pooler")
        if wanted > limit:
            return red(f"{detail}: connections above that are refused", f"{lower}, or go through a pooler")
        if wanted > 0.8 * limit:
            return yellow(
                f"{detail}: few connections are left for migrations and psql", f"{lower}, or go through a pooler"
            )
        return green(detail)

    async def check_migrations(self) -> Finding:
        """Compare the files with the migrations that the database has recorded, over libpq as `users-api migrate`."""
        try:
            rows = await in_daemon_thread(migrations.status, self.url)
        except MigrationError as error:
            if isinstance(error.__cause__, InsufficientPrivilege):
                return green(
                    f"not visible to role {self.url.user}, which needs none of it: "
                    "the role that migrates sees them with `users-api migrate status`"
                )
            return red(" ".join(str(error).split()), "run `users-api migrate status` for details")
        by_state = {state: [row.id for row in rows if row.state == state] for state in ("pending", "edited", "missing")}
        if ids := by_state["edited"]:
            return red(f"edited after it was applied: {', '.join(ids)}", "restore the file, and write a new migration")
        if ids := by_state["pending"]:
            return red(f"pending: {', '.join(ids)}", "run `users-api migrate`")
        if ids := by_state["missing"]:
            return yellow(f"applied, with no file here: {', '.join(ids)}", "deploy the release that has it, or newer")
        return green(f"{len(rows)} applied, none pending")

    async def check_statements(self) -> Finding:
        """Prepare every SQL file and check the role's privileges, as `users-api check-sql` does."""
        mismatches, grants = await statements.check_statements(self.first)
        if grants:
            return red(
                f"role {self.url.user} lacks {_count(len(grants), 'GRANT')}",
                f"run as the owner of the tables: {'; '.join(grants)}",
            )
        if mismatches:
            return red(_first(mismatches), _MIGRATE)
        return green(f"{len(statements.declared_statements())} fit the database")

    async def check_constraints(self) -> Finding:
        """Compare the constraints of the tables with those that the resources name, as `users-api check-sql` does."""
        misfits, unnamed, unindexed = await find_gaps(self.first, RESOURCES, statements.used_tables())
        if misfits:
            return red(_first(misfits), _MIGRATE)
        if unindexed:
            return yellow(_first(unindexed), "run that as the owner of the table; `users-api check-sql` lists all")
        return green("; ".join(["as the release expects", *unnamed]))

    async def check_round_trip(self) -> Finding:
        """Time the smallest statement."""
        seconds = []
        for _ in range(_ROUND_TRIPS):
            started = time.perf_counter()
            await self.first.execute("select 1")
            seconds.append(time.perf_counter() - started)
        p50 = median(seconds)
        detail = f"p50 of {_ROUND_TRIPS}: {1000 * p50:.2f} ms"
        if p50 > _FAR_SECONDS:
            return yellow(f"{detail}, added to every request", "run the service in the database's region")
        return green(detail)


def _first(lines: list[str]) -> str:
    return f"{lines[0]}, and {len(lines) - 1} more" if lines[1:] else lines[0]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
