"""A database over simulated time, with the part of asyncpg that the pool uses, and those who call the pool."""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import asyncpg

from api.database.fetch import PooledDatabase
from api.database.options import DatabaseOptions
from api.database.pool import Pool
from api.database.silence import Silence
from api.neon.url import parse_url
from api.telemetry.metrics import DatabaseMetrics, Metrics

CONNECT_SECONDS = 10.0
ACQUIRE_SECONDS = 2.0
STATEMENT_SECONDS = 10.0


class Closable:
    """The part of an asyncpg.Connection by which a pool learns that it is closed."""

    def __init__(self) -> None:
        self._protocol = SimpleNamespace(queries_count=0)
        self._stmt_cache: dict[object, object] = {}  # nothing is prepared, so each statement goes to `fetch`
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners: list[Callable[[Any], object]] = []

    @property
    def closed(self) -> bool:
        return self._ended.done()

    def is_closed(self) -> bool:
        return self.closed

    def add_termination_listener(self, listener: Callable[[Any], object]) -> None:
        self._listeners.append(listener)

    def terminate(self) -> None:
        if not self.closed:
            self._ended.set_result(None)
        for listener in self._listeners:
            asyncio.get_running_loop().call_soon(listener, self)
        self._listeners.clear()


class Connection(Closable):
    """The part of an asyncpg.Connection that the pool uses."""

    def __init__(self, database: "Database", begun: float) -> None:
        super().__init__()
        self.database = database
        self.begun = begun
        """When the attempt began that opened it."""
        self.command_timeout = STATEMENT_SECONDS
        self.forgotten = False
        """No statement is answered any more, and nothing tells."""
        self.timed_out = False
        """asyncpg has cancelled a statement on the server, for which it opens another connection."""
        self.statements = 0
        self.running: str | None = None
        """The statement that `fetch` runs."""

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        """As asyncpg: the listeners are called in any case, and what was forgotten takes all the time it is given."""
        try:
            if not self.closed:
                await self._wait(self.database.latency, timeout)
        finally:
            self.terminate()

    async def execute(self, sql: str, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        await self._wait(self.database.latency, timeout or self.command_timeout)
        if self.database.state != "up":
            self.terminate()
            raise ConnectionResetError

    async def fetch(self, sql: str, name: str, seconds: float, timeout: float) -> list[Any]:  # noqa: ASYNC109
        """Run a statement for so many seconds. `name` is its argument, which tells it apart."""
        self.database.sent[name] += 1
        self.database.times.setdefault(name, []).append(asyncio.get_running_loop().time())
        self._protocol.queries_count += 1
        self.running = name
        if name in self.database.unanswered:
            self.database.unanswered.remove(name)
            self.forgotten = True
        try:
            await self._wait(self.database.latency + seconds, timeout)
        finally:
            self.running = None
        if self.database.state != "up" and not self.statements:
            self.terminate()
            raise asyncpg.ConnectionDoesNotExistError("closed") from asyncpg.CannotConnectNowError("no server")
        self.statements += 1
        return []

    async def _wait(self, seconds: float, timeout: float | None) -> None:  # noqa: ASYNC109
        longest = timeout if self.forgotten else min(seconds, timeout or seconds)
        await asyncio.wait([self._ended], timeout=longest)
        if self.closed:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        if self.forgotten or longest != seconds:
            self.timed_out = True
            raise TimeoutError


class Database:
    """A database that is up, refuses connections, refuses them for good, or does not answer an attempt at all."""

    def __init__(self) -> None:
        self.state = "up"
        self.latency = 0.02
        self.connections: list[Connection] = []
        self.attempts: list[float] = []
        self._woken = asyncio.Event()
        self.connecting = 0
        self.most = 0
        """The most connections at a time, open or being opened."""
        self.sent: Counter[str] = Counter()
        """How often each statement of `fetch` was sent."""
        self.times: dict[str, list[float]] = {}
        """When each was sent."""
        self.unanswered: set[str] = set()
        """The statements whose connection is forgotten once they are sent."""

    async def connect(self) -> Any:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.attempts.append(begun)
        self.connecting += 1
        self.most = max(self.most, self.open + self.connecting)
        try:
            await asyncio.sleep(self.latency)
            if self.state == "silent":
                await self._woken.wait()
            if self.state == "refusing":
                raise asyncpg.CannotConnectNowError("the database system is starting up")
            if self.state == "denying":
                raise asyncpg.InvalidPasswordError("password authentication failed")
        finally:
            self.connecting -= 1
        connection = Connection(self, begun)
        self.connections.append(connection)
        try:
            await asyncio.sleep(0)  # it may be lost before the pool listens to it
        except asyncio.CancelledError:
            connection.terminate()
            raise
        return connection

    def wake(self) -> None:
        """Answer the attempts that have had no answer so far."""
        self.state = "up"
        self._woken.set()

    @property
    def open(self) -> int:
        return sum(not each.closed for each in self.connections)


class Caller:
    """A statement: acquires a connection, holds it for a while, and releases it."""

    def __init__(self, pool: Pool, seconds: float, answered: bool, patience: float) -> None:
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + patience
        self.connection: Any = None
        self.acquired: float | None = None
        self.ended: float | None = None
        self.error: BaseException | None = None
        self._pool, self._seconds, self._answered = pool, seconds, answered
        self.task = loop.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection: Any = await self._pool.acquire(self.deadline)
        except BaseException as error:
            self.error = error
            self.ended = loop.time()
            return
        self.connection = connection
        self.acquired = loop.time()
        failure = None
        try:
            await asyncio.sleep(STATEMENT_SECONDS if connection.forgotten else self._seconds)
            if connection.database.state != "up" and not connection.statements:
                connection.terminate()
                failure = asyncpg.CannotConnectNowError("the pooler cannot reach PostgreSQL")
            connection.statements += 1
        finally:
            self.ended = loop.time()
            answered = self._answered and not connection.closed and not connection.forgotten
            self._pool.release(connection, answered=answered, failure=failure)

    @property
    def is_waiting(self) -> bool:
        return self.acquired is None and self.ended is None


def make_options(*, min_size: int = 0, max_size: int, acquire_seconds: float = ACQUIRE_SECONDS) -> DatabaseOptions:
    return DatabaseOptions(
        name="URL",
        url=parse_url("postgresql://user@localhost/database"),
        acquire_timeout=acquire_seconds,
        connect_timeout=CONNECT_SECONDS,
        statement_timeout=STATEMENT_SECONDS,
        statement_cache_size=0,
        pool_min_size=min_size,
        pool_max_size=max_size,
        pool_idle_seconds=120.0,
    )


async def make_pool(
    kind: type[Pool], database: Database, *, min_size: int = 0, max_size: int, metrics: Metrics | None = None
) -> Pool:
    options = make_options(min_size=min_size, max_size=max_size)
    pool = kind(options, DatabaseMetrics(metrics or Metrics(), options.name), database.connect)
    await pool.open()
    return pool


async def make_database(pool: Pool, silence: type[Silence] = Silence) -> PooledDatabase:
    """Return what runs statements over a pool that is open."""
    database = PooledDatabase(make_options(max_size=1, acquire_seconds=15.0))
    database._pool = pool
    database._silence = silence("URL", pool.check_idle)
    database._loop = asyncio.get_running_loop()
    return database
