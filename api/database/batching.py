"""Gathers concurrent calls into one statement.

While a statement is on its way, the calls that arrive wait together, and leave in the next one. There is no timer: a
call that finds nobody else leaves at once, and with a free slot one leaves at the end of the event loop's tick. What
holds, and `tests/database/test_batching.py` pins:

1. A batch is closed before it is sent, so a read sees every write that was acknowledged before the read arrived.
2. With a free slot a lone call leaves at once.
3. An error belongs to its call: what PostgreSQL refuses as a whole is replayed one by one.
4. A call is answered after the statement that carried it, never before.
5. A caller that is cancelled drops its interest, never a statement that others share; with the last one it ends.
6. Keys are sorted, so that concurrent batches lock rows in one order; a key is in one batch at a time, and the next
   call for it waits for the next batch, in order of arrival.
7. A slow batch gives its slot back after PATIENCE_SECONDS, and a batch of several waits no longer for a locked row.
8. A batch and the queue are capped; beyond that a call is refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from operator import attrgetter
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg

from api.context import RequestContext, serving, share
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError

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
    served: Sequence[RequestContext]


class _NothingChangedError(Exception):
    """A statement that nobody waits for any more was cancelled: it was a read, or was never sent."""


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
        self._slots: dict[object, float] = {}  # by whoever has it, with the time at which its batch was sent
        self._carried: dict[asyncio.Task[Any], list[_Call]] = {}  # what each task has on its way
        self._gathering = False  # a task has a slot and has not begun: what arrives meanwhile goes with it
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, item: Item) -> Result:
        """The result for one item.

        Raises OverloadedError where too many wait already, DatabaseUnavailableError where none of the statements in
        flight made room in time, and what `run` raises for this item. A caller that is cancelled while a write of its
        may happen gets OutcomeUnknownError.
        """
        limits = self._limits
        if limits is None:
            return (await self._run([item]))[0]
        if len(self._waiting) >= limits.max_waiting:
            raise OverloadedError
        key = self._key and self._key(item)
        if not self._slots and not self._waiting and key not in self._busy:
            return await self._run_alone(item, key, limits)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Call(item, key, future, perf_counter(), serving.get()))
        if key in self._busy:
            self._watch(limits)  # that it does not wait for its key for too long
        else:
            self._fill_slots(limits)
        try:
            return await future
        except asyncio.CancelledError:
            return await self._abandon(future)

    async def _run_alone(self, item: Item, key: Any, limits: Limits) -> Result:
        """Run a call that finds nobody else, in its caller's own task: a task, a future and a tick less.

        Where the caller is cancelled the statement ends too: nobody shares it.
        """
        slot = object()
        self._occupy(slot, limits)
        if key is not None:
            self._busy.add(key)
        try:
            return (await self._run([item]))[0]
        finally:
            self._busy.discard(key)
            self._slots.pop(slot, None)
            if self._waiting:
                self._fill_slots(limits)

    async def _abandon(self, future: asyncio.Future[Result]) -> Result:
        """What becomes of a call whose caller is cancelled. Raises CancelledError where it changed nothing."""
        if not future.cancelled():
            return future.result()  # It came in the very tick.
        carried = (
            (task, calls, place)
            for task, calls in self._carried.items()
            for place, call in enumerate(calls)
            if call.future is future
        )
        carrier, calls, place = next(carried, (None, [], 0))
        if carrier is None:
            raise asyncio.CancelledError  # It still waits, and is never sent.
        if all(call.future.done() for call in calls):
            # Nobody else shares the statement, so that it ends too; whether it was sent is known then.
            verdict: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            calls[place] = calls[place]._replace(future=verdict)
            carrier.cancel()
            try:
                return await verdict
            except _NothingChangedError:
                raise asyncio.CancelledError from None
            except asyncio.CancelledError:
                pass  # Cancelled once more: the verdict comes too late.
        if self._key is None:
            raise asyncio.CancelledError
        raise OutcomeUnknownError

    def _fill_slots(self, limits: Limits) -> None:
        """Give a free slot to a task of its own, unless one is about to take what waits, or nothing can be taken."""
        if not self._waiting or self._gathering or len(self._slots) >= limits.in_flight:
            return
        too_old = perf_counter() - limits.max_wait_seconds
        if any(call.key not in self._busy or call.arrived < too_old or call.future.done() for call in self._waiting):
            self._gathering = True
            self._slots[self._start(self._work(limits))] = perf_counter()

    async def _work(self, limits: Limits) -> None:
        """Send batch after batch, for as long as something waits and none was so slow that it lost the slot."""
        self._gathering = False
        task = asyncio.current_task()
        assert task is not None
        while task in self._slots and (calls := self._take(limits)):
            self._occupy(task, limits)
            self._fill_slots(limits)  # what one batch cannot hold goes into the next at once
            await self._carry(calls, limits)
        self._slots.pop(task, None)
        self._fill_slots(limits)

    def _take(self, limits: Limits) -> list[_Call]:
        """The calls of the next batch, in order of arrival as far as their keys are free."""
        taken: list[_Call] = []
        held_back: list[_Call] = []
        too_old = perf_counter() - limits.max_wait_seconds
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

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own, not in that of the request that happens to start it: it serves others too.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _occupy(self, slot: object, limits: Limits) -> None:
        self._slots[slot] = perf_counter()
        self._watch(limits)

    def _watch(self, limits: Limits) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._give_back, limits)

    def _give_back(self, limits: Limits) -> None:
        """Take the slots of the batches that are out for too long. One timer serves them all: a timer costs a µs."""
        too_old = perf_counter() - PATIENCE_SECONDS
        self._slots = {slot: sent for slot, sent in self._slots.items() if sent > too_old}
        self._timer = None
        if self._slots:
            rest = min(self._slots.values()) - too_old
            self._timer = asyncio.get_running_loop().call_later(rest, self._give_back, limits)
        elif self._waiting:
            self._watch(limits)
        self._fill_slots(limits)

    async def _carry(self, calls: list[_Call], limits: Limits) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carried[task] = calls
        share(calls)
        try:
            results = await self._run([call.item for call in calls])
        except asyncpg.PostgresError as error:
            if len(calls) == 1:
                _fail(calls, error)
            else:
                # It left nothing behind. Whose fault it was shows when each goes alone, outside the slots.
                for call in calls:
                    self._start(self._replay(call._replace(arrived=perf_counter()), limits))
                return  # their keys stay busy
        except Exception as error:  # Whatever it is, the callers must hear of it.
            _fail(calls, error)
        except asyncio.CancelledError:  # by _abandon: the task has other calls to carry
            task.uncancel()
            _fail(calls, _NothingChangedError())
        else:
            for call, result in zip(calls, results, strict=True):
                if not call.future.done():  # done already: its caller went away
                    call.future.set_result(result)
        finally:
            del self._carried[task]
        self._busy.difference_update([call.key for call in calls])

    async def _replay(self, call: _Call, limits: Limits) -> None:
        if call.future.done():
            self._busy.discard(call.key)
        else:
            await self._carry([call], limits)
        self._fill_slots(limits)


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(error)
