"""Reads from a streaming replica: clients see their own writes, and the primary answers where the replica cannot."""

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route, Router

from api.app import create_app
from api.doctor import examine
from api.http.resource import Resource
from api.neon.url import parse_url
from api.settings import Settings
from api.telemetry.middleware import Telemetry
from tests.support.database import SLOW_WRITES, execute, locked, wait_until_waiting
from tests.support.distance import Distance
from tests.support.metrics import STATEMENT, scrape
from tests.support.rig import NeonDatabase, Rig
from tests.support.serving import serve, settings_for
from tests.support.standby import Standby
from tests.support.waiting import wait_until

USERS = "/api/v1/users"
BEYOND = "FFFFFFFF/FFFFFFFF"

both_ways = pytest.mark.parametrize("batching", [True, False], indirect=True, ids=["batching", "no batching"])


@pytest.fixture(params=[True])
def batching(request: pytest.FixtureRequest) -> bool:
    """Whether requests share statements: both ways where that makes a difference."""
    return bool(request.param)


@pytest.fixture
def settings(database: str, standby: Standby, batching: bool) -> Settings:
    """Settings with the replica, and a wait that no test outlives by accident."""
    return settings_for(database, read_database_url=standby.url(database), replica_wait_seconds=10, batching=batching)


@contextmanager
def serving(settings: Settings, **overrides: object) -> Iterator[httpx.Client]:
    app = create_app(settings.model_copy(update=overrides))
    with serve(app) as url, httpx.Client(base_url=url, timeout=40) as client:
        yield client


def create(client: httpx.Client, name: str = "old") -> tuple[str, str]:
    """Create a user; its path, and the position to read after."""
    answer = client.post(USERS, json={"email": "ada@example.com", "name": name})
    assert answer.status_code == 201
    return answer.headers["location"], answer.headers["read-after"]


def names(client: httpx.Client, path: str, position: str | None) -> list[str]:
    """The user's name by its id, by its address, and in both lists; a position to read after where there is one."""
    headers = {} if position is None else {"read-after": position}
    found = [client.get(path, headers=headers).json()]
    for query in ("?email=ADA@example.com", "?limit=5", "?skip=0&limit=5", "?after=0"):
        found += client.get(f"{USERS}{query}", headers=headers).json()
    return [user["name"] for user in found]


def reads_of_the_primary(client: httpx.Client) -> float:
    """Return how many reads the primary answered: their content does not tell.

    Who meets a new connection to the replica is answered by the primary, since it may lead to a server that restarted.
    One may be opened while another is on its way back to the pool, unless POOL_MAX_SIZE is 1.
    """
    return sum(
        sample.value
        for sample in scrape(str(client.base_url)).samples
        if sample.name == f"{STATEMENT}_count"
        and sample.labels["url"] == "DATABASE_URL"
        and sample.labels["statement"].startswith(("users/select", "users/list"))
    )


def test_doctor_knows_a_replica(database: str, standby: Standby) -> None:
    settings = settings_for(standby.url(database))
    steps = asyncio.run(examine(settings, replicas=1, workers=1, time_limit=20, report=lambda *_: None))
    (step,) = [step for step in steps if (step.url, step.step) == ("DATABASE_URL", "server")]
    assert (step.status, step.remedy) == ("red", "use the URL of the primary")


def test_reads_go_to_the_replica(settings: Settings, standby: Standby) -> None:
    with serving(settings) as client:
        path, _ = create(client)
        standby.catch_up()
        assert names(client, path, None) == ["old"] * 5
        standby.pause()
        assert client.patch(path, json={"name": "new"}).status_code == 200
        # This proves which one answers.
        assert names(client, path, None) == ["old"] * 5
        assert client.head(path).headers["etag"] == '"1"'


