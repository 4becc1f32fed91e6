"""A statement's retries, deadline, error and figures, over simulated time and connections whose replies are given."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple, TypeVar

import asyncpg
import pytest
from starlette.types import Message

from api.context import RequestContext, serving
from api.database import connecting, fetch, indexes
from api.database.fetch import PooledDatabase, link_errors
from api.database.options import DatabaseOptions
from api.database.verdicts import Next
from api.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    StatementFailedError,
    StatementTimeoutError,
    describe,
)
from api.neon.url import parse_url
from api.telemetry.metrics import Metrics
from api.users.statements import ESTIMATE_USERS
from tests.support.simulated import SimulatedLoop
from tests.support.simulated_database import Closable

T = TypeVar("T")
TICK = 1e-6
LATENCY = 0.02
ACQUIRE_SECONDS = 2.0
STATEMENT_SECONDS = 10.0
READ = ESTIMATE_USERS
WRITE = replace(READ, writes=True)
OPTIONS = DatabaseOptions(
    name="URL",
    url=parse_url("postgresql://user@localhost/database"),
    acquire_timeout=ACQUIRE_SECONDS,
    connect_timeout=1.0,
    statement_timeout=STATEMENT_SECONDS,
    statement_cache_size=0,
    pool_min_size=0,
    pool_max_size=2,
    pool_idle_seconds=120.0,
)


class Reply(NamedTuple):
    """The reply to a statement after so many seconds: rows, or an error that may close the connection."""

    error: Exception | None = None
    sent: bool = True
    closes: bool = False
    seconds: float = LATENCY
    rows: Any = ("row",)


def answered(sqlstate: str, **fields: str) -> asyncpg.PostgresError:
    """Return an error that PostgreSQL answers, and leaves the connection open."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": sqlstate, "M": "x", "S": "ERROR", **fields})
    return error


def cut_off(cause: Exception | None = None) -> Reply:
    """Return the end of a connection, after what the server said last."""
    error = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    error.__cause__ = cause
    return Reply(error, closes=True)


