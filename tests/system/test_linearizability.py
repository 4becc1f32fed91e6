"""Linearizability: many clients on few users while connections die; one order of all operations explains every answer.

First the checker itself, on histories written by hand and against an exhaustive search; then the application; then the
application with planted bugs, which must be found.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.neon.url import parse_url
from tests.support.database import KILL_ALL, execute
from tests.support.distance import Distance
from tests.support.history import USERS, Fate, Kind, Operation, Recorder, Seen, check
from tests.support.rig import (
    NEON_TRANSIENT,
    POOLER_FULL,
    SERVER_FULL,
    SHUTDOWN,
    Cut,
    Farewell,
    Injection,
    NeonDatabase,
    Point,
    Rig,
)
from tests.support.rig.injections import STATEMENT_POINTS
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until
from tests.support.workload import USERS_LEFT, Workload, final_reads

pytestmark = pytest.mark.long

Meanwhile = Callable[[Workload], Awaitable[object]]
"""What happens while clients run."""

# The checker, on histories written by hand

A = "ada@example.com"


def created(start: float, end: float, name: str = "n1", user_id: int = 1) -> Operation:
    return Operation(Kind.CREATE, start, end, 201, address=A, name=name, seen=Seen(user_id, 1, name, A))


def taken(start: float, end: float, name: str) -> Operation:
    return Operation(Kind.CREATE, start, end, 409, address=A, name=name)


def create_lost(start: float, name: str) -> Operation:
    return Operation(Kind.CREATE, start, math.inf, address=A, name=name)


def got(start: float, end: float, version: int, name: str, user_id: int = 1) -> Operation:
    return Operation(Kind.GET, start, end, 200, user_id=user_id, seen=Seen(user_id, version, name, A))


def unchanged(start: float, end: float, version: int) -> Operation:
    return Operation(Kind.GET, start, end, 304, user_id=1, seen=Seen(1, version))


def missing(start: float, end: float, kind: Kind = Kind.GET, name: str | None = None) -> Operation:
    return Operation(kind, start, end, 404, user_id=1, name=name)


def found(start: float, end: float, name: str, user_id: int = 1) -> Operation:
    return Operation(Kind.FIND, start, end, 200, address=A.upper(), seen=Seen(user_id, None, name, A))


def nobody(start: float, end: float) -> Operation:
    return Operation(Kind.FIND, start, end, 200, address=A)


def patched(start: float, end: float, version: int, name: str, if_match: int | None = None) -> Operation:
    seen = Seen(1, version, name, A)
    return Operation(Kind.PATCH, start, end, 200, user_id=1, name=name, if_match=if_match, seen=seen)


def patch_refused(start: float, end: float, name: str, if_match: int) -> Operation:
    return Operation(Kind.PATCH, start, end, 412, user_id=1, name=name, if_match=if_match)


def patch_lost(start: float, name: str, if_match: int | None = None) -> Operation:
    return Operation(Kind.PATCH, start, math.inf, user_id=1, name=name, if_match=if_match)


def deleted(start: float, end: float, if_match: int | None = None) -> Operation:
    return Operation(Kind.DELETE, start, end, 204, user_id=1, if_match=if_match)


def delete_refused(start: float, end: float, if_match: int) -> Operation:
    return Operation(Kind.DELETE, start, end, 412, user_id=1, if_match=if_match)


def delete_lost(start: float) -> Operation:
    return Operation(Kind.DELETE, start, math.inf, user_id=1)


GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [
        nobody(0, 1), created(2, 3), got(4, 5, 1, "n1"), patched(6, 7, 2, "n2", 1), unchanged(8, 9, 2),
        patch_refused(10, 11, "n3", 1), deleted(12, 13, 2), missing(14, 15), nobody(16, 17),
    ],
    "a read during a write sees the old or the new": [
        created(0, 1), patched(2, 9, 2, "n2"), got(3, 4, 1, "n1"), got(5, 6, 2, "n2"),
    ],
    "answers in the opposite order of the effects": [created(0, 1), patched(2, 5, 3, "n3"), patched(2, 6, 2, "n2")],
    "a create is seen before it is answered": [created(0, 9), found(1, 2, "n1"), taken(3, 4, "n2")],
    "an address is taken again": [
        created(0, 1), deleted(2, 5), created(3, 6, "n2", 2), missing(7, 8), found(9, 10, "n2", 2),
    ],
    "a lost patch never happens": [created(0, 1), patch_lost(2, "n2"), got(3, 4, 1, "n1"), patched(5, 6, 2, "n3")],
    "a lost patch happens late": [
        created(0, 1), patch_lost(2, "n2"), got(3, 4, 1, "n1"), patched(5, 6, 2, "n3"), got(7, 8, 3, "n2"),
    ],
    "lost patches that nobody saw fill a gap": [
        created(0, 1), patch_lost(2, "n2"), patch_lost(2, "n3"), patch_lost(2, "n4"), patched(5, 6, 4, "n5"),
    ],
    "a lost create is found": [create_lost(0, "n1"), nobody(1, 2), found(3, 4, "n1"), patched(5, 6, 2, "n2")],
    "a lost create explains a refusal": [create_lost(0, "n1"), taken(1, 2, "n2")],
    "a lost delete happens late": [created(0, 1), delete_lost(2), got(3, 4, 1, "n1"), missing(5, 6)],
    "a refused condition beside the change that broke it": [
        created(0, 1), patched(2, 5, 2, "n2", 1), patch_refused(2, 6, "n3", 1),
    ],
    "what the database never got": [
        created(0, 1), Operation(Kind.PATCH, 2, 3, 503, user_id=1, name="n2", problem="unavailable"),
        got(4, 5, 1, "n1"),
    ],
    "a lost answer that was a 503": [
        created(0, 1), Operation(Kind.PATCH, 2, 3, 503, user_id=1, name="n2", problem="outcome-unknown"),
        got(4, 5, 1, "n1"), got(6, 7, 2, "n2"),
    ],
}  # fmt: skip

BAD: dict[str, list[Operation]] = {
    "a stale read after an acknowledged write": [created(0, 1), patched(2, 3, 2, "n2"), got(4, 5, 1, "n1")],
    "an unchanged ETag after an acknowledged write": [created(0, 1), patched(2, 3, 2, "n2"), unchanged(4, 5, 1)],
    "a value that nobody wrote": [created(0, 1), got(2, 3, 1, "n7")],
    "a version that nobody wrote": [created(0, 1), got(2, 3, 2, "n1")],
    "a user that nobody created": [got(2, 3, 1, "n1")],
    "another user than was asked for": [
        created(0, 1), Operation(Kind.GET, 2, 3, 200, user_id=2, seen=Seen(1, 1, "n1", A)),
    ],
    "a user at another address": [
        created(0, 1), Operation(Kind.FIND, 2, 3, 200, address="bob@example.com", seen=Seen(1, None, "n1", A)),
    ],
    "a lost update": [created(0, 1), patched(2, 5, 2, "n2"), patched(3, 6, 2, "n3")],
    "an update that is undone": [created(0, 1), patched(2, 3, 2, "n2"), patched(4, 5, 2, "n3")],
    "two changes on one If-Match": [created(0, 1), patched(2, 5, 2, "n2", 1), patched(2, 6, 3, "n3", 1)],
    "a change whose If-Match does not hold": [created(0, 1), patched(2, 3, 2, "n2"), patched(4, 5, 3, "n3", 1)],
    "a refusal of an If-Match that holds": [created(0, 1), patch_refused(2, 3, "n2", 1)],
    "a failed condition on a user that is gone": [created(0, 1), deleted(2, 5, 1), delete_refused(3, 6, 1)],
    "two users at one address": [created(0, 1), created(2, 3, "n2", 2)],
    "two users at one address at once": [created(0, 5), created(1, 6, "n2", 2)],
    "an address refused that is free": [taken(0, 1, "n1")],
    "an address refused that was given back": [created(0, 1), deleted(2, 3), taken(4, 5, "n2")],
    "a read that travels back in time": [
        created(0, 1), patched(2, 9, 2, "n2"), got(3, 4, 2, "n2"), got(5, 6, 1, "n1"),
    ],
    "an unknown write that is seen, then not": [
        created(0, 1), patch_lost(2, "n2"), got(3, 4, 2, "n2"), got(5, 6, 1, "n1"),
    ],
    "an unknown write that is seen before it was asked for": [created(0, 1), got(2, 3, 2, "n2"), patch_lost(4, "n2")],
    "an unknown write that happens twice": [
        created(0, 1), patch_lost(2, "n2"), got(3, 4, 2, "n2"), patched(5, 6, 3, "n3"), got(7, 8, 4, "n2"),
    ],
    "an unknown create that happens twice": [
        create_lost(0, "n1"), found(1, 2, "n1"), deleted(3, 4), found(5, 6, "n1", 2),
    ],
    "a gap too wide for the unknown writes": [created(0, 1), patch_lost(2, "n2"), patched(5, 6, 4, "n5")],
    "an unknown write whose If-Match never held": [created(0, 1), patch_lost(2, "n2", 7), got(3, 4, 2, "n2")],
    "a deleted user that returns": [created(0, 1), deleted(2, 3), got(4, 5, 1, "n1")],
    "a user deleted twice": [created(0, 1), deleted(2, 5), deleted(2, 6)],
    "a user missed while it was there": [created(0, 1), missing(2, 3), got(4, 5, 1, "n1")],
    "an address empty while its user was there": [created(0, 1), nobody(2, 3)],
    "a user gone by its id, then there by its address": [
        created(0, 1), deleted(2, 9), missing(3, 4), found(5, 6, "n1"),
    ],
    "a write that was refused as never sent, and seen": [
        created(0, 1), Operation(Kind.PATCH, 2, 3, 503, user_id=1, name="n2", problem="unavailable"),
        got(4, 5, 2, "n2"),
    ],
    "a conflict on a patch that takes no address": [
        created(0, 1), Operation(Kind.PATCH, 2, 3, 409, user_id=1, name="n2"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_is_accepted(history: list[Operation]) -> None:
    assert check(history) == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD.keys())
def test_a_bad_history_is_refused(history: list[Operation]) -> None:
    assert check(history)


def test_a_report_shows_what_went_wrong_and_nothing_that_came_later() -> None:
    history = [created(0, 1), got(1, 2, 1, "n1"), patched(2, 3, 2, "n2"), got(4, 5, 1, "n1"), patched(6, 7, 3, "n3")]
    (violation,) = check(history)
    assert violation.operations == (history[0], history[2], history[3])
    assert "with it none does:\n  client  0  GET user 1" in violation.reason
    last = " ".join(str(violation).splitlines()[-1].split())
    assert last == "4000.000 to 5000.000 ms client 0 GET user 1 -> 200 user 1 v1 name=n1"


def test_a_report_shows_the_refused_write_whose_effect_was_seen() -> None:
    refused = Operation(Kind.PATCH, 2, 3, 503, user_id=1, name="n2", problem="unavailable")
    (violation,) = check([created(0, 1), refused, got(4, 5, 2, "n2")])
    assert refused in violation.operations


def test_a_history_must_write_each_name_once() -> None:
    with pytest.raises(ValueError, match="write each name once"):
        check([created(0, 1), patched(2, 3, 2, "n1")])


# The checker against an exhaustive search


class Model:
    """One address, as plainly as can be: what `tests.support.history` must agree with."""

    def __init__(self, user: Seen | None = None) -> None:
        self.user = user

    def answer(self, asked: Operation, new_id: int) -> tuple[int, Seen | None]:
        """The status and the user that the answer shows; changes the user."""
        user = self.user
        if asked.kind is Kind.CREATE:
            if user is not None:
                return 409, None
            self.user = Seen(new_id, 1, asked.name, A)
            return 201, self.user
        if asked.kind is Kind.FIND:
            return 200, user
        if user is None or user.id != asked.user_id:
            return 404, None
        if asked.kind is Kind.GET:
            return 200, user
        if asked.if_match not in (None, user.version):
            return 412, None
        if asked.kind is Kind.DELETE:
            self.user = None
            return 204, None
        assert user.version is not None
        self.user = user._replace(version=user.version + 1, name=asked.name)
        return 200, self.user


def exhaustively_linearizable(left: Sequence[Operation], ids: dict[str, int], user: Seen | None = None) -> bool:
    """Try every order that respects time, with every choice of what is unknown; `ids` by the name of the create."""
    if all(operation.fate is Fate.UNKNOWN for operation in left):
        return True
    for operation in left:
        if any(other.returned < operation.invoked for other in left):
            continue
        model = Model(user)
        answer = model.answer(operation, ids.get(operation.name or "", 99))
        rest = [other for other in left if other is not operation]
        fits = operation.fate is Fate.UNKNOWN or answer == (operation.status, operation.seen)
        if fits and exhaustively_linearizable(rest, ids, model.user):
            return True
    return False


def ids_shown(history: Sequence[Operation]) -> dict[str, int]:
    """The id that each create gave, as far as an answer shows it."""
    creates = {operation.name for operation in history if operation.kind is Kind.CREATE}
    seen = [operation.seen for operation in history if operation.seen is not None]
    return {user.name: user.id for user in seen if user.name is not None and user.name in creates}


def random_history(chance: random.Random) -> list[Operation]:
    """A history of a model in random order, with wide intervals, lost answers, and sometimes a false answer."""
    model, names, new_ids = Model(), count(1), count(1)
    ids: list[int] = []
    history: list[Operation] = []
    for instant in range(chance.randint(2, 7)):
        kind = chance.choice([Kind.CREATE, Kind.CREATE, Kind.PATCH, Kind.PATCH, Kind.GET, Kind.FIND, Kind.DELETE])
        by_id = kind in (Kind.PATCH, Kind.GET, Kind.DELETE)
        if by_id and not ids:
            continue
        asked = Operation(
            kind,
            instant - chance.choice([0.1, 0.1, 1.2, 2.3]),
            instant + chance.choice([0.1, 0.1, 1.2, 2.3]),
            address=None if by_id else A,
            user_id=chance.choice(ids) if by_id else None,
            name=f"n{next(names)}" if kind in (Kind.CREATE, Kind.PATCH) else None,
            if_match=chance.choice([None, 1, 2]) if kind in (Kind.PATCH, Kind.DELETE) else None,
        )
        new_id = next(new_ids)
        happens = chance.random() < 0.9
        status, seen = model.answer(asked, new_id) if happens else (0, None)
        if status == 201:
            ids.append(new_id)
        lost = not happens or (kind not in (Kind.GET, Kind.FIND) and chance.random() < 0.3)
        history.append(_with(asked, 0, None, math.inf) if lost else _with(asked, status, seen, asked.returned))
    if history and chance.random() < 0.6:
        _falsify(history, chance)
    return history


def _with(asked: Operation, status: int, seen: Seen | None, returned: float) -> Operation:
    return Operation(
        asked.kind, asked.invoked, returned, status, asked.address, asked.user_id, asked.name, asked.if_match, seen
    )


def _falsify(history: list[Operation], chance: random.Random) -> None:
    number = chance.randrange(len(history))
    operation, seen = history[number], history[number].seen
    if seen is not None and seen.version is not None and operation.kind is not Kind.CREATE:
        chosen = chance.choice(history)
        seen = seen._replace(version=seen.version + chance.choice([-1, 0, 1]), name=chosen.name or seen.name)
        history[number] = _with(operation, operation.status, seen, operation.returned)
    elif operation.status in (404, 409, 412):
        status = chance.choice([412, 404]) if operation.kind in (Kind.PATCH, Kind.DELETE) else operation.status
        history[number] = _with(operation, status, None, operation.returned)
    elif operation.kind is Kind.DELETE and operation.fate is Fate.ANSWERED:
        history[number] = _with(operation, chance.choice([404, 412]), None, operation.returned)


def _ids_are_known(history: Sequence[Operation]) -> bool:
    """Whether each id in use was shown with the name that it was created with, which `check` relies on."""
    used = {operation.user_id or (operation.seen and operation.seen.id) for operation in history}
    return used - {None} <= set(ids_shown(history).values())


@pytest.mark.parametrize("seed", range(20))
def test_the_checker_agrees_with_an_exhaustive_search(seed: int) -> None:
    chance = random.Random(seed)
    verdicts: Counter[bool] = Counter()
    while verdicts.total() < 200:
        history = [operation for operation in random_history(chance) if operation.fate is not Fate.VOID]
        if not _ids_are_known(history):
            continue
        ids = ids_shown(history)
        # The model would give an id twice, if it were told to.
        expected = len(set(ids.values())) == len(ids) and exhaustively_linearizable(history, ids)
        assert (check(history) == []) is expected, "\n".join(map(str, history))
        verdicts[expected] += 1
    assert min(verdicts[True], verdicts[False]) >= 10


# The application


async def run(workload: Workload, operations: int, meanwhile: Meanwhile | None = None, times: int = 0) -> None:
    """Run until so many operations were answered (a 503 is no answer) and `meanwhile` was awaited so many times."""
    left = times

    async def interfere() -> None:
        nonlocal left
        while left and meanwhile is not None:
            await asyncio.sleep(0.1)
            await meanwhile(workload)
            left -= 1

    async with asyncio.TaskGroup() as group:
        group.create_task(interfere())
        group.create_task(workload.run(lambda: left or workload.answered < operations))


def assert_linearizable(history: Sequence[Operation]) -> None:
    violations = check(history)
    assert not violations, "\n\n".join(["", *map(str, violations)])


@pytest.fixture(params=[True, False], ids=["batching", "no batching"])
def batching(request: pytest.FixtureRequest) -> bool:
    """Whether requests share statements."""
    return bool(request.param)


async def run_application(url: str, *, batching: bool, meanwhile: Meanwhile | None = None, times: int = 0) -> Recorder:
    """What the clients of the application on a database saw, once all is over."""
    server = serve(create_app(settings_for(url, batching=batching, batch_in_flight=2)))
    workload = Workload(server.__enter__())
    try:
        await run(workload, 4000, meanwhile, times)
    finally:
        # In a thread, since what the server waits for may come through this one.
        await asyncio.to_thread(server.__exit__, None, None, None)
    return workload.recorder


def assert_linearizable_to_the_end(recorder: Recorder, database: str) -> None:
    """Every answer fits one order, and so do the rows that are left."""
    history = recorder.operations
    assert_linearizable(history + final_reads(execute(database, USERS_LEFT), history, recorder.clock()))


def assert_fair(history: Sequence[Operation]) -> None:
    """A history in which little succeeded would be linearizable too."""
    successes = Counter((operation.kind, operation.status) for operation in history)
    expected = {
        (Kind.GET, 200): 200, (Kind.GET, 304): 20, (Kind.FIND, 200): 100, (Kind.PATCH, 200): 300,
        (Kind.CREATE, 201): 20, (Kind.DELETE, 204): 20, (Kind.CREATE, 409): 20, (Kind.PATCH, 412): 20,
    }  # fmt: skip
    assert {key: successes[key] for key, least in expected.items() if successes[key] < least} == {}


def server_errors(recorder: Recorder) -> set[int]:
    return {operation.status for operation in recorder.operations if operation.status >= 500}


async def test_every_history_is_linearizable(database: str, batching: bool) -> None:
    recorder = await run_application(database, batching=batching)
    assert_linearizable_to_the_end(recorder, database)
    assert server_errors(recorder) == set()
    assert_fair(recorder.operations)


async def test_every_history_is_linearizable_while_connections_die(database: str, batching: bool) -> None:
    async def kill(_: Workload) -> None:
        await asyncio.to_thread(execute, database, KILL_ALL)

    recorder = await run_application(database, batching=batching, meanwhile=kill, times=15)
    assert_linearizable_to_the_end(recorder, database)
    assert server_errors(recorder) <= {503}
    assert_fair(recorder.operations)


async def test_every_history_is_linearizable_over_a_network_that_breaks(
    database: str, batching: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ((near, port),) = parse_url(database).hosts
    far = tmp_path_factory.mktemp("far")
    distance = Distance(Path(near, f".s.PGSQL.{port}"))
    async with distance.between(far):
        url = database.replace(near, str(far))
        recorder = await run_application(url, batching=batching, meanwhile=lambda _: distance.cut(), times=15)
    assert_linearizable_to_the_end(recorder, database)
    assert server_errors(recorder) <= {503}
    assert_fair(recorder.operations)


@pytest.mark.far
async def test_every_history_is_linearizable_while_neon_fails(rig: Rig, neon: NeonDatabase, batching: bool) -> None:
    """Statements refused before they arrive, cut off after their commit, and all between; computes that sleep."""
    chance = random.Random(0)
    rig.wake_seconds = 0.1
    faults = [Injection(point, action) for point in STATEMENT_POINTS for action in (Cut.RESET, Cut.CLOSE, SHUTDOWN)]
    faults += [Injection(Point.REQUEST, said) for said in (SERVER_FULL, Farewell("08P01", "query_wait_timeout"))]
    faults += [Injection(Point.CONNECT, said) for said in (*NEON_TRANSIENT, POOLER_FULL, Cut.RESET)]

    async def fail(workload: Workload) -> None:
        # A read that breaks each time is refused, and so are those that share its statement. One after the other, the
        # faults cannot break the same one so often, however slow the machine is.
        await asyncio.to_thread(wait_until, lambda: not rig.pending)
        await workload.settle()
        chosen = chance.sample(faults, 4)
        for fault in chosen:
            rig.inject(fault)
        if any(fault.point is Point.CONNECT for fault in chosen):  # which strikes a new connection: there has to be one
            await asyncio.to_thread(rig.suspend)

    recorder = await run_application(neon.pooled, batching=batching, meanwhile=fail, times=10)
    assert rig.counts.faults.total() > 20
    assert_linearizable_to_the_end(recorder, neon.superuser)
    assert_fair(recorder.operations)
    # Transient faults cost latency, apart from writes of unknown outcome.
    assert {each.problem for each in recorder.operations if each.status >= 500} <= {"outcome-unknown"}


# The application with bugs


class Bug:
    """An ASGI application around the real one, with a bug that lasts for a number of writes, not for a time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.writes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def count_writes(message: Message) -> None:
            self.writes += scope["method"] != "GET" and message["type"] == "http.response.start"
            await send(message)

        await self.answer(scope, receive, count_writes)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def ask(self, scope: Scope, receive: Receive) -> list[Message]:
        """The real application's answer, its body in messages of its own."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self.app({**scope, "extensions": {}}, receive, keep)
        return messages


class JoinsReadsAlreadySent(Bug):
    """Single-flight: a read joins one of the same user that was sent before its own arrival.

    A flight is as long as a hundred writes of anybody, as if its answer took so long to come: several for each client,
    since reads and writes that overlap may fall in either order.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._flights: dict[str, tuple[int, list[Message]]] = {}

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        conditional = any(name == b"if-none-match" for name, _ in scope["headers"])
        if scope["method"] != "GET" or path == USERS or conditional:
            await self.app(scope, receive, send)
            return
        until, messages = self._flights.get(path, (0, []))
        if until <= self.writes:
            sent = self.writes
            messages = await self.ask(scope, receive)
            self._flights[path] = sent + 100, messages
        for message in messages:
            await send(message)


