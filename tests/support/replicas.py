"""A primary and its replica over simulated time: servers that answer with a position of the log, behind real pools."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import asyncpg

from api.database import connecting
from api.database.fetch import PooledDatabase
from api.database.options import DatabaseOptions, Limits
from api.database.replica import Replica
from api.neon.url import parse_url
from tests.support.simulated_database import Closable

WAIT_SECONDS = 2.0
"""REPLICA_WAIT_SECONDS, also the time in which the replica's pool must have a connection."""
STATEMENT_SECONDS = 10.0


class _Connection(Closable):
    """The part of an asyncpg.Connection that a pool uses."""

    def __init__(self, server: "Server") -> None:
        super().__init__()
        self._server = server

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        self.terminate()

    async def execute(self, sql: str, timeout: float) -> None:  # noqa: ASYNC109 - as asyncpg has it
        await self._wait(self._server.latency, timeout)

    async def fetch(self, sql: str, timeout: float) -> list[dict[str, Any]]:  # noqa: ASYNC109 - as asyncpg has it
        server = self._server
        server.statements += 1
        self._protocol.queries_count += 1
        await self._wait(server.latency / 2 + server.slow, timeout)
        if server.state == "failing":
            error = asyncpg.UndefinedTableError("no such table")
            error.severity = "ERROR"  # as an answer of the server has
            raise error
        row = {"server": server.name, "position": server.position}
        await self._wait(server.latency / 2, timeout)
        return [row]

    async def _wait(self, seconds: float, timeout: float) -> None:  # noqa: ASYNC109
        is_silent = self._server.state == "silent"
        await asyncio.wait([self._ended], timeout=timeout if is_silent else seconds)
        if self.is_closed():
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        if is_silent:
            raise TimeoutError


class Server:
    """A PostgreSQL that answers each statement with its name and the position of its log.

    `state` is "up", "refusing" or "denying" new connections, "silent" or "failing": an error for each statement.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "up"
        self.position = 0
        self.latency = 0.02
        self.slow = 0.0
        """How much longer each statement takes than `select 1`."""
        self.attempts = 0
        """How often a connection was asked for."""
        self.statements = 0
        """How many statements were sent."""
        self._connections: list[_Connection] = []

    @property
    def open(self) -> int:
        """The number of open connections."""
        return sum(not each.is_closed() for each in self._connections)

    def restart(self, position: int) -> None:
        """Close every connection and begin at another position."""
        self.position = position
        for connection in self._connections:
            connection.terminate()

    async def connect(self) -> Any:
        """Open a connection."""
        self.attempts += 1
        await asyncio.sleep(3600 if self.state == "silent" else self.latency)
        if self.state == "refusing":
            raise ConnectionRefusedError("nothing listens")
        if self.state == "denying":
            raise asyncpg.InvalidPasswordError("password authentication failed")
        self._connections.append(_Connection(self))
        return self._connections[-1]


@dataclass
class Pair:
    """A primary and a standby, the pools in front of them, and the replica that uses both."""

    primary: Server
    standby: Server
    primary_pool: PooledDatabase
    standby_pool: PooledDatabase
    replica: Replica


@asynccontextmanager
async def simulated_pair(*, connections: int = 1, limits: Limits | None = None) -> AsyncIterator[Pair]:
    """Open a replica on an event loop of simulated time."""
    primary, standby = Server("primary"), Server("standby")
    servers = {"DATABASE_URL": primary, "READ_DATABASE_URL": standby}

    async def open_connection(options: DatabaseOptions) -> Any:
        return await servers[options.name].connect()

    with patch.object(connecting, "open_connection", open_connection):
        primary_pool, standby_pool = (PooledDatabase(_options(name, connections)) for name in servers)
    replica = Replica(standby_pool, primary_pool, WAIT_SECONDS, limits)
    await primary_pool.open()
    await replica.open()
    try:
        yield Pair(primary, standby, primary_pool, standby_pool, replica)
    finally:
        await replica.close()
        await primary_pool.close()


def _options(name: str, connections: int) -> DatabaseOptions:
    return DatabaseOptions(
        name=name,
        url=parse_url("postgresql://user@localhost/database"),
        acquire_timeout=WAIT_SECONDS,
        connect_timeout=WAIT_SECONDS * 2 / 3,
        statement_timeout=STATEMENT_SECONDS,
        statement_cache_size=0,
        pool_min_size=0,
        pool_max_size=connections,
        pool_idle_seconds=3600.0,
    )
