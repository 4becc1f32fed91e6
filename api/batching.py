"""Gathers concurrent calls into one statement.

While a statement is on its way, the calls that arrive wait together, and leave in the next one. There is no timer: with
a free slot a call leaves at the end of the event loop's tick. What holds, and `tests/test_batching.py` pins:

1. A batch is closed before it is sent, so a read sees every write that was acknowledged before the read arrived.
2. With a free slot a lone call leaves at once.
3. An error belongs to its call: what PostgreSQL refuses as a whole is replayed one by one.
4. A call is answered after the statement that carried it, never before.
5. A caller that goes away drops its interest, never the statement.
6. Keys are sorted, so that concurrent batches lock rows in one order; a key is in one batch at a time, and the next
   call for it waits for the next batch, in order of arrival.
7. A slow batch gives its slot back after PATIENCE_SECONDS, and a batch of several waits no longer for a locked row.
8. A batch and the queue are capped; beyond that a call is refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg

from api.errors import DatabaseUnavailableError, OverloadedError

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE_SECONDS = 0.1
"""How long a batch keeps its slot, and how long several calls wait together for a row that somebody else has locked."""


class Limits(NamedTuple):
    """The bounds of one batcher: statements in flight, calls in a statement, calls that wait and for how long (s)."""

    in_flight: int
    max_size: int
    max_waiting: int
    max_wait_seconds: float


class _Call(NamedTuple):
    item: Any
    key: Any
    future: asyncio.Future[Any]
    arrived: float


class Batcher(Generic[Item, Result]):
    """Runs a function of many items for callers that each have one.

    `run` returns one result for each item, in their order. `key` names what a call changes: two calls with one key
    never travel together or side by side. Reads have none. Without `limits` every call is a statement of its own.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        limits: Limits | None,
        key: Callable[[Item], Any] | None = None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._key = key
        self._waiting: deque[_Call] = deque()
        self._busy: set[Any] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises OverloadedError where too many wait already, DatabaseUnavailableError where none of the statements in
        flight made room in time, and what `run` raises for this item.
        """
        limits = self._limits
        if limits is None:
            return (await self._run([item]))[0]
        if len(self._waiting) >= limits.max_waiting:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Call(item, self._key and self._key(item), future, loop.time()))
        if not self._scheduled and len(self._slots) < limits.in_flight:
            self._scheduled = True
            loop.call_soon(self._send, limits)
        return await future

    def _send(self, limits: Limits) -> None:
        self._scheduled = False
        while self._waiting and len(self._slots) < limits.in_flight:
            calls = self._take(limits)
            if not calls:
                return
            task = self._start(calls, limits)
            self._slots.add(task)
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._give_back, task, limits)

    def _take(self, limits: Limits) -> list[_Call]:
        """The calls of the next batch, in order of arrival as far as their keys are free."""
        taken: list[_Call] = []
        held_back: list[_Call] = []
        too_old = asyncio.get_running_loop().time() - limits.max_wait_seconds
        while self._waiting and len(taken) < limits.max_size:
            call = self._waiting.popleft()
            if call.future.done():
                continue
            if call.arrived < too_old:
                call.future.set_exception(DatabaseUnavailableError())
            elif call.key is None:
                taken.append(call)
            elif call.key in self._busy:
                held_back.append(call)
            else:
                self._busy.add(call.key)
                taken.append(call)
        self._waiting.extendleft(reversed(held_back))
        if self._key is not None:
            taken.sort(key=attrgetter("key"))
        return taken

    def _start(self, calls: list[_Call], limits: Limits) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._carry(calls, limits))
        self._tasks.add(task)
        return task

    def _give_back(self, task: asyncio.Task[None], limits: Limits) -> None:
        if task in self._slots:
            self._slots.discard(task)
            self._send(limits)

    async def _carry(self, calls: list[_Call], limits: Limits) -> None:
        try:
            results = await self._run([call.item for call in calls])
        except asyncpg.PostgresError as error:
            if len(calls) == 1:
                _fail(calls, error)
            else:
                # It left nothing behind. Whose fault it was shows when each goes alone, outside the slots.
                for call in calls:
                    self._start([call], limits)
                calls = []
        except Exception as error:  # Whatever it is, the callers must hear of it.
            _fail(calls, error)
        else:
            for call, result in zip(calls, results, strict=True):
                if not call.future.done():  # done already: its caller went away
                    call.future.set_result(result)
        self._busy.difference_update([call.key for call in calls])
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)
        self._slots.discard(task)
        self._send(limits)


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(error)