class Connection(Closable):
    """The part of an asyncpg.Connection that the pool and a statement use."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self.world = world

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        self.world.closed.append(timeout)
        await asyncio.sleep(LATENCY)
        self.terminate()

    async def execute(self, sql: str, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        self.world.checks += 1
        await asyncio.sleep(LATENCY)

    async def fetch(self, sql: str, *arguments: object, timeout: float) -> Any:  # noqa: ASYNC109 - as asyncpg has it
        world = self.world
        world.sent.append((sql, *arguments))
        world.times.append(world.loop.time())
        world.timeouts.add(timeout)
        reply = next(world.replies)
        self._protocol.queries_count += reply.sent
        await asyncio.wait([self._ended], timeout=reply.seconds)
        if self.closed:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        if reply.closes:
            self.terminate()
        if reply.error is not None:
            raise reply.error
        return list(reply.rows)


class World:
    """A database, what its connections reply, and what was noted."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop()
        self.replies: Iterator[Reply] = repeat(Reply())
        self.connections: list[Connection] = []
        self.sent: list[tuple[object, ...]] = []
        self.times: list[float] = []
        self.timeouts: set[float] = set()
        self.closed: list[float | None] = []
        self.checks = 0
        self.traced: list[tuple[Any, ...]] = []
        self.metrics = Metrics()
        self.database: PooledDatabase

    async def connect(self, *_: object, **__: object) -> Any:
        await asyncio.sleep(LATENCY)
        self.connections.append(Connection(self))
        return self.connections[-1]

    def statement(self, name: str, outcome: str, seconds: float, served: Any) -> None:
        """Trace a statement, as api.telemetry.tracing does."""
        self.traced.append((name, outcome, seconds, len(served)))

    @property
    def outcomes(self) -> list[str]:
        return [outcome for _, outcome, *_ in self.traced]

    def replies_with(self, *replies: Reply, then: Reply | None = None) -> None:
        """Give these replies, and then the same one for ever."""
        self.replies = chain(replies, repeat(then or Reply()))

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something while the database is open."""

        async def run() -> T:
            await self.database.open()
            try:
                return await main()
            finally:
                await self.database.close()

        return self.loop.run_until_complete(run())

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry().get_sample_value(name, {"url": "URL", **labels}) or 0.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(connecting, "open_connection", world.connect)
    monkeypatch.setattr(fetch, "perf_counter", world.loop.time)
    world.database = PooledDatabase(OPTIONS, metrics=world.metrics, tracing=world)  # type: ignore[arg-type]
    yield world
    world.loop.close()


def request() -> RequestContext:
    async def send(message: Message) -> None:
        pass

    return RequestContext(b"id", send)


# For each step after a failure, of a read and of a write: the reply, the error, the statement's outcome in the metrics,
# what `answers` is then (None: as before), and how often the statement is sent (0: until its deadline).
STEPS: dict[tuple[Next, bool], tuple[Reply, type[Exception], str, bool | None, int]] = {
    (Next.RAISE, True): (Reply(answered("P0001")), asyncpg.RaiseError, "refused", True, 1),
    (Next.RAISE, False): (Reply(asyncpg.InterfaceError("x"), False), asyncpg.InterfaceError, "refused", True, 1),
    (Next.FAILED, True): (Reply(answered("42P01")), StatementFailedError, "refused", False, 1),
    (Next.FAILED, False): (Reply(answered("P0001")), StatementFailedError, "refused", False, 1),
    (Next.REPEAT, True): (Reply(answered("40001")), asyncpg.SerializationError, "refused", None, 0),
    (Next.REPEAT, False): (Reply(answered("40001")), StatementFailedError, "refused", None, 0),
    (Next.RETRY, True): (cut_off(answered("53300")), DatabaseUnavailableError, "failed", False, 0),
    (Next.RETRY, False): (cut_off(answered("53300")), DatabaseUnavailableError, "failed", False, 0),
    (Next.RESEND, False): (cut_off(), DatabaseUnavailableError, "failed", False, 5),
    (Next.UNAVAILABLE, True): (Reply(answered("57014")), DatabaseUnavailableError, "failed", False, 1),
    (Next.UNAVAILABLE, False): (Reply(answered("57014")), DatabaseUnavailableError, "failed", False, 1),
    (Next.TIMEOUT, False): (Reply(TimeoutError()), StatementTimeoutError, "failed", False, 1),
    (Next.UNKNOWN, True): (cut_off(), OutcomeUnknownError, "failed", False, 1),
}


def test_every_step_has_a_case() -> None:
    assert {step for step, _ in STEPS} == set(Next)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("step", "writes"), STEPS, ids=str)
def test_what_a_statement_that_fails_raises(world: World, step: Next, writes: bool, before: bool) -> None:
    reply, expected, outcome, answers, times = STEPS[step, writes]
    world.replies_with(then=reply)
    world.database.answers = before

    async def main() -> None:
        with pytest.raises(expected) as raised:
            await world.database.fetch(WRITE if writes else READ)
        assert type(raised.value) is expected
        assert reply.error in (raised.value, raised.value.__cause__) or step is Next.RETRY
        assert world.database.answers is (before if answers is None else answers)

    world.run(main)
    assert set(world.outcomes) == {outcome}
    assert len(world.outcomes) == len(world.sent) == (times or len(world.sent))
    assert times or len(world.sent) > 3
    assert world.loop.time() <= ACQUIRE_SECONDS + 2 * LATENCY + TICK or times
    assert world.timeouts == {STATEMENT_SECONDS}
    # The last attempt of a RETRY may have got no connection.
    assert len(world.sent) - world.value("users_api_statement_retries_total") in (
        (0, 1) if step is Next.RETRY else (1,)
    )


@pytest.mark.parametrize(
    ("reply", "writes", "remedy"),
    [
        (Reply(answered("42P01")), True, "users-api migrate"),
        (Reply(answered("57014")), True, "statement_timeout"),
        (Reply(answered("40001")), False, "default_transaction_isolation"),
        (cut_off(answered("57P04")), False, "dropped"),
    ],
)
def test_the_remedy_is_in_the_error(world: World, reply: Reply, writes: bool, remedy: str) -> None:
    world.replies_with(then=reply)

    async def main() -> None:
        with pytest.raises(DatabaseUnavailableError, match=remedy):
            await world.database.fetch(WRITE if writes else READ)

    world.run(main)


@pytest.mark.parametrize("reply", [Reply(answered("40001")), cut_off()], ids=repr)
def test_a_fault_that_passes_costs_a_pause(world: World, reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        await asyncio.gather(world.database.fetch(READ), world.database.fetch(READ))
        world.replies_with(reply, reply)
        world.database.answers = False
        rows: list[Any] = await world.database.fetch(READ, "argument")
        assert rows == ["row"]
        assert world.database.answers

    world.run(main)
    assert world.sent[2:] == [(READ.sql, "argument")] * 3
    first, second = (later - earlier - LATENCY for earlier, later in pairwise(world.times[2:]))
    assert 0.025 - TICK <= first <= 0.05 + TICK
    assert 0.05 - TICK <= second <= 0.1 + LATENCY * reply.closes + TICK
    assert reply.error
    line = f"sql/{READ.name} is tried again: {describe(reply.error)}"
    assert caplog.record_tuples.count(("api.database", logging.INFO, line)) == 2
    assert world.outcomes[-3:] == ["refused" if not reply.closes else "failed"] * 2 + ["ok"]


def test_a_connection_that_is_rejected_costs_no_pause_beside_an_idle_one(world: World) -> None:
    async def main() -> None:
        await asyncio.gather(world.database.fetch(READ), world.database.fetch(READ))
        world.replies_with(cut_off(answered("53300")))
        await world.database.fetch(READ)

    world.run(main)
    assert world.times[3] - world.times[2] == pytest.approx(LATENCY)


def test_a_pause_that_would_end_after_the_deadline_is_not_made(world: World) -> None:
    """Where the last attempt ends 1 ms before the deadline, the error comes at once; a statement may end after it."""
    world.replies_with(Reply(answered("40001"), seconds=ACQUIRE_SECONDS - LATENCY - 0.001))

    async def main() -> None:
        with pytest.raises(StatementFailedError):
            await world.database.fetch(READ)
        assert world.loop.time() == pytest.approx(ACQUIRE_SECONDS - 0.001)

    world.run(main)


def test_a_deadline_that_is_reached_is_over(world: World) -> None:
    reply = cut_off(answered("53300"))._replace(seconds=ACQUIRE_SECONDS - LATENCY)
    world.replies_with(reply)

    async def main() -> None:
        with pytest.raises(DatabaseUnavailableError):
            await world.database.fetch(READ)
        assert len(world.sent) == 1

    world.run(main)


@pytest.mark.parametrize("found", [0, 1, 2])
def test_a_violation_of_an_index_that_is_gone_is_tried_once_more(
    world: World, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`found`: how many of the two names that PostgreSQL gives are still those of an index."""
    monkeypatch.setitem(indexes._names, "definition", "known")
    violation = {"n": "new_name", "s": "public"}
    missing, named = Reply(rows=()), Reply(rows=[{"definition": "definition"}])
    names = [missing, missing, named][found : found + 2] if found < 2 else [named]
    replies = [reply for name in names for reply in (Reply(answered("23505", **violation)), name)]
    world.replies_with(*replies)

    async def main() -> str | None:
        with pytest.raises(asyncpg.UniqueViolationError) as raised:
            await world.database.fetch(WRITE)
        name: str | None = raised.value.constraint_name
        return name

    assert world.run(main) == ("known" if found else "new_name")
    assert world.sent.count((WRITE.sql,)) == len(names)
    assert [sql for sql in world.sent if sql != (WRITE.sql,)] == [
        (indexes.SELECT_INDEX.sql, "public", "new_name")
    ] * len(names)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("sent", [True, False])
