"""The invariants of batching, of the batcher alone."""

import asyncio
import gc
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import asyncpg
import pytest
from starlette.types import Message

from api.context import RequestContext, serving
from api.database import slots
from api.database.batching import Batcher
from api.database.options import Limits
from api.database.slots import SLOT_SECONDS
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError


@pytest.fixture(autouse=True)
def nothing_is_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that overlap start at once, so that each test says by itself when one ends: see test_slots.py."""
    monkeypatch.setattr(slots, "SPACING_SECONDS", 0.0)


class Carrier:
    """A statement whose answer comes when the test says so."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.answers: list[asyncio.Future[None]] = []

    async def __call__(self, items: Sequence[str]) -> list[str]:
        self.sent.append(list(items))
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]
        return [item.upper() for item in items]

    def answer(self, number: int, error: Exception | None = None) -> None:
        if error:
            self.answers[number].set_exception(error)
        else:
            self.answers[number].set_result(None)


def limits(in_flight: int = 1, max_size: int = 100, max_waiting: int = 100, max_wait_seconds: float = 60) -> Limits:
    return Limits(in_flight, max_size, max_waiting, max_wait_seconds)


async def ticks(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def start(batcher: Batcher[str, str], *items: str) -> list[asyncio.Task[str]]:
    return [asyncio.ensure_future(call(batcher, item)) for item in items]


async def call(batcher: Batcher[str, str], item: str) -> str:
    return await batcher(item)


def test_a_write_needs_a_key() -> None:
    """Without one, two changes of one row would travel in one statement, and one would be lost."""
    with pytest.raises(TypeError, match="key"):
        Batcher.write(Carrier(), limits())  # type: ignore[call-arg]


async def test_a_call_never_joins_a_statement_that_was_sent() -> None:
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits())
    first = start(batcher, "a")
    await ticks()
    # The same key: single-flight would hand it the answer of a statement that began before it came.
    second = start(batcher, "a", "b")
    await ticks()
    assert carrier.sent == [["a"]]
    carrier.answer(0)
    await ticks()
    assert carrier.sent == [["a"], ["a", "b"]]
    assert [task.done() for task in first + second] == [True, False, False]
    carrier.answer(1)
    assert await asyncio.gather(*first, *second) == ["A", "A", "B"]


async def test_a_lone_call_leaves_without_a_timer() -> None:
    carrier = Carrier()
    loop = asyncio.get_running_loop()
    before = loop.time()
    (task,) = start(Batcher.read(carrier, limits()), "a")
    await ticks(1)  # its own task begins, and nothing comes between
    assert carrier.sent == [["a"]]
    assert loop.time() - before < 1
    carrier.answer(0)
    assert await task == "A"


async def test_calls_of_one_tick_travel_together_and_those_beyond_the_cap_do_not() -> None:
    carrier = Carrier()
    # The first call is alone and is sent at once, as in the tests below; later calls gather.
    tasks = start(Batcher.read(carrier, limits(in_flight=3, max_size=3)), *"-abcdefgh")
    await ticks()
    assert carrier.sent == [["-"], list("abc"), list("def")]
    carrier.answer(2)
    await ticks()
    assert carrier.sent[3:] == [list("gh")]
    for number in (0, 1, 3):
        carrier.answer(number)
    assert await asyncio.gather(*tasks) == list("-ABCDEFGH")


async def test_a_batch_that_is_about_to_begin_takes_the_calls_of_its_tick() -> None:
    """Another statement ends in that tick: if it took the calls, the batch would be sent with the few that are left."""
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits(in_flight=3))
    tasks = start(batcher, *"-ab")
    await ticks()
    tasks += start(batcher, "c")
    carrier.answer(1)
    tasks += start(batcher, "d")
    await ticks()
    assert carrier.sent == [["-"], ["a", "b"], ["c", "d"]]
    carrier.answer(0)
    carrier.answer(2)
    assert await asyncio.gather(*tasks) == list("-ABCD")


