"""The replica over simulated time: who answers a read, for how long, and which position a client reads after."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.context import RequestContext, serving
from api.database.options import Limits
from api.database.replica import BEYOND
from api.users.statements import ESTIMATE_USERS
from tests.support.replicas import WAIT_SECONDS, Pair, simulated_pair
from tests.support.simulated import SimulatedLoop

TICK = 1e-6
POLL_SECONDS = 0.005
SKIP_SECONDS = 1.0
LIMITS = Limits(in_flight=4, max_size=100, max_waiting=100, max_wait_seconds=10.0)

POSITIONS = [
    (0x16B3748, b"0/16B3748"),
    (2**32 - 1, b"0/FFFFFFFF"),
    (2**32, b"1/0"),
    (2**32 + 1, b"1/1"),
    (0x1_0000_0003, b"1/3"),
    (2**63 - 1, b"7FFFFFFF/FFFFFFFF"),
]
"""Positions of the log as numbers, and as PostgreSQL writes them: beyond 32 bits too, since a log only grows."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": SimulatedLoop}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with simulated_pair() as pair:
        pair.primary.latency = 0.0
        yield pair


async def answered_by(pair: Pair) -> str:
    """Return which server answers a read."""
    (row,) = await pair.replica.fetch(ESTIMATE_USERS)
    return str(row["server"])


