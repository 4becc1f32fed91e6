"""The batcher over simulated time: its invariants, whichever task goes on next and however each statement ends."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.database import batching, slots
from api.database.batching import Batcher
from api.database.options import Limits
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError, StatementFailedError
from tests.support.simulated import SimulatedLoop

TICK = 1e-6
WAIT_SECONDS = 0.25
SLOT_SECONDS = 0.1
MOMENT_SECONDS = 0.012
"""The longest that a slot stays free while a call waits that may take it."""
KEYS = "abc"
REFUSALS = (asyncpg.UniqueViolationError, StatementFailedError)
FAILURES = (OutcomeUnknownError, DatabaseUnavailableError, ZeroDivisionError)


class Call:
    """A call of the batcher. With a `refusal`, PostgreSQL refuses each statement that it is in."""

    def __init__(self, number: int, key: str, refusal: type[Exception] | None) -> None:
        self.number = number
        self.key = key
        self.refusal = refusal
        self.arrived = float("inf")
        self.times_sent = 0
        self.times_applied = 0
        self.is_cancelled = False
        self.failures: set[type[Exception]] = set()
        """The errors of its statements that are its own."""
        self.is_settled = False
        """Its last statement was answered."""
        self.task: asyncio.Task[int]

    def is_queued(self, now: float) -> bool:
        """Return True if it has arrived, was never sent, and may be sent still."""
        is_over = self.times_sent or self.is_cancelled or self.task.done()
        return not is_over and self.arrived <= now <= self.arrived + WAIT_SECONDS - TICK


class InFlight:
    """A statement that was sent, and its answer."""

    def __init__(self, calls: Sequence[Call], at: float) -> None:
        self.calls = calls
        self.sent = at
        self.is_replay = calls[0].times_sent > 0
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, failure: type[Exception] | None = None) -> None:
        """Answer it, or let it fail. One that PostgreSQL refuses has changed nothing."""
        refusal = next((call.refusal for call in self.calls if call.refusal), None)
        error = failure or refusal
        if error is None or error is OutcomeUnknownError:
            for call in self.calls:
                call.times_applied += 1
        if failure or not refusal or len(self.calls) == 1:
            for call in self.calls:
                call.is_settled = True
                call.failures |= {error} if error else set()
        if error:
            self.answer.set_exception(error("as planned"))
        else:
            self.answer.set_result(None)


class BatchingMachine(RuleBasedStateMachine):
    """Steps of callers and of a database. As little as one tick of the event loop passes between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, problem: self.problems.append(problem))
        self.patch = pytest.MonkeyPatch()
        for module in (batching, slots):
            self.patch.setattr(module, "perf_counter", self.loop.time)
        self.calls: list[Call] = []
        self.in_flight: list[InFlight] = []

    @initialize(
        writes=st.booleans(),
        has_room=st.sampled_from([True, True, False]),
        in_flight=st.integers(1, 3),
        max_size=st.integers(1, 4),
        max_waiting=st.sampled_from([2, 4, 100]),
    )
    def start(self, writes: bool, has_room: bool, in_flight: int, max_size: int, max_waiting: int) -> None:
        self.writes = writes
        self.limits = Limits(in_flight, max_size, max_waiting, WAIT_SECONDS)
        self.most_in_flight = in_flight if has_room else 1
        if writes:
            self.batcher = Batcher[Call, int].write(
                self.run, self.limits, key=lambda call: call.key, has_room=lambda: has_room
            )
        else:
            self.batcher = Batcher[Call, int].read(self.run, self.limits, has_room=lambda: has_room)

    async def run(self, calls: Sequence[Call]) -> Sequence[int]:
        """Run a statement, which is one that may be sent now."""
        statement = InFlight(calls, self.loop.time())
        self.check_sent(statement)
        for call in calls:
            call.times_sent += 1
        self.in_flight.append(statement)
        try:
            await statement.answer
        except asyncio.CancelledError:
            assert all(call.is_cancelled for call in calls), "a caller is left"
            if not statement.answer.cancelled():
                statement.answer.exception()  # it was answered in the tick in which it was cancelled
            if self.writes and (calls[0].number % 2 or any(call.times_applied for call in calls)):
                for call in calls:
                    call.times_applied = 1  # PostgreSQL has run half of them nonetheless
                raise OutcomeUnknownError from None
            raise
        finally:
            self.in_flight.remove(statement)
        return [call.number for call in calls]

    def check_sent(self, statement: InFlight) -> None:
        now, calls = self.loop.time(), statement.calls
        assert 1 <= len(calls) <= self.limits.max_size
        assert not any(call.times_applied for call in calls)
        if statement.is_replay:
            assert len(calls) == 1
        else:
            assert all(now - call.arrived <= WAIT_SECONDS + TICK for call in calls)
            assert len(self.holders(SLOT_SECONDS - TICK)) < self.most_in_flight
        if self.writes:
            keys = [call.key for call in calls]
            assert keys == sorted(set(keys))
            assert not self.busy(calls) & set(keys)
            for call in calls:
                assert not any(each.key == call.key and each.is_queued(now) for each in self.calls[: call.number])
        elif not statement.is_replay:
            numbers = [call.number for call in calls]
            assert numbers == sorted(numbers)
            assert not any(each.is_queued(now) for each in self.calls[: numbers[0]])

    def busy(self, but: Sequence[Call] = ()) -> set[str]:
        """Return the keys of the statements in flight, and of calls that are to be replayed, `but` for some."""
        sent = {call.key for statement in self.in_flight for call in statement.calls}
        refused = [call for call in self.calls if call.times_sent and not call.is_settled and not call.is_cancelled]
        return sent | {call.key for call in refused if call not in but}

    def holders(self, seconds: float) -> list[InFlight]:
        """Return the statements in flight that were sent less long ago, and take a slot."""
        now = self.loop.time()
        return [each for each in self.in_flight if not each.is_replay and now - each.sent < seconds]

    @rule(key=st.sampled_from(KEYS), refusal=st.sampled_from([None, None, *REFUSALS]))
    def call(self, key: str, refusal: type[Exception] | None) -> None:
        call = Call(len(self.calls), key, refusal)
        self.calls.append(call)

        async def run() -> int:
            call.arrived = now = self.loop.time()
            try:
                return await self.batcher(call)
            except OverloadedError:
                others = [each for each in self.calls if each is not call and each.arrived <= now]
                unsent = [each for each in others if not each.times_sent]
                assert sum(each.is_cancelled or not each.task.done() for each in unsent) >= self.limits.max_waiting
                raise

        call.task = self.loop.create_task(run())

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=6))
    def call_at_once(self, keys: list[str]) -> None:
        for key in keys:
            self.call(key, None)

    @rule(ticks=st.sampled_from([1, 1, 2, 5]))
    def go_on(self, ticks: int) -> None:
        for _ in range(ticks):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    @rule(seconds=st.sampled_from([0.0004, 0.002, 0.03, SLOT_SECONDS, WAIT_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @precondition(lambda self: any(not each.answer.done() for each in self.in_flight))
    @rule(data=st.data(), failure=st.sampled_from([None, None, None, *FAILURES]))
    def answer(self, data: st.DataObject, failure: type[Exception] | None) -> None:
        unanswered = [each for each in self.in_flight if not each.answer.done()]
        statement = unanswered[data.draw(st.integers(0, len(unanswered) - 1))]
        statement.end(failure if self.writes or failure is not OutcomeUnknownError else None)

    @precondition(lambda self: any(not each.task.done() for each in self.calls))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        unended = [each for each in self.calls if not each.task.done()]
        call = unended[data.draw(st.integers(0, len(unended) - 1))]
        call.is_cancelled = True
        call.task.cancel()

    @rule()
    def rest(self) -> None:
        """Wait until everything that may be sent was sent."""
        seconds = self.limits.in_flight * MOMENT_SECONDS
        self.wait(seconds)
        busy = self.busy() if self.writes else set()
        if any(call.is_queued(self.loop.time()) and call.key not in busy for call in self.calls):
            assert len(self.holders(SLOT_SECONDS + seconds)) >= self.most_in_flight
        for statement in self.in_flight:
            assert not all(call.is_cancelled for call in statement.calls), "a statement that has no caller goes on"

    @invariant()
    def the_queue_is_bounded(self) -> None:
        now = self.loop.time()
        assert not self.calls or sum(call.is_queued(now) for call in self.calls) <= self.limits.max_waiting

    @invariant()
    def every_call_ends(self) -> None:
        longest = WAIT_SECONDS + SLOT_SECONDS + MOMENT_SECONDS
        for call in self.calls:
            if not call.times_sent and not call.is_cancelled and not call.task.done():
                assert not self.loop.time() > call.arrived + longest

    @invariant()
    def every_outcome_is_true(self) -> None:
        for call in self.calls:
            if call.task.done():
                self.check_outcome(call)

    def check_outcome(self, call: Call) -> None:
        assert call.times_applied <= 1
        if call.task.cancelled():
            assert call.is_cancelled
            assert not (self.writes and call.times_applied)
            return
        error = call.task.exception()
        if error is None:
            assert call.task.result() == call.number
            assert call.times_applied
        elif isinstance(error, OverloadedError):
            assert not call.times_sent
        elif isinstance(error, DatabaseUnavailableError) and not call.times_sent:
            assert self.loop.time() > call.arrived + WAIT_SECONDS
        elif isinstance(error, OutcomeUnknownError) and call.is_cancelled:
            assert self.writes
            assert call.times_sent
        else:
            assert type(error) in call.failures

    def teardown(self) -> None:
        """Every statement is answered: every call ends, and the batcher serves as if it were new."""
        try:
            if self.calls:
                self.end()
        finally:
            self.patch.undo()
            self.loop.close()

    def end(self) -> None:
        for _ in range(30):
            self.answer_all()
        for key in KEYS:
            self.call(key, None)
            self.go_on(1)
            assert self.calls[-1].times_sent == 1, "a lone call is not sent at once"
            self.answer_all()
        assert all(call.task.done() for call in self.calls)
        self.every_outcome_is_true()
        assert self.problems == []

    def answer_all(self) -> None:
        for statement in self.in_flight:
            if not statement.answer.done():
                statement.end()
        self.wait(0.02)


BatchingMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("EXAMPLES", "50")), stateful_step_count=30, deadline=None
)
TestBatching = BatchingMachine.TestCase