def test_a_write_that_is_cancelled_may_have_happened_if_it_was_sent(world: World, writes: bool, sent: bool) -> None:
    world.replies_with(Reply(), Reply(sent=sent, seconds=60))

    async def main() -> None:
        await world.database.fetch(READ)
        task = asyncio.create_task(world.database.fetch(WRITE if writes else READ))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(OutcomeUnknownError if writes and sent else asyncio.CancelledError):
            await task

    world.run(main)
    assert world.outcomes == ["ok", "failed"]


# The first statement of a connection, or a later one: whether its failure counts as a failure to connect.
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        (cut_off(answered("53300")), "always"),
        (cut_off(), "first"),
        (cut_off()._replace(sent=False), "first"),
        (Reply(answered("57014")), "never"),
    ],
    ids=repr,
)
def test_a_connection_that_was_let_in_and_then_rejected_counts_as_one_that_was_not(
    world: World, reply: Reply, counts: str, is_first: bool
) -> None:
    world.replies_with(*[Reply()] * (not is_first), reply)

    async def main() -> None:
        for _ in range(1 if is_first else 2):
            with suppress(OutcomeUnknownError, DatabaseUnavailableError):
                await world.database.fetch(WRITE)

    world.run(main)
    expected = counts == "always" or (counts == "first" and is_first)
    assert world.value("users_api_connection_failures_total") == expected