@both_ways
def test_a_client_that_wrote_sees_what_it_wrote(settings: Settings, standby: Standby) -> None:
    with serving(settings, pool_max_size=1) as client:
        path, position = create(client)
        assert names(client, path, position) == ["old"] * 5
        standby.pause()
        position = client.patch(path, json={"name": "new"}).headers["read-after"]
        resumed = threading.Timer(0.2, standby.resume)
        resumed.start()
        # It waits for the replica, which is resumed after it has begun to.
        assert names(client, path, position) == ["new"] * 5
        resumed.join()
        assert reads_of_the_primary(client) == 0


def test_a_replica_that_is_too_far_behind_makes_one_request_wait(settings: Settings, standby: Standby) -> None:
    # A wait that the test would not outlive for each of its requests.
    with serving(settings, replica_wait_seconds=2, pool_max_size=1) as client:
        path, _ = create(client)
        standby.catch_up()
        client.get(path)
        standby.pause()
        position = client.patch(path, json={"name": "new"}).headers["read-after"]
        for _ in range(40):
            assert names(client, path, position) == ["new"] * 5
        # A client that wrote nothing may read from the replica.
        assert names(client, path, None) == ["old"] * 5
        standby.resume()
        standby.catch_up()
        before = reads_of_the_primary(client)
        assert names(client, path, position) == ["new"] * 5
        assert reads_of_the_primary(client) == before > 0


WRITES: list[tuple[str, Callable[[httpx.Client, str], httpx.Response], int]] = [
    ("created", lambda client, path: client.post(USERS, json={"email": "bob@example.com"}), 201),
    ("changed", lambda client, path: client.patch(path, json={"name": "new"}), 200),
    ("deleted", lambda client, path: client.delete(path), 204),
    ("taken", lambda client, path: client.post(USERS, json={"email": "ada@example.com"}), 409),
    ("another version", lambda client, path: client.delete(path, headers={"if-match": '"7"'}), 412),
    ("nobody", lambda client, path: client.delete(f"{USERS}/999"), 404),
]


@pytest.mark.parametrize(("write", "status"), [each[1:] for each in WRITES], ids=[each[0] for each in WRITES])
def test_every_answer_to_a_write_says_what_to_read_after(
    settings: Settings, write: Callable[[httpx.Client, str], httpx.Response], status: int
) -> None:
    with serving(settings, pool_max_size=1) as client:
        path, position = create(client)
        answer = write(client, path)
        assert answer.status_code == status
        assert as_number(answer.headers["read-after"]) >= as_number(position)
        assert client.get(USERS, headers={"read-after": answer.headers["read-after"]}).status_code == 200
        assert "read-after" not in client.get(path).headers
        assert reads_of_the_primary(client) == 0


def as_number(position: str) -> int:
    high, low = position.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_what_asks_nothing_of_the_database_says_nothing(settings: Settings) -> None:
    with serving(settings) as client:
        for answer in (
            client.post(USERS, json={}),
            client.post(f"{USERS}/1"),
            client.put(USERS),
            client.get("/health"),
        ):
            assert "read-after" not in answer.headers


def test_a_position_from_within_the_writing_statement_is_too_early(database: str, standby: Standby) -> None:
    """Which is why a second statement asks for it."""
    far = standby.url(database)
    write = """
        with created as (insert into users (email) values ('ada@example.com') returning 1),
        position as materialized (select pg_current_wal_insert_lsn() as lsn from created)
        select lsn, pg_advisory_xact_lock_shared(1) from position
    """
    with locked(database, "select pg_advisory_xact_lock(1)") as gate:
        within: list[tuple[object, ...]] = []
        writing = threading.Thread(target=lambda: within.extend(execute(database, write)))
        writing.start()
        wait_until_waiting(database, 1)
        # The statement has its position, and has not committed yet. The replica replays beyond it.
        standby.catch_up()
        replayed = str(execute(far, "select pg_last_wal_replay_lsn()")[0][0])
        assert execute(far, "select count(*) from users") == [(0,)]
        gate.rollback()
        writing.join()
    assert as_number(str(within[0][0])) <= as_number(replayed)
    standby.catch_up()
    assert execute(far, "select count(*) from users") == [(1,)]