async def test_a_lone_call_that_is_cancelled_leaves_its_slot_and_its_key() -> None:
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(), key=str)
    alone, *waiting = start(batcher, *"aab")
    await ticks()
    assert carrier.sent == [["a"]]
    alone.cancel()
    await ticks()
    assert carrier.sent[1:] == [["a", "b"]]
    carrier.answer(1)
    assert await asyncio.gather(*waiting) == ["A", "B"]
    last = start(batcher, "a")
    await ticks(1)
    carrier.answer(2)
    assert await asyncio.gather(*last) == ["A"]


async def test_a_full_queue_refuses_at_once() -> None:
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits(max_waiting=2))
    tasks = start(batcher, "a")
    await ticks()
    tasks += start(batcher, "b", "c")
    await ticks()
    with pytest.raises(OverloadedError):
        await batcher("d")
    carrier.answer(0)
    await ticks()
    carrier.answer(1)
    assert await asyncio.gather(*tasks) == ["A", "B", "C"]


async def test_a_call_that_waited_too_long_is_told_so_and_never_sent() -> None:
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits(max_wait_seconds=0))
    first = start(batcher, "a")
    await ticks(3)
    second = start(batcher, "b")
    await asyncio.sleep(0.01)
    for number in range(len(carrier.answers)):
        carrier.answer(number)
    with pytest.raises(DatabaseUnavailableError, match=r"^the statements before it took too long"):
        await second[0]
    await asyncio.gather(*first, return_exceptions=True)
    assert ["b"] not in carrier.sent


async def test_a_refused_batch_is_replayed_one_by_one() -> None:
    sent: list[list[str]] = []

    async def run(items: Sequence[str]) -> list[str]:
        sent.append(list(items))
        await ticks()
        if "b" in items:
            raise asyncpg.UniqueViolationError("taken")
        return list(items)

    tasks = start(Batcher.write(run, limits(in_flight=2), key=str), *"-cab")
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sent == [["-"], list("abc"), ["a"], ["b"], ["c"]]
    assert answers[:3] == ["-", "c", "a"]
    assert isinstance(answers[3], asyncpg.UniqueViolationError)


@pytest.mark.parametrize("error", [OutcomeUnknownError, DatabaseUnavailableError])
async def test_a_batch_whose_outcome_is_unknown_is_never_replayed(error: type[Exception]) -> None:
    carrier = Carrier()
    alone, *tasks = start(Batcher.write(carrier, limits(in_flight=2), key=str), *"-ab")
    await ticks()
    carrier.answer(1, error())
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [error, error]
    assert carrier.sent == [["-"], ["a", "b"]]
    carrier.answer(0, error())
    with pytest.raises(error):
        await alone


@pytest.mark.parametrize("results", ["A", "ABC"])
async def test_a_statement_that_does_not_give_each_call_a_result_leaves_no_caller_waiting(results: str) -> None:
    async def run(items: Sequence[str]) -> list[str]:
        await asyncio.sleep(0)
        return list(results) if len(items) == 2 else [item.upper() for item in items]

    batcher = Batcher.write(run, limits(), key=str)
    alone, *tasks = start(batcher, *"-ab")
    answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    for answer in answers:
        assert isinstance(answer, ValueError)
    assert await alone == "-"
    assert await batcher("a") == "A"


async def test_a_caller_that_goes_away_leaves_the_others_their_answers() -> None:
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits(in_flight=2))
    alone, *tasks = start(batcher, *"-ab")
    await ticks()
    waiting = start(batcher, *"cd")
    await ticks()
    tasks[0].cancel()
    waiting[0].cancel()
    await ticks()
    carrier.answer(1)
    assert await tasks[1] == "B"
    await ticks()
    assert carrier.sent == [["-"], ["a", "b"], ["d"]]
    carrier.answer(0)
    carrier.answer(2)
    assert [await alone, await waiting[1]] == ["-", "D"]


async def cancelled(task: asyncio.Task[str]) -> BaseException | None:
    """What a caller that is cancelled ends in; None stands for plain cancellation."""
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.exception()


