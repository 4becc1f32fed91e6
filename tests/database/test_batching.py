"""The invariants of batching: of the batcher alone, then of the application on PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.database import slots
from api.database.batching import Batcher
from api.database.options import Limits
from api.database.slots import SLOT_SECONDS
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, OverloadedError
from tests.support.database import execute, locked
from tests.support.metrics import scrape
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until

USERS = "/api/v1/users"


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
    with pytest.raises(DatabaseUnavailableError):
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


async def test_without_limits_every_call_is_a_statement_of_its_own() -> None:
    carrier = Carrier()
    tasks = start(Batcher.read(carrier, None), *"ab")
    await ticks()
    assert carrier.sent == [["a"], ["b"]]
    carrier.answer(0)
    carrier.answer(1)
    assert await asyncio.gather(*tasks) == ["A", "B"]


# Through the application


async def test_an_error_belongs_to_its_request(client: httpx.Client) -> None:
    ids = [client.post(USERS, json={"email": f"{n}@example.com"}).json()["id"] for n in range(20)]
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        patches = [
            many.patch(f"{USERS}/{i}", json={"email": "0@example.com" if n % 5 == 4 else f"new{n}@example.com"})
            for n, i in enumerate(ids)
        ]
        stale = [many.patch(f"{USERS}/{i}", json={"name": "x"}, headers={"if-match": '"9"'}) for i in ids[:3]]
        missing = [many.patch(f"{USERS}/{i}", json={"name": "x"}) for i in (8888, 9999)]
        answers = await asyncio.gather(*patches, *stale, *missing)
    # The first user gives up its address at the same moment: at most one other may take it.
    taken = Counter(answer.status_code for answer in answers[4:20:5])
    assert taken[200] + taken[409] == 4
    assert taken[200] <= 1
    assert {answer.status_code for n, answer in enumerate(answers[:20]) if n % 5 != 4} == {200}
    assert [answer.status_code for answer in answers[20:]] == [412] * 3 + [404] * 2


async def test_creates_of_one_batch_do_not_touch_each_other(client: httpx.Client) -> None:
    client.post(USERS, json={"email": "taken@example.com"})
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        emails = [f"{n}@example.com" if n % 3 else "taken@example.com" for n in range(30)]
        answers = await asyncio.gather(*(many.post(USERS, json={"email": email, "name": email}) for email in emails))
    for email, answer in zip(emails, answers, strict=True):
        assert answer.status_code == (409 if email.startswith("taken") else 201)
        if answer.status_code == 201:
            assert answer.json()["name"] == email
            assert client.get(answer.headers["location"]).content == answer.content


async def test_one_locked_row_does_not_hold_the_others(database: str, batching: bool) -> None:
    app = create_app(settings_for(database, batching=batching, statement_timeout_seconds=20))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as many:
            created = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(20)))
            paths = [answer.headers["location"] for answer in created]
            with locked(database, "select from users where email = '7@example.com' for update"):
                patches = [asyncio.ensure_future(many.patch(path, json={"name": "x"})) for path in paths]
                free = await asyncio.gather(*(patch for n, patch in enumerate(patches) if n != 7))
                assert {answer.status_code for answer in free} == {200}
                assert not patches[7].done()
                # Nor do later requests wait for it.
                assert (await many.patch(paths[3], json={"name": "y"})).status_code == 200
            assert (await patches[7]).status_code == 200


async def test_a_write_is_answered_after_its_commit(client: httpx.Client, database: str) -> None:
    async def create_and_look(many: httpx.AsyncClient, n: int) -> None:
        answer = await many.post(USERS, json={"email": f"{n}@example.com"})
        assert answer.status_code == 201
        # Over another connection, which sees what is committed and nothing else.
        count = f"select count(*) from users where id = {answer.json()['id']}"
        assert await asyncio.to_thread(execute, database, count) == [(1,)]

    async with httpx.AsyncClient(base_url=client.base_url) as many:
        await asyncio.gather(*(create_and_look(many, n) for n in range(40)))


def ends_with_its_client(app: ASGIApp) -> ASGIApp:
    """The application on a server that cancels a request whose client has left. uvicorn lets it go on."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = [await receive()]
        while body[-1].get("more_body"):
            body.append(await receive())

        async def replayed() -> Message:
            return body.pop(0)

        request = asyncio.ensure_future(app(scope, replayed, send))
        left = asyncio.ensure_future(receive())
        left.add_done_callback(lambda _: request.cancel())
        await request
        await left  # which is said, too, when the answer is complete

    return served


@pytest.mark.parametrize("cancels", [False, True], ids=["uvicorn", "a server that cancels"])
async def test_a_client_that_vanishes_takes_nobody_along(database: str, batching: bool, cancels: bool) -> None:
    settings = settings_for(
        database, batching=batching, acquire_timeout_seconds=100, statement_timeout_seconds=100, batch_in_flight=1
    )
    app = create_app(settings)
    with serve(ends_with_its_client(app) if cancels else app) as url:

        async def until(holds: Callable[[float], bool], metric: str = "users_api_requests_under_way") -> None:
            await asyncio.to_thread(wait_until, lambda: holds(scrape(url).value(metric)))

        async with httpx.AsyncClient(base_url=url, timeout=100) as many:
            with locked(database):
                # Alternately, so that clients that disconnect share statements with clients that stay.
                posts = [asyncio.ensure_future(many.post(USERS, json={"email": f"{n}@example.com"})) for n in range(20)]
                await until(lambda under_way: under_way == 20)
                # The first left alone; with the second statement others are on their way.
                await until(lambda in_use: in_use >= 2, "users_api_pool_in_use")
                for post in posts[1::2]:
                    post.cancel()
                await asyncio.wait(posts[1::2])
                await until(lambda under_way: under_way <= (10 if cancels else 20))
            assert {answer.status_code for answer in await asyncio.gather(*posts[::2])} == {201}
        await until(lambda under_way: under_way == 0)
        problems = scrape(url).all("users_api_problems_total", "kind")
    created = {email for (email,) in execute(database, "select email from users")}
    stayed = {f"{n}@example.com" for n in range(0, 20, 2)}
    if cancels:
        assert problems.get(("outcome-unknown",), 0) + problems.get(("stopping",), 0) == 10
        assert created >= stayed
    else:
        # What a client that is gone has asked for is done all the same.
        assert created == stayed | {f"{n}@example.com" for n in range(1, 20, 2)}


async def test_beyond_the_cap_a_503_with_retry_after(database: str) -> None:
    app = create_app(settings_for(database, batch_max_waiting=5, batch_in_flight=1, batch_max_size=1))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=80)) as many:
            answers = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(80)))
    counted = Counter(answer.status_code for answer in answers)
    assert set(counted) == {201, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["type"] == "urn:problem:users-api:overloaded"
    assert refused.headers["retry-after"] == "1"
    assert execute(database, "select count(*) from users") == [(counted[201],)]