@pytest.mark.parametrize(
    ("reply", "checks"),
    [
        (Reply(), 0),
        (Reply(answered("42P01")), 0),
        (Reply(answered("P0001")), 0),
        (Reply(answered("57014")), 1),  # the connection itself
        (Reply(TimeoutError()), 2),  # and the idle one
        (cut_off(TimeoutError()), 1),  # that one alone
        (cut_off(ConnectionResetError()), 0),
    ],
    ids=repr,
)
def test_connections_are_checked_after_one_gave_no_answer(world: World, reply: Reply, checks: int) -> None:
    async def main() -> None:
        await asyncio.gather(world.database.fetch(READ), world.database.fetch(READ))
        world.replies_with(reply)
        with suppress(Exception):
            await world.database.fetch(WRITE)
        await asyncio.sleep(1)
        assert world.checks == checks

    world.run(main)


def test_a_statement_says_how_long_it_waited_and_how_long_it_took(world: World) -> None:
    """Both connections are busy for 1 s, then it takes 2 s."""
    world.replies_with(*[Reply(seconds=1.0)] * 2, Reply(seconds=2.0), Reply(answered("42P01")))
    served = request()

    async def main() -> None:
        busy = [asyncio.create_task(world.database.fetch(READ)) for _ in range(2)]
        await asyncio.sleep(LATENCY)
        serving.set([served])
        await world.database.fetch(READ)
        await asyncio.gather(*busy)
        assert served.queue == pytest.approx(1.0)
        assert served.database == pytest.approx(2.0)
        with pytest.raises(StatementFailedError):
            await world.database.fetch(READ)

    world.run(main)
    name = READ.name.removesuffix(".sql")
    assert world.traced[2:] == [
        (READ.name, "ok", pytest.approx(2.0), 1),
        (READ.name, "refused", pytest.approx(LATENCY), 1),
    ]
    for outcome, number, seconds in (("ok", 3, 4.0), ("refused", 1, LATENCY)):
        labels = {"statement": name, "outcome": outcome}
        assert world.value("users_api_statement_duration_seconds_count", **labels) == number
        assert world.value("users_api_statement_duration_seconds_sum", **labels) == pytest.approx(seconds)