async def test_a_caller_that_is_cancelled_hears_whether_its_write_may_have_happened() -> None:
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(), key=str)
    alone, *waiting = start(batcher, *"-ab")
    await ticks()
    assert await cancelled(waiting[1]) is None  # It was never sent.
    sharing = start(batcher, "c")
    carrier.answer(0)
    await ticks()
    assert carrier.sent == [["-"], ["a", "c"]]
    assert isinstance(await cancelled(waiting[0]), OutcomeUnknownError)
    carrier.answer(1)
    assert [await alone, await sharing[0]] == ["-", "C"]


async def test_a_read_that_is_cancelled_is_nothing_but_cancelled() -> None:
    carrier = Carrier()
    alone, *tasks = start(Batcher.read(carrier, limits(in_flight=2)), *"-ab")
    await ticks()
    assert await cancelled(tasks[0]) is None
    carrier.answer(1)
    carrier.answer(0)
    assert [await alone, await tasks[1]] == ["-", "B"]


@pytest.mark.parametrize("sent", [True, False])
async def test_with_the_last_caller_the_statement_ends(sent: bool) -> None:
    """The last caller learns from Database.fetch whether its write may have happened; the batcher goes on."""
    carrier = Carrier()
    ended = 0

    async def run(items: Sequence[str]) -> list[str]:
        nonlocal ended
        try:
            return await carrier(items)
        except asyncio.CancelledError as error:
            ended += 1
            if sent:
                raise OutcomeUnknownError from error
            raise

    batcher = Batcher.write(run, limits(in_flight=2, max_size=2), key=str)
    alone, *tasks = start(batcher, *"-abc")
    await ticks()
    assert carrier.sent == [["-"], ["a", "b"]]
    assert isinstance(await cancelled(tasks[0]), OutcomeUnknownError)
    assert ended == 0
    assert isinstance(await cancelled(tasks[1]), OutcomeUnknownError if sent else type(None))
    assert ended == 1
    await ticks()
    tasks += start(batcher, *"ab")  # Their keys are free again.
    await ticks()
    assert carrier.sent[2:] == [["c"]]
    carrier.answer(2)
    await ticks()
    assert carrier.sent[3:] == [["a", "b"]]
    carrier.answer(3)
    carrier.answer(0)
    assert await asyncio.gather(alone, *tasks[2:]) == list("-CAB")


async def test_a_result_that_is_there_is_not_lost_to_a_cancellation() -> None:
    carrier = Carrier()
    alone, task = start(Batcher.write(carrier, limits(in_flight=2), key=str), *"-a")
    await ticks()
    carrier.answer(1)
    while not task._fut_waiter.done():  # type: ignore[attr-defined] # its result is there, and it has not run since
        await ticks(1)
    task.cancel()
    assert await task == "A"
    carrier.answer(0)
    await alone


@pytest.mark.parametrize("error", [None, OutcomeUnknownError()])
@pytest.mark.parametrize("writes", [True, False])
async def test_a_caller_that_is_cancelled_in_the_tick_of_the_answer_hears_that_its_write_may_have_happened(
    writes: bool, error: Exception | None
) -> None:
    """The answer comes first, and its task has not run since."""
    carrier = Carrier()
    bounds = limits(in_flight=2)
    batcher = Batcher.write(carrier, bounds, key=str) if writes else Batcher.read(carrier, bounds)
    alone, task = start(batcher, *"-a")
    await ticks()
    carrier.answer(1, error)
    assert isinstance(await cancelled(task), OutcomeUnknownError if writes else type(None))
    carrier.answer(0)
    await alone


@pytest.mark.parametrize("writes", [True, False])
async def test_a_caller_that_is_cancelled_twice_does_not_wait_for_the_outcome(writes: bool) -> None:
    carrier = Carrier()

    async def run(items: Sequence[str]) -> list[str]:
        try:
            return await carrier(items)
        finally:
            if items == ["a"]:
                await ticks(20)  # until PostgreSQL has acknowledged the cancellation

    bounds = limits(in_flight=2)
    batcher = Batcher.write(run, bounds, key=str) if writes else Batcher.read(run, bounds)
    alone, task = start(batcher, *"-a")
    await ticks()
    task.cancel()
    await ticks()
    assert isinstance(await cancelled(task), OutcomeUnknownError if writes else type(None))
    carrier.answer(0)
    assert await alone == "-"