class AcknowledgesBeforeSending(Bug):
    """A PATCH is answered with what it will do, and done when five writes of others have been answered."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "PATCH" or any(name == b"if-match" for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
            return
        request = await receive()
        start, *rest = await self.ask({**scope, "method": "GET"}, receive)
        if start["status"] == 200:
            start, *rest = _foresee(start, rest, orjson.loads(request["body"])["name"])
        for message in (start, *rest):
            await send(message)
        if start["status"] == 200:
            await self._wait_for_writes(5)
            await self.ask(scope, _replay(request))

    async def _wait_for_writes(self, number: int) -> None:
        until = self.writes + number
        # Not for ever: the last ones have no others after them.
        for _ in range(100):
            if self.writes >= until:
                return
            await asyncio.sleep(0.001)


def _foresee(start: Message, rest: list[Message], name: str) -> Iterator[Message]:
    headers = dict(start["headers"])
    body = orjson.dumps({**orjson.loads(b"".join(message["body"] for message in rest)), "name": name})
    headers[b"etag"] = b'"%d"' % (int(headers[b"etag"].strip(b'"')) + 1)
    headers[b"content-length"] = b"%d" % len(body)
    yield {**start, "headers": list(headers.items())}
    yield {"type": "http.response.body", "body": body}


def _replay(request: Message) -> Receive:
    async def receive() -> Message:
        return request

    return receive


@pytest.mark.parametrize("fault", [JoinsReadsAlreadySent, AcknowledgesBeforeSending])
async def test_a_fault_in_the_application_is_found(database: str, batching: bool, fault: type[Bug]) -> None:
    app = create_app(settings_for(database, batching=batching))
    with serve(fault(app)) as url:
        workload = Workload(url)
        await run(workload, 1000)
    with pytest.raises(AssertionError, match="with it none does"):
        assert_linearizable(workload.recorder.operations)