@pytest.mark.parametrize("token", [BEYOND, "FFFFFFFF/0"])
def test_a_position_that_no_log_reaches_is_read_from_the_primary(
    settings: Settings, standby: Standby, token: str
) -> None:
    wait = 0.2 if token == "FFFFFFFF/0" else 10
    with serving(settings, replica_wait_seconds=wait) as client:
        path, _ = create(client)
        standby.catch_up()
        standby.pause()
        client.patch(path, json={"name": "new"})
        assert names(client, path, token) == ["new"] * 5


def test_a_write_of_which_nothing_is_known_sends_reads_to_the_primary(settings: Settings, database: str) -> None:
    execute(database, SLOW_WRITES)
    with serving(settings, statement_timeout_seconds=1) as client:
        answer = client.post(USERS, json={"email": "ada@example.com"})
        assert answer.json()["type"] == "urn:problem:users-api:outcome-unknown"
        assert answer.headers["read-after"] == BEYOND


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/none"


def test_a_replica_that_refuses_is_replaced_by_the_primary(
    database: str, batching: bool, caplog: pytest.LogCaptureFixture
) -> None:
    nothing_listens = "postgresql://nobody@127.0.0.1:1/none"
    with serving(settings_for(database, read_database_url=nothing_listens, batching=batching)) as client:
        path, position = create(client)
        assert names(client, path, None) == ["old"] * 5
        assert names(client, path, position) == ["old"] * 5
    assert "READ_DATABASE_URL: the primary answers instead: ConnectionRefusedError" in caplog.text


@pytest.mark.parametrize("with_position", [False, True])
def test_a_replica_that_says_nothing_makes_one_request_wait(
    database: str, silent: str, batching: bool, with_position: bool
) -> None:
    # A wait that the test would not outlive for each of its requests.
    settings = settings_for(database, read_database_url=silent, replica_wait_seconds=2, batching=batching)
    with serving(settings) as client:
        path, position = create(client)
        headers = {"read-after": position} if with_position else {}
        for _ in range(200):
            assert client.get(path, headers=headers).json()["name"] == "old"