async def test_whoever_is_cancelled_before_its_replay_is_not_replayed() -> None:
    sent: list[list[str]] = []
    tasks: list[asyncio.Task[str]] = []

    async def run(items: Sequence[str]) -> list[str]:
        sent.append(list(items))
        await ticks()
        if len(items) > 1:
            asyncio.get_running_loop().call_soon(tasks[1].cancel)  # before the replays, which are started next
            raise asyncpg.UniqueViolationError("taken")
        return list(items)

    batcher = Batcher.write(run, limits(in_flight=2), key=str)
    tasks += start(batcher, *"-ab")
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sent == [["-"], ["a", "b"], ["b"]]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert await asyncio.gather(*start(batcher, "a")) == ["a"]


async def test_a_key_is_in_one_batch_at_a_time_sorted_and_in_order_of_arrival() -> None:
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(in_flight=6), key=lambda item: item[0])
    tasks = start(batcher, "-", "b1", "a1", "b2", "c1", "b3")
    await ticks()
    assert carrier.sent == [["-"], ["a1", "b1", "c1"]]
    tasks += start(batcher, "d1", "a2")
    await ticks()
    assert carrier.sent[2:] == [["d1"]]
    carrier.answer(1)
    await ticks()
    assert carrier.sent[3:] == [["a2", "b2"]]
    carrier.answer(3)
    await ticks()
    assert carrier.sent[4:] == [["b3"]]
    for number in (0, 2, 4):
        carrier.answer(number)
    assert len(await asyncio.gather(*tasks)) == 8


@pytest.mark.parametrize("passing", [0, 1, 2])
async def test_calls_that_wait_for_their_key_keep_their_order(passing: int) -> None:
    """Whether an even or an odd number of batches pass them by."""
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(in_flight=6), key=lambda item: item[0])
    tasks = start(batcher, "-", "a1", "a2", "a3")
    await ticks()
    for number in range(passing):
        tasks += start(batcher, str(number))
        await ticks()
    assert carrier.sent == [["-"], ["a1"], *([str(number)] for number in range(passing))]
    carrier.answer(1)
    await ticks()
    assert carrier.sent[passing + 2 :] == [["a2"]]
    carrier.answer(passing + 2)
    await ticks()
    assert carrier.sent[passing + 3 :] == [["a3"]]
    for answer in carrier.answers:
        if not answer.done():
            answer.set_result(None)
    assert len(await asyncio.gather(*tasks)) == passing + 4


