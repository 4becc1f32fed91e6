"""Gathers concurrent calls into one statement.

While a statement is in flight, the calls that arrive form a batch, which is sent as the next statement, or beside it:
slots.py says when a slot is free. A lone call is sent at once, a batch with a free slot at the end of the event loop's
tick. Invariants:

1. A batch is closed before it is sent, so a read sees every write acknowledged before the read arrived.
2. With no statement in flight a lone call is sent at once.
3. An error belongs to its call: if PostgreSQL refuses a batch, its calls are replayed one by one.
4. A call returns only after its statement.
5. A cancelled caller never cancels a statement that others share; the last caller to be cancelled does.
6. Keys are sorted, so that concurrent batches lock rows in one order. A key is in one batch at a time; further calls
   for it wait for later batches, in order of arrival.
7. A slow batch gives its slot back after SLOT_SECONDS, and a batch of several calls waits no longer for a locked row.
8. A batch and the queue are bounded; beyond that a call is refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from operator import attrgetter
from time import perf_counter
from typing import Any, Generic, NamedTuple, Self, TypeVar

import asyncpg

from api.context import RequestContext, serving, share
from api.database.options import Limits
from api.database.slots import HasRoom, Slots
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError, StatementFailedError

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]


def _always() -> bool:
    return True


_WAITED = "the statements before it took too long: see ACQUIRE_TIMEOUT_SECONDS"


class _Call(NamedTuple):
    item: Any
    key: Any
    future: asyncio.Future[Any]
    arrived: float
    served: Sequence[RequestContext]


class _NothingChangedError(Exception):
    """A statement was cancelled with its last caller, and changed nothing: a read, or a write that was never sent."""


class Batcher(Generic[Item, Result]):
    """Runs a function of many items for callers that have one item each: made by `read` or by `write`.

    `run` returns one result for each item, in their order. Without `limits` every call is a statement of its own.
    """

    def __init__(
        self, run: Run[Item, Result], limits: Limits | None, key: Callable[[Item], Any] | None, has_room: HasRoom
    ) -> None:
        self._run = run
        self._limits = limits
        self._key = key
        self._waiting: deque[_Call] = deque()
        self._busy: set[Any] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: dict[asyncio.Task[Any], list[_Call]] = {}  # the batch of each task
        self._ended: set[asyncio.Future[Any]] = set()  # of calls cancelled in the tick in which their statement ended
        self._gathering = False  # a task has a slot and has not begun: calls that arrive meanwhile join its batch
        self._slots = Slots(self._waiting, has_room, self._fill_slots, writes=key is not None)

    @classmethod
    def read(cls, run: Run[Item, Result], limits: Limits | None, *, has_room: HasRoom = _always) -> Self:
        """Return a batcher of reads, any of which may share a statement. `has_room` as in Database.has_room."""
        return cls(run, limits, None, has_room)

    @classmethod
    def write(
        cls, run: Run[Item, Result], limits: Limits | None, *, key: Callable[[Item], Any], has_room: HasRoom = _always
    ) -> Self:
        """Return a batcher of writes. `key` names what a call changes: no two with one key are in flight together."""
        return cls(run, limits, key, has_room)

    async def __call__(self, item: Item) -> Result:
        """Return the result for one item.

        Raises OverloadedError if the queue is full, DatabaseUnavailableError if no statement in flight made room in
        time, and what `run` raises for this item. If the caller is cancelled while its write may happen, raises
        OutcomeUnknownError.
        """
        limits = self._limits
        if limits is None:
            return (await self._run([item]))[0]
        if len(self._waiting) >= limits.max_waiting:
            raise OverloadedError
        key = self._key and self._key(item)
        if not self._slots.held and not self._waiting and key not in self._busy:
            return await self._run_alone(item, key, limits)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        now = perf_counter()
        self._waiting.append(_Call(item, key, future, now, serving.get()))
        if key in self._busy:
            self._slots.watch(limits)  # bounds the wait for the key
        else:
            self._fill_slots(limits, now)
        try:
            return await future
        except asyncio.CancelledError:
            return await self._abandon(future)

    async def _run_alone(self, item: Item, key: Any, limits: Limits) -> Result:
        """Run a call in its caller's task, which saves a task, a future and a tick, and cancels it with the caller."""
        slot, slots = object(), self._slots
        slots.held[slot] = slots.started = perf_counter()
        slots.is_single = True
        if slots.timer is None:
            slots.watch(limits)
        if key is not None:
            self._busy.add(key)
        try:
            return (await self._run([item]))[0]
        finally:
            self._busy.discard(key)
            slots.held.pop(slot, None)
            if self._waiting:
                self._fill_slots(limits, perf_counter())

    async def _abandon(self, future: asyncio.Future[Result]) -> Result:
        """Return or raise the outcome of a call whose caller is cancelled: CancelledError if it changed nothing."""
        if not future.cancelled():
            return future.result()  # the result came in the same tick
        found = (
            (task, calls, index)
            for task, calls in self._in_flight.items()
            for index, call in enumerate(calls)
            if call.future is future
        )
        task, calls, index = next(found, (None, [], 0))
        if task is None:
            if future in self._ended and self._key is not None:
                raise OutcomeUnknownError
            raise asyncio.CancelledError  # never sent, or refused with others and not replayed yet
        if all(call.future.done() for call in calls):
            # No other caller is left, so the statement is cancelled too. Its outcome shows whether it was sent.
            outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            calls[index] = calls[index]._replace(future=outcome)
            task.cancel()
            try:
                return await outcome
            except _NothingChangedError:
                raise asyncio.CancelledError from None
            except asyncio.CancelledError:
                pass  # cancelled once more, before the outcome was known
        if self._key is None:
            raise asyncio.CancelledError
        raise OutcomeUnknownError

    def _fill_slots(self, limits: Limits, now: float) -> None:
        """Start a task for the next batch if a slot is free, no other is about to take it, and a call can go."""
        if not self._waiting or self._gathering or not self._slots.has_free(now, len(self._slots.held), limits):
            return
        too_old = now - limits.max_wait_seconds
        if any(call.key not in self._busy or call.arrived < too_old or call.future.done() for call in self._waiting):
            self._gathering = True
            self._slots.held[self._start(self._work(limits))] = now

    async def _work(self, limits: Limits) -> None:
        """Send batch after batch, until none may be sent or a slow batch has cost this task its slot."""
        self._gathering = False
        task = asyncio.current_task()
        assert task is not None
        slots = self._slots
        while task in slots.held and (calls := self._take(limits)):
            slots.held[task] = slots.started = sent = perf_counter()
            slots.is_single = len(calls) == 1
            slots.watch(limits)
            self._fill_slots(limits, sent)  # calls beyond max_size go into another batch at once
            is_answered = await self._run_batch(calls, limits)
            now, others = perf_counter(), len(slots.held) - 1
            if is_answered:
                slots.note(now - sent, now)
            if others and (self._gathering or not slots.has_free(now, others, limits)):
                break  # of those about to begin, one is enough
        slots.held.pop(task, None)
        self._fill_slots(limits, perf_counter())

    def _take(self, limits: Limits) -> list[_Call]:
        """Take the calls of the next batch out of the queue, in order of arrival, as far as their keys are free."""
        taken: list[_Call] = []
        held_back: list[_Call] = []
        too_old = perf_counter() - limits.max_wait_seconds
        while self._waiting and len(taken) < limits.max_size:
            call = self._waiting.popleft()
            if call.future.done():
                continue
            if call.arrived < too_old:
                call.future.set_exception(DatabaseUnavailableError(_WAITED))
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
        # In a context of its own instead of the starting request's, since it serves other requests too.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_batch(self, calls: list[_Call], limits: Limits) -> bool:
        """Run the statement of some calls. Return True if it was answered."""
        task = asyncio.current_task()
        assert task is not None
        self._in_flight[task] = calls
        share(calls)
        is_answered = False
        try:
            # ValueError, which all callers get, if the statement does not give each of them a result.
            answers = list(zip(calls, await self._run([call.item for call in calls]), strict=True))
        except (asyncpg.PostgresError, StatementFailedError) as error:
            if len(calls) == 1:
                _fail(calls, error)
            else:
                # It changed nothing. Each call alone, outside the slots, shows which one failed it.
                for call in calls:
                    self._start(self._replay(call._replace(arrived=perf_counter()), limits))
                return False  # their keys stay busy
        except Exception as error:  # of any kind: the callers wait for it
            _fail(calls, error)
            self._note_ended(calls)
        except asyncio.CancelledError:  # by _abandon: the task continues with the next batch
            task.uncancel()
            _fail(calls, _NothingChangedError())
        else:
            is_answered = True
            for call, result in answers:
                if not call.future.done():
                    call.future.set_result(result)
                else:  # its caller was cancelled
                    self._note_ended([call])
        finally:
            del self._in_flight[task]
        self._busy.difference_update([call.key for call in calls])
        return is_answered

    def _note_ended(self, calls: Sequence[_Call]) -> None:
        """Note whose statement ended, for callers that are cancelled in this tick and run later in it."""
        loop = asyncio.get_running_loop()
        for call in calls:
            if call.future.cancelled():
                self._ended.add(call.future)
                loop.call_soon(self._ended.discard, call.future)

    async def _replay(self, call: _Call, limits: Limits) -> None:
        if call.future.done():
            self._busy.discard(call.key)
        else:
            await self._run_batch([call], limits)
        self._fill_slots(limits, perf_counter())


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(error)
