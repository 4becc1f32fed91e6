"""Random fault injections for `torture.py`: everything that can fail between a client and the disk."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import psutil
import psycopg

from api.neon.url import parse_url
from tests.support.rig import (
    LOSES_PACKETS,
    NEON_PERMANENT,
    NEON_TRANSIENT,
    ROLE,
    SHUTDOWN,
    STARTING,
    Cut,
    Farewell,
    Injection,
    NeonDatabase,
    Point,
    Rig,
)
from tests.support.rig.injections import Action

# PgBouncer's errors for a statement without a server connection, and for one whose server connection broke.
_QUEUED = Farewell("08P01", "query_wait_timeout")
_CRASHED = Farewell("08P01", "server conn crashed?")

# The errors that may end a connection at each point. A rejected connection may get any of them. Later only errors that
# end a working connection are sent, and none in the middle of an answer. The proxies' own errors mean that a statement
# did not reach the compute, so they are sent only when that is true.
_FAREWELLS: dict[Point, tuple[Farewell, ...]] = {
    Point.ACCEPT: (),
    Point.CONNECT: (SHUTDOWN, STARTING, *NEON_TRANSIENT, *NEON_PERMANENT),
    Point.REQUEST: (SHUTDOWN, _CRASHED, _QUEUED, *NEON_TRANSIENT),
    Point.TORN_REQUEST: (SHUTDOWN, _CRASHED),
    Point.ANSWER: (SHUTDOWN, _CRASHED),
    Point.TORN_ANSWER: (),
    Point.ANSWERED: (SHUTDOWN,),
}
# The network loses packets by a filter that only root may attach, on Linux.
_ALLOWED_CUTS = [cut for cut in Cut if cut is not Cut.LOSS or LOSES_PACKETS]
_CUTS: dict[str, Action] = {**{cut.value: cut for cut in _ALLOWED_CUTS}, SHUTDOWN.sqlstate: SHUTDOWN}

_OUTAGE_SECONDS = (1.0, 30.0)
_OUTAGE_PAUSE_SECONDS = (15.0, 30.0)
_AFTER_OUTAGE_SECONDS = 2.0

_BACKENDS = (
    f"select pid from pg_stat_activity where usename = '{ROLE}' order by state = 'active' desc, random() limit 3"
)
# The clients work on the newest users.
_LOCK_ROWS = "select from users order by id desc limit 5 for update"


def fault_injections() -> dict[str, list[Injection]]:
    """Return the fault injections into one connection or statement, by name; those of one name differ in their text."""
    kinds: dict[str, list[Injection]] = {}
    for point in Point:
        actions: list[Action] = [*_ALLOWED_CUTS, *_FAREWELLS[point]]
        for action in actions:
            fault = Injection(point, action)
            kinds.setdefault(str(fault), []).append(fault)
    return kinds


class Chaos:
    """Inject faults of every kind in random order, each kind once before any is repeated; several may overlap.

    `server` is the supervisor of the workers, `postmaster` that of PostgreSQL. `only` keeps the kinds whose name
    contains it; raises ValueError if none does.
    """

    def __init__(
        self, rig: Rig, database: NeonDatabase, server: psutil.Process, postmaster: psutil.Process, only: str = ""
    ) -> None:
        self._rig = rig
        self._database = database
        self._server = server
        self._postmaster = postmaster
        self._chance = random.Random()
        self._counts: Counter[str] = Counter()
        self._missed: list[str] = []
        self.outages: list[tuple[float, float]] = []
        """Each outage: when it began and when it ended, by time.perf_counter()."""
        # Each returns the number of injections, or None if the proxy counts them under the same name.
        kinds: dict[str, Callable[[], Awaitable[int | None]]] = {
            **{name: partial(self._arm, choices) for name, choices in fault_injections().items()},
            "suspend": self._suspend,
            "full 08P01": self._fill_pooler,
            **{f"cut {name}": partial(self._cut, action) for name, action in _CUTS.items()},
            "latency": self._slow_down,
            "rows locked": self._lock_rows,
            "backend terminated": self._terminate_backends,
            "PostgreSQL crash": self._crash,
            "worker SIGKILL": self._kill_workers,
        }
        self._kinds = {name: inject for name, inject in kinds.items() if only in name}
        self._has_outages = not only
        if not self._kinds:
            raise ValueError(f"no fault injection has {only!r} in its name; there are: {', '.join(kinds)}")

    @property
    def counts(self) -> dict[str, int]:
        """The number of injections of each kind."""
        injected = self._counts + self._rig.counts.faults
        return {name: injected[name] for name in self._kinds}

    async def run(self, per_second: float, end: asyncio.Event) -> None:
        """Inject `per_second` faults a second at random moments until `end` is set; return when all are over.

        The more injections are pending, the slower new ones follow. Otherwise every attempt to connect during an
        outage would meet one, and the outage would never end. Now and then everything is down for up to 30 s. Nothing
        else is injected then and in the two seconds after it, so that the recovery is that of the service.
        """
        clock = time.perf_counter
        outage_at = clock() + self._chance.uniform(*_OUTAGE_PAUSE_SECONDS)
        # PgBouncer rejects clients for this time after a failed login. Its default, 15 s, would be most of a run.
        await asyncio.to_thread(self._rig.pgbouncer.run, "set server_login_retry = '0.2'")
        async with asyncio.TaskGroup() as group:
            for name in self._shuffled():
                if clock() >= outage_at and self._has_outages:
                    await self._take_down(end)
                    outage_at = clock() + self._chance.uniform(*_OUTAGE_PAUSE_SECONDS)
                group.create_task(self._inject_one(name))
                pause = self._chance.expovariate(per_second) * (1 + self._rig.pending / 3)
                with suppress(TimeoutError):
                    await asyncio.wait_for(end.wait(), pause)
                    break

    async def _take_down(self, end: asyncio.Event) -> None:
        """End every connection and refuse new ones for a while, or until `end` is set."""
        await asyncio.to_thread(self._rig.forget)
        self._rig.refusal = STARTING
        await asyncio.to_thread(self._rig.cut, Cut.RESET)
        began = time.perf_counter()
        with suppress(TimeoutError):
            await asyncio.wait_for(end.wait(), self._chance.uniform(*_OUTAGE_SECONDS))
        self._rig.refusal = None
        if not end.is_set():
            self.outages.append((began, time.perf_counter()))
            await asyncio.sleep(_AFTER_OUTAGE_SECONDS)

    def _shuffled(self) -> Iterator[str]:
        while True:
            for name in self._chance.sample(list(self._kinds), len(self._kinds)):
                while self._missed:
                    yield self._missed.pop()
                yield name

    async def _inject_one(self, name: str) -> None:
        # If a process has ended by itself or PostgreSQL is recovering, this kind is retried later.
        times: int | None = 0
        with suppress(psutil.NoSuchProcess, psycopg.OperationalError, psycopg.InterfaceError):
            times = await self._kinds[name]()
        if times == 0:
            self._missed.append(name)
        elif times is not None:
            self._counts[name] += times

    async def _arm(self, choices: Sequence[Injection]) -> None:
        await asyncio.to_thread(self._rig.inject, self._chance.choice(choices))

    async def _suspend(self) -> None:
        action: Action = self._chance.choice((SHUTDOWN, Cut.RESET))
        self._rig.wake_seconds = self._chance.uniform(0.1, 0.5)
        await asyncio.to_thread(self._rig.suspend, action)

    async def _fill_pooler(self) -> None:
        self._rig.max_client_conn = 1
        await self._wait()
        self._rig.max_client_conn = None

    async def _cut(self, action: Action) -> int:
        await asyncio.to_thread(self._rig.cut, action)
        return 1

    async def _slow_down(self) -> int:
        self._rig.latency = self._chance.uniform(0.02, 0.2)
        await self._wait()
        self._rig.latency = self._rig.distance
        return 1

    async def _lock_rows(self) -> int:
        """Lock rows that the service writes, for shorter or longer than its lock timeout."""
        async with await _connect(self._database.superuser) as connection, connection.transaction():
            await connection.execute(_LOCK_ROWS)
            await asyncio.sleep(self._chance.uniform(0.1, 1.5))
        return 1

    async def _terminate_backends(self) -> int:
        async with await _connect(self._database.superuser) as connection:
            ended = await connection.execute(f"select pg_terminate_backend(pid) from ({_BACKENDS})".encode())
            return min(ended.rowcount, 1)

    async def _crash(self) -> int:
        """SIGKILL a backend: PostgreSQL then ends all others and replays the write-ahead log."""
        async with await _connect(self._database.superuser) as connection:
            rows = await (await connection.execute(_BACKENDS.encode())).fetchall()
        pids = {pid for (pid,) in rows}
        for backend in [child for child in self._postmaster.children() if child.pid in pids][:1]:
            backend.kill()
            return 1
        return 0

    async def _kill_workers(self) -> int:
        workers = [child for child in self._server.children() if _is_worker(child)]
        victims = workers if self._chance.random() < 0.1 else workers and [self._chance.choice(workers)]
        for worker in victims:
            worker.kill()
        return len(victims)

    async def _wait(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.2, 0.6))


async def _connect(url: str) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(**parse_url(url).psycopg_arguments(), autocommit=True)  # type: ignore[arg-type]


def _is_worker(process: psutil.Process) -> bool:
    """Return True if a child of the supervisor is a worker and not multiprocessing's resource tracker."""
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.NoSuchProcess:  # also raised for a zombie that the supervisor has not reaped yet
        return False