async def test_who_waits_for_a_key_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking again and again for what can leave would keep the event loop busy for as long as the statement takes."""
    looks: list[None] = []
    take = Batcher._take

    def counted(batcher: Batcher[str, str], limits: Limits) -> list[Any]:
        looks.append(None)
        return take(batcher, limits)

    monkeypatch.setattr(Batcher, "_take", counted)
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(in_flight=2), key=str)
    tasks = start(batcher, *"aaa")
    await ticks(100)
    assert len(looks) <= 1
    for number in range(3):
        carrier.answer(number)
        await ticks()
    assert carrier.sent == [["a"]] * 3
    assert await asyncio.gather(*tasks) == ["A"] * 3


@pytest.mark.parametrize("later", [False, True])
async def test_who_waits_for_a_key_for_too_long_is_told_so(later: bool) -> None:
    """Also where nothing else moves: the statement that has the key lost its slot long ago."""
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(max_wait_seconds=SLOT_SECONDS), key=str)
    first = start(batcher, "a")
    await asyncio.sleep(SLOT_SECONDS * 3 if later else 0)
    (second,) = start(batcher, "a")
    with pytest.raises(DatabaseUnavailableError):
        await second
    assert carrier.sent == [["a"]]
    carrier.answer(0)
    assert await asyncio.gather(*first) == ["A"]


async def test_a_slow_batch_gives_its_slot_back() -> None:
    carrier = Carrier()
    batcher = Batcher.read(carrier, limits())
    slow = start(batcher, "a")
    await ticks()
    others = start(batcher, "b")
    await ticks()
    assert carrier.sent == [["a"]]
    await asyncio.sleep(SLOT_SECONDS * 2)
    assert carrier.sent == [["a"], ["b"]]
    carrier.answer(1)
    assert await others[0] == "B"
    assert not slow[0].done()
    carrier.answer(0)
    assert await slow[0] == "A"


async def test_a_slow_batch_that_ends_lets_the_calls_for_its_keys_go() -> None:
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(in_flight=2), key=str)
    tasks = start(batcher, *"-ab")
    await ticks()
    carrier.answer(0)
    await asyncio.sleep(SLOT_SECONDS * 1.5)
    tasks += start(batcher, "a")
    await ticks()
    assert carrier.sent == [["-"], ["a", "b"]]
    carrier.answer(1)
    await ticks()
    assert carrier.sent[2:] == [["a"]]
    carrier.answer(2)
    assert await asyncio.gather(*tasks) == list("-ABA")


async def test_without_limits_every_call_is_a_statement_of_its_own() -> None:
    carrier = Carrier()
    tasks = start(Batcher.read(carrier, None), *"ab")
    await ticks()
    assert carrier.sent == [["a"], ["b"]]
    carrier.answer(0)
    carrier.answer(1)
    assert await asyncio.gather(*tasks) == ["A", "B"]


async def test_a_shared_statement_serves_the_requests_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request counts how long it waited, once. A batch belongs to none of them."""
    now = 0.0
    for module in ("batching.perf_counter", "slots.perf_counter"):
        monkeypatch.setattr(f"api.database.{module}", lambda: now)
    monkeypatch.setattr("api.context.perf_counter", lambda: now)
    served: list[tuple[list[str], str]] = []
    carrier = Carrier()
    caller = ContextVar("caller", default="")

    async def run(items: Sequence[str]) -> list[str]:
        served.append(([request.id for request in serving.get()], caller.get()))
        return await carrier(items)

    batcher = Batcher.write(run, limits(), key=str)
    requests = {item: RequestContext(item.encode(), send_nothing) for item in "abc"}

    async def ask(item: str) -> str:
        serving.set([requests[item]])
        caller.set(item)
        return await batcher(item)

    tasks = []
    for item in "abc":
        tasks.append(asyncio.ensure_future(ask(item)))
        await ticks()
        now += 0.01
    carrier.answer(0)
    await ticks()
    now += 0.04
    carrier.answer(1, asyncpg.UniqueViolationError("taken"))
    await ticks()
    assert served == [(["a"], "a"), (["b", "c"], ""), (["b"], ""), (["c"], "")]
    assert {item: each.batch for item, each in requests.items()} == pytest.approx({"a": 0, "b": 0.02, "c": 0.01})
    for number in (2, 3):
        carrier.answer(number)
    assert await asyncio.gather(*tasks) == list("ABC")


async def send_nothing(message: Message) -> None:
    pass


@pytest.mark.parametrize("ends", ["answered", "cancelled in the tick of the answer"])
async def test_calls_that_have_ended_leave_nothing_behind(ends: str) -> None:
    """Neither their tasks nor their futures, of which each batch and each caller has one."""
    carrier = Carrier()
    batcher = Batcher.write(carrier, limits(), key=str)
    lone, *others = start(batcher, *"-ab")
    await ticks()
    carrier.answer(0)
    await ticks()
    carrier.answer(1)
    if ends != "answered":
        others[0].cancel()
    await asyncio.gather(lone, *others, return_exceptions=True)
    del lone, others
    carrier.answers.clear()
    await ticks()
    gc.collect()
    held = [each for value in vars(batcher).values() if isinstance(value, (set, dict)) for each in value]
    assert held == []