@pytest.mark.parametrize("is_reachable", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_a_statement_without_a_connection_says_how_long_it_waited(
    world: World, is_reachable: bool, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That every connection is busy says nothing about the database."""
    served = request()
    world.replies_with(then=Reply(seconds=STATEMENT_SECONDS))

    async def refuse() -> Any:
        raise ConnectionRefusedError

    async def main() -> None:
        busy = [asyncio.create_task(world.database.fetch(WRITE)) for _ in range(2 if is_reachable else 0)]
        await asyncio.sleep(2 * LATENCY)
        if not is_reachable:
            monkeypatch.setattr(world.database._pool, "_connect", refuse)
        world.database.answers = before
        serving.set([served])
        with pytest.raises(DatabaseUnavailableError):
            await world.database.fetch(READ)
        assert served.queue == pytest.approx(ACQUIRE_SECONDS)
        assert served.database == 0
        assert world.database.answers is (before and is_reachable)
        await asyncio.gather(*busy)

    world.run(main)


def test_reads_without_an_answer_are_all_sent_again_once_one_of_them_is_answered(world: World) -> None:
    world.database = PooledDatabase(replace(OPTIONS, acquire_timeout=15.0), tracing=world)  # type: ignore[arg-type]

    async def main() -> None:
        world.replies_with(*[Reply(seconds=60)] * 2)
        await asyncio.gather(world.database.fetch(READ), world.database.fetch(READ))
        assert 2.0 < world.loop.time() < 3.0

    world.run(main)
    assert world.outcomes == ["failed", "ok", "failed", "ok"]


def test_a_write_waits_for_a_lock_for_less_time_than_a_statement_has(world: World) -> None:
    """That a row is locked is an answer; a write that is cut off has none."""
    assert STATEMENT_SECONDS / 2 < world.database.lock_timeout < 0.9 * STATEMENT_SECONDS


def test_the_pool_is_opened_and_closed_with_the_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    database = world.database = PooledDatabase(replace(OPTIONS, pool_min_size=1))
    assert database.answers
    world.replies_with(then=Reply(seconds=1.0))

    async def main() -> None:
        assert (database.opened, database.has_room()) == (1, True)
        both = [asyncio.create_task(database.fetch(READ)) for _ in range(2)]
        await asyncio.sleep(1.5 * LATENCY)
        assert (database.opened, database.has_room()) == (2, False)
        await asyncio.gather(*both)

    world.run(main)
    assert [each.closed for each in world.connections] == [True, True]


# A connection outside the pool


@pytest.fixture
def outside(world: World, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each connection that is opened outside the pool; the first is slow."""
    opened: list[dict[str, Any]] = []

    async def connect(**arguments: Any) -> Any:
        opened.append(arguments)
        return await world.connect()

    monkeypatch.setattr(asyncpg, "connect", connect)
    return opened


def test_a_connection_outside_the_pool_is_opened_closed_and_timed(world: World, outside: list[dict[str, Any]]) -> None:
    served = request()

    async def main() -> None:
        await asyncio.sleep(1)
        serving.set([served])
        async with world.database.connect():
            await asyncio.sleep(3)

    world.run(main)
    ((connection,), (arguments,)) = world.connections, outside
    assert connection.closed
    assert world.closed == [STATEMENT_SECONDS]
    assert (arguments["timeout"], arguments["statement_cache_size"]) == (1.0, 0)
    assert arguments.items() >= OPTIONS.url.asyncpg_arguments().items()
    assert served.queue == pytest.approx(LATENCY)
    assert served.database == pytest.approx(3 + LATENCY)


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
def test_a_connection_outside_the_pool_whose_work_fails_is_ended_at_once(
    world: World, outside: list[dict[str, Any]], error: type[BaseException]
) -> None:
    served = request()

    async def work() -> None:
        async with world.database.connect():
            await asyncio.sleep(3)
            raise error

    async def main() -> None:
        serving.set([served])
        with pytest.raises(error):
            await work()
        assert world.loop.time() == pytest.approx(3 + LATENCY)

    world.run(main)
    assert world.connections[0].closed
    assert world.closed == []
    assert served.database == pytest.approx(3)


def test_a_connection_outside_the_pool_is_not_waited_for_after_its_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(**_: Any) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncpg, "connect", connect)

    async def main() -> None:
        with pytest.raises(DatabaseUnavailableError):
            async with world.database.connect():
                pass
        assert world.loop.time() == pytest.approx(ACQUIRE_SECONDS)

    world.run(main)


def test_a_connection_outside_the_pool_overtakes_an_attempt_that_is_stuck(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the one that comes second open for a second; none takes the place of one that breaks."""
    seconds = [1.3, 1.0]

    async def connect(**_: Any) -> Any:
        await asyncio.sleep(seconds.pop(0))
        return await world.connect()

    monkeypatch.setattr(asyncpg, "connect", connect)
    database = PooledDatabase(replace(OPTIONS, acquire_timeout=5.0, connect_timeout=5.0, pool_min_size=3))

    async def is_open(at: float) -> list[bool]:
        await asyncio.sleep(at - world.loop.time())
        return [not each.closed for each in world.connections]

    async def main() -> None:
        async with database.connect() as connection:
            assert world.loop.time() == pytest.approx(1.3 + LATENCY)
            assert await is_open(2.5) == [True, True]
            assert await is_open(3.1) == [True, False]
            connection.terminate()
            assert await is_open(9.0) == [False, False]

    world.run(main)


def test_no_more_than_two_connections_are_opened_outside_the_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = [0]

    async def connect(**_: Any) -> Any:
        under_way.append(under_way[-1] + 1)
        try:
            await asyncio.sleep(3600)
        finally:
            under_way.append(under_way[-1] - 1)

    monkeypatch.setattr(asyncpg, "connect", connect)
    database = PooledDatabase(replace(OPTIONS, acquire_timeout=5.0, connect_timeout=60.0, pool_max_size=7))

    async def main() -> None:
        with pytest.raises(DatabaseUnavailableError):
            await database.connect().__aenter__()
        await asyncio.sleep(0)
        assert under_way[-1] == 0

    world.run(main)
    assert max(under_way) == 2


# Under a COPY

LINKS: list[tuple[Exception, bool, type[Exception]]] = [
    (answered("P0001"), True, asyncpg.RaiseError),
    (answered("P0001"), False, StatementFailedError),
    (answered("40001"), True, asyncpg.SerializationError),
    (answered("40001"), False, DatabaseUnavailableError),
    (answered("42P01"), True, StatementFailedError),
    (answered("57014"), True, DatabaseUnavailableError),
    (ConnectionResetError(), True, OutcomeUnknownError),
    (ConnectionResetError(), False, DatabaseUnavailableError),
    (TimeoutError(), True, OutcomeUnknownError),
    (TimeoutError(), False, StatementTimeoutError),
    (asyncpg.PostgresWarning("x"), True, OutcomeUnknownError),
]


@pytest.mark.parametrize(("error", "writes", "expected"), LINKS, ids=repr)
def test_what_breaks_a_copy_raises_as_a_statement_does(
    error: Exception, writes: bool, expected: type[Exception]
) -> None:
    with pytest.raises(expected) as raised, link_errors(writes=writes):
        raise error
    assert type(raised.value) is expected
    assert error is raised.value or error is raised.value.__cause__ or isinstance(error, asyncpg.PostgresWarning)


def test_a_copy_that_does_not_fail_raises_nothing() -> None:
    with link_errors(writes=True):
        pass
    with pytest.raises(KeyError), link_errors(writes=True):
        raise KeyError