async def test_a_replica_that_is_busy_is_not_left_alone(
    database: str, standby: Standby, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two reads at once over one connection, one waits too long for it, and the primary answers that one alone."""
    settings = settings_for(
        database, read_database_url=standby.url(database), replica_wait_seconds=1, pool_max_size=1, batching=False
    )
    standby.catch_up()
    with serving(settings) as client:
        path, _ = create(client)
        with locked(database) as other:
            # The lock is replayed, so that the first read waits for it there, and the other here.
            standby.catch_up()
            async with httpx.AsyncClient(base_url=client.base_url, timeout=40) as many:
                reads = [asyncio.create_task(many.get(path)) for _ in range(2)]
                await asyncio.to_thread(wait_until_waiting, database, 1)
                other.rollback()
                assert [(await read).status_code for read in reads] == [200, 200]
    assert "the primary answers instead" not in caplog.text


def test_a_replica_that_crashes_and_returns(
    settings: Settings, standby: Standby, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(settings, replica_wait_seconds=1) as client:
        path, position = create(client)
        standby.catch_up()
        assert names(client, path, None) == ["old"] * 5
        standby.stop("immediate")
        try:
            assert names(client, path, None) == ["old"] * 5
            position = client.patch(path, json={"name": "new"}).headers["read-after"]
            assert names(client, path, position) == ["new"] * 5
        finally:
            standby.start()
        assert "READ_DATABASE_URL: the primary answers instead" in caplog.text
        standby.catch_up()
        with caplog.at_level("INFO"):
            while "READ_DATABASE_URL: the replica answers again" not in caplog.text:
                client.get(path)
        standby.pause()
        client.patch(path, json={"name": "newer"})
        assert names(client, path, None) == ["new"] * 5


@both_ways
async def test_a_replica_that_restarts_further_back_is_asked_again(
    database: str, standby: Standby, batching: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As after a crash: what it had replayed once it may have to replay again."""
    ((near, port),) = parse_url(database).hosts
    ((behind, _),) = parse_url(standby.url(database)).hosts
    between = tmp_path_factory.mktemp("between")
    distance = Distance(Path(near, f".s.PGSQL.{port}"))
    settings = settings_for(
        database,
        read_database_url=database.replace(near, str(between)),
        replica_wait_seconds=2,
        batching=batching,
    )
    standby.pause()
    async with distance.between(between):
        server = serve(create_app(settings))
        async with httpx.AsyncClient(base_url=server.__enter__(), timeout=40) as client:
            try:
                created = await client.post(USERS, json={"email": "ada@example.com"})
                read_after = {"read-after": created.headers["read-after"]}
                for _ in range(2):
                    assert (await client.get(created.headers["location"], headers=read_after)).status_code == 200
                # The same URL leads to one that has not replayed it.
                distance.socket = Path(behind, f".s.PGSQL.{port}")
                await distance.cut()
                for _ in range(3):
                    assert (await client.get(created.headers["location"], headers=read_after)).status_code == 200
                assert (await client.get(created.headers["location"])).status_code == 404
            finally:
                await asyncio.to_thread(server.__exit__, None, None, None)


@both_ways
async def test_nobody_misses_what_it_wrote_whatever_becomes_of_the_replica(
    settings: Settings, standby: Standby
) -> None:
    """Clients read their own writes while replay stops and goes on, and the replica crashes and returns."""
    running, reads = True, 0
    with serving(settings, replica_wait_seconds=0.1) as client:
        created = [client.post(USERS, json={"email": f"{n}@example.com"}) for n in range(12)]

        async def write_and_read(many: httpx.AsyncClient, number: int) -> None:
            nonlocal reads
            path, chance = created[number].headers["location"], random.Random(number)
            while running:
                answer = await many.patch(path, json={"name": str(chance.random())})
                assert answer.status_code == 200
                position = answer.headers["read-after"]
                for _ in range(chance.randint(1, 4)):
                    seen = await many.get(path, headers={"read-after": position})
                    assert seen.content == answer.content
                    reads += 1

        async with httpx.AsyncClient(base_url=client.base_url, timeout=40) as many, asyncio.TaskGroup() as group:
            for number in range(len(created)):
                group.create_task(write_and_read(many, number))
            for disturb in (standby.pause, standby.resume, standby.stop, standby.start):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(disturb)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(wait_until, lambda: reads > 100)  # a busy machine has made fewer by now
            running = False


async def test_the_writes_of_a_batch_share_the_question(rig: Rig, neon: NeonDatabase, session_standby: Standby) -> None:
    session_standby.catch_up()
    settings = neon.settings(read_database_url=session_standby.url(neon.superuser), replica_wait_seconds=10)
    with serving(settings, pool_max_size=1) as client:
        async with httpx.AsyncClient(base_url=client.base_url, limits=httpx.Limits(max_connections=None)) as many:
            answers = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(100)))
        for answer in answers:
            position = answer.headers["read-after"]
            assert client.get(answer.headers["location"], headers={"read-after": position}).content == answer.content
        assert reads_of_the_primary(client) == 0
    # A hundred writes, the questions after them, and no read.
    assert rig.counts.statements < 100


def test_without_a_replica_nothing_stands_between(database: str) -> None:
    app = create_app(settings_for(database))
    assert isinstance(app, Telemetry)
    assert isinstance(app.app, Router)
    assert all(isinstance(route, Route) and isinstance(route.app, Resource) for route in app.app.routes)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        answer = client.post(USERS, json={"email": "ada@example.com"})
        assert "read-after" not in answer.headers
        assert client.get(USERS, headers={"read-after": "nonsense"}).status_code == 200


def test_a_replica_that_is_the_primary(database: str, batching: bool) -> None:
    """As before the first replica is made: the same URL twice."""
    settings = settings_for(database, read_database_url=database, replica_wait_seconds=10, batching=batching)
    with serving(settings, pool_max_size=1) as client:
        path, position = create(client)
        assert names(client, path, position) == ["old"] * 5
        assert reads_of_the_primary(client) == 0