@asynccontextmanager
async def taking(seconds: float) -> AsyncIterator[None]:
    """Expect a block to take so long, to the few milliseconds of a statement and a poll."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    yield
    assert seconds - TICK <= loop.time() - begun <= seconds + 0.06


async def fail(pair: Pair, state: str) -> None:
    """Let a read fail on the replica, which is left alone from now on."""
    pair.standby.state = state
    assert await answered_by(pair) == "primary"


# Reads


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("refusing", "ConnectionRefusedError"),
        ("denying", "InvalidPasswordError"),
        ("silent", "TimeoutError"),
        ("failing", "UndefinedTableError"),
    ],
)
async def test_the_primary_answers_what_the_replica_does_not(
    pair: Pair, caplog: pytest.LogCaptureFixture, state: str, cause: str
) -> None:
    assert await answered_by(pair) == "standby"
    pair.standby.restart(0)
    await fail(pair, state)
    assert f"READ_DATABASE_URL: the primary answers instead: {cause}" in caplog.text


async def test_a_replica_that_refuses_a_statement_gets_the_next_one(pair: Pair) -> None:
    await fail(pair, "failing")
    pair.standby.state = "up"
    assert await answered_by(pair) == "standby"


async def test_a_replica_whose_connections_are_all_in_use_is_not_left_alone(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.standby.slow = 3.0
    busy = asyncio.create_task(pair.standby_pool.fetch(replace(ESTIMATE_USERS, writes=True)))
    await asyncio.sleep(0.01)
    async with taking(WAIT_SECONDS):
        assert await answered_by(pair) == "primary"
    pair.standby.slow = 0.0
    await busy
    assert await answered_by(pair) == "standby"
    assert "the primary answers instead" not in caplog.text


async def test_a_replica_that_is_down_is_left_alone_for_a_second(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    await fail(pair, "refusing")
    attempts = pair.standby.attempts
    for seconds in (0.5, SKIP_SECONDS - 0.5 - TICK):
        await asyncio.sleep(seconds)
        async with taking(0.0):
            assert await answered_by(pair) == "primary"
    await asyncio.sleep(0.01)
    assert pair.standby.attempts == attempts
    async with taking(0.0):
        assert await answered_by(pair) == "primary"  # and makes a trial meanwhile
        assert await answered_by(pair) == "primary"
    await asyncio.sleep(0.01)
    assert pair.standby.attempts == attempts + 1
    assert caplog.text.count("the primary answers instead") == 1


async def test_a_replica_that_answers_the_trial_is_used_again(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    await fail(pair, "refusing")
    pair.standby.state = "up"
    await asyncio.sleep(SKIP_SECONDS + TICK)
    assert await answered_by(pair) == "primary"
    with caplog.at_level("INFO", "api.database"):
        await asyncio.sleep(0.1)
    assert "READ_DATABASE_URL: the replica answers again" in caplog.text
    assert await answered_by(pair) == "standby"
    pair.standby.restart(0)
    await fail(pair, "refusing")
    assert caplog.text.count("the primary answers instead") == 2


async def test_a_replica_that_stays_down_gets_one_statement_a_second(pair: Pair) -> None:
    await fail(pair, "refusing")
    pair.standby.state = "failing"
    for _ in range(400):
        assert await answered_by(pair) == "primary"
        await asyncio.sleep(0.05)
    assert 18 <= pair.standby.statements <= 20


async def test_a_trial_belongs_to_no_request(pair: Pair) -> None:
    await fail(pair, "refusing")
    pair.standby.state = "up"
    await asyncio.sleep(SKIP_SECONDS + TICK)

    async def send(message: object) -> None: ...

    request = RequestContext(b"1", send)
    serving.set([request])
    assert await answered_by(pair) == "primary"
    counted = request.queue
    await asyncio.sleep(0.1)
    assert pair.standby.open == 1
    assert request.queue == counted


async def test_a_trial_that_finds_every_connection_in_use_makes_another_second(pair: Pair) -> None:
    assert await answered_by(pair) == "standby"
    pair.standby.slow = 8.0
    # A write, which is not sent again.
    busy = asyncio.create_task(pair.standby_pool.fetch(replace(ESTIMATE_USERS, writes=True)))
    await asyncio.sleep(0.01)
    assert await pair.replica.reaches(1) is None
    trials = 0
    for _ in range(390):
        before = asyncio.all_tasks()
        assert await answered_by(pair) == "primary"
        trials += len(asyncio.all_tasks() - before)
        await asyncio.sleep(0.01)
    assert trials == 1  # from 1 to 3 s; the next one is after 4 s
    await busy


async def test_closing_ends_a_trial(pair: Pair) -> None:
    before = asyncio.all_tasks()
    await fail(pair, "refusing")
    pair.standby.state, pair.standby.slow = "up", 8.0
    await asyncio.sleep(SKIP_SECONDS + TICK)
    assert await answered_by(pair) == "primary"
    await asyncio.sleep(0.1)
    assert pair.standby.statements == 1
    async with taking(0.0):
        await pair.replica.close()
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


async def test_closing_closes_the_connections_of_the_replica(pair: Pair) -> None:
    assert await answered_by(pair) == "standby"
    assert pair.standby.open == 1
    await pair.replica.close()
    assert pair.standby.open == 0


async def test_there_is_room_where_reads_go(pair: Pair) -> None:
    assert pair.replica.has_room()
    reading = asyncio.create_task(pair.standby_pool.fetch(ESTIMATE_USERS))
    await asyncio.sleep(0.001)
    assert not pair.replica.has_room()
    await reading
    assert pair.replica.has_room()
    await fail(pair, "failing")
    pair.standby.restart(0)
    await fail(pair, "refusing")
    pair.primary.latency = 0.02
    reading = asyncio.create_task(pair.primary_pool.fetch(ESTIMATE_USERS))
    await asyncio.sleep(0.001)
    assert not pair.replica.has_room()
    await reading
    assert pair.replica.has_room()


async def test_statements_are_bounded_as_on_the_replica(pair: Pair) -> None:
    assert pair.replica.lock_timeout == pair.standby_pool.lock_timeout


# The position that a client reads after


@pytest.mark.parametrize(("number", "text"), POSITIONS, ids=[text.decode() for _, text in POSITIONS])
async def test_a_position_is_written_as_postgresql_does(pair: Pair, number: int, text: bytes) -> None:
    pair.primary.position = number
    assert await pair.replica.position() == text


async def cancelled(work: Awaitable[bytes]) -> bytes:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.1)
    task.cancel()
    return await task


@pytest.mark.parametrize("state", ["silent", "refusing", "denying", "failing"])
async def test_a_position_that_is_not_known_in_time_is_beyond_every_log(pair: Pair, state: str) -> None:
    pair.primary.state = state
    begun = asyncio.get_running_loop().time()
    assert await pair.replica.position() == BEYOND == b"FFFFFFFF/FFFFFFFF"
    assert asyncio.get_running_loop().time() - begun <= WAIT_SECONDS + TICK


async def test_a_write_whose_request_is_cancelled_has_a_position_too(pair: Pair) -> None:
    pair.primary.state = "silent"
    assert await cancelled(pair.replica.position()) == BEYOND


async def test_a_write_beside_too_many_others_has_a_position_too() -> None:
    async with simulated_pair(limits=LIMITS._replace(max_waiting=0)) as pair:
        assert await pair.replica.position() == BEYOND


@pytest.mark.parametrize("is_write", [True, False])
async def test_positions_wait_in_one_batch_for_a_connection(is_write: bool) -> None:
    async with simulated_pair(limits=LIMITS) as pair:
        await answered_by(pair)
        pair.primary.latency = pair.standby.latency = 0.4
        server = pair.primary if is_write else pair.standby
        asked, before = [], server.statements
        for _ in range(4):
            asked.append(asyncio.create_task(pair.replica.position() if is_write else pair.replica.reaches(0)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*asked)
        assert server.statements == before + 2


# Reading after a position


@pytest.mark.parametrize("position", [number for number, _ in POSITIONS])
async def test_a_replica_reaches_what_it_has_replayed_and_no_more(pair: Pair, position: int) -> None:
    pair.standby.position = position
    assert await pair.replica.reaches(position) == pair.replica.epoch
    async with taking(0.0):
        assert await pair.replica.reaches(position) == pair.replica.epoch  # without asking again
    async with taking(WAIT_SECONDS):
        assert await pair.replica.reaches(position + 1) is None


async def test_a_replica_that_has_answered_nothing_has_replayed_nothing(pair: Pair) -> None:
    assert await pair.replica.reaches(1) is None
    assert pair.standby.statements > 1


async def test_a_request_waits_until_the_replica_has_replayed(pair: Pair) -> None:
    assert await answered_by(pair) == "standby"
    pair.standby.position = 7
    asyncio.get_running_loop().call_later(0.5, setattr, pair.standby, "position", 8)
    async with taking(0.5):
        assert await pair.replica.reaches(8) == pair.replica.epoch


async def test_a_request_that_waits_asks_again_every_few_milliseconds(pair: Pair) -> None:
    pair.standby.latency = 0.001
    assert await pair.replica.reaches(8) is None
    polls = WAIT_SECONDS / (POLL_SECONDS + pair.standby.latency)
    assert polls * 0.9 <= pair.standby.statements <= polls + 2


async def test_one_request_waits_for_a_replica_that_is_far_behind(pair: Pair) -> None:
    async with taking(WAIT_SECONDS):
        assert await pair.replica.reaches(8) is None
    for _ in range(2):
        statements = pair.standby.statements
        async with taking(0.0):
            assert await pair.replica.reaches(8) is None
        assert pair.standby.statements == statements + 1
    assert await answered_by(pair) == "standby"
    pair.standby.position = 8
    assert await pair.replica.reaches(8) == pair.replica.epoch
    async with taking(WAIT_SECONDS):
        assert await pair.replica.reaches(9) is None


async def test_a_replica_that_restarts_further_back_is_asked_again(pair: Pair) -> None:
    pair.standby.position = 8
    first = await pair.replica.reaches(8)
    pair.standby.restart(7)
    await answered_by(pair)
    asyncio.get_running_loop().call_later(0.5, setattr, pair.standby, "position", 8)
    async with taking(0.5):
        assert await pair.replica.reaches(8) == pair.replica.epoch != first


@pytest.mark.parametrize(
    ("state", "is_used"), [("refusing", False), ("denying", False), ("silent", False), ("failing", True)]
)
async def test_the_primary_answers_if_the_position_of_the_replica_is_unknown(
    pair: Pair, caplog: pytest.LogCaptureFixture, state: str, is_used: bool
) -> None:
    pair.standby.position = 1
    pair.standby.state = state
    assert await pair.replica.reaches(1) is None
    assert "READ_DATABASE_URL: the primary answers instead: " in caplog.text
    pair.standby.state = "up"
    async with taking(0.0):
        assert await answered_by(pair) == ("standby" if is_used else "primary")
        assert (await pair.replica.reaches(1) is not None) == is_used


async def test_the_primary_answers_beside_too_many_reads(caplog: pytest.LogCaptureFixture) -> None:
    async with simulated_pair(limits=LIMITS._replace(max_waiting=0)) as pair:
        assert await pair.replica.reaches(1) is None
        assert "READ_DATABASE_URL: the primary answers instead: OverloadedError" in caplog.text
        assert await answered_by(pair) == "standby"


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("replay"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.integers(0, 3)),
    st.tuples(st.just("state"), st.sampled_from(["up", "refusing", "silent", "failing"])),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.004, 0.01, 0.02, 0.2, 1.1, 2.5])),
)


async def read_after(pair: Pair, position: int) -> None:
    """Read as a client that wrote up to a position, and assert that the replica has it if it answers."""
    epoch = await pair.replica.reaches(position)
    if epoch is None:
        return
    (row,) = await pair.replica.fetch(ESTIMATE_USERS)
    if row["server"] == "standby" and pair.replica.epoch == epoch:
        assert row["position"] >= position


def change(pair: Pair, kind: str, value: Any) -> None:
    if kind == "write":
        pair.primary.position += value
    elif kind == "replay":
        pair.standby.position = min(pair.standby.position + value, pair.primary.position)
    elif kind == "restart":
        pair.standby.restart(max(pair.standby.position - value, 0))
    else:
        pair.standby.state = value


@settings(max_examples=50, deadline=None)
@given(connections=st.integers(1, 2), batching=st.booleans(), steps=st.lists(STEPS, min_size=5, max_size=40))
def test_no_client_misses_what_it_wrote(connections: int, batching: bool, steps: list[tuple[str, Any]]) -> None:
    """Whatever becomes of the replica between the question how far it is and the read."""

    async def run() -> None:
        async with simulated_pair(connections=connections, limits=LIMITS if batching else None) as pair:
            reads = []
            for kind, value in steps:
                if kind == "read":
                    reads.append(asyncio.create_task(read_after(pair, max(pair.primary.position - value, 0))))
                elif kind == "wait":
                    await asyncio.sleep(value)
                else:
                    change(pair, kind, value)
            pair.standby.state = "up"
            pair.standby.position = pair.primary.position
            await asyncio.gather(*reads)

    loop = SimulatedLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
