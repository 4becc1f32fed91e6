"""Idempotency-Key: however often a creation is sent, there is one user and one answer."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import httpx
import psycopg
import pytest
from starlette.types import Receive, Scope, Send

import api
from api.app import create_app
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.database.statements import Statement, declared_statements
from api.errors import DatabaseUnavailableError
from api.neon.url import parse_url
from api.resources import idempotency
from api.users.queries import select_users
from api.users.statements import INSERT_USERS_ONCE
from tests.support.database import execute, locked, wait_until_true, wait_until_waiting
from tests.support.rig import Cut, Injection, NeonDatabase, Point, Rig
from tests.support.serving import serve, settings_for
from tests.support.simulated import SimulatedLoop
from tests.support.statements import arguments
from tests.support.users import assert_problem
from tests.support.waiting import wait_until

(DELETE_EXPIRED,) = (each for each in declared_statements() if each.name == "idempotency/delete_expired_keys.sql")
OPERATIONS = Path(api.__file__).parent.parent / "docs/operations.md"
USERS = "/api/v1/users"
ADA = {"email": "ada@example.com", "name": "Ada"}


def create(client: httpx.Client, key: str | bytes, **body: str | None) -> httpx.Response:
    return client.post(
        USERS, json=body or ADA, headers=[(b"idempotency-key", key if isinstance(key, bytes) else key.encode())]
    )


def essence(response: httpx.Response) -> tuple[int, bytes, list[str | None]]:
    names = ("content-type", "location", "etag")
    return response.status_code, response.content, [response.headers.get(name) for name in names]


def is_replayed(response: httpx.Response) -> bool:
    return "idempotency-replayed" in response.headers


def test_the_same_creation_gets_the_first_answer_again(client: httpx.Client) -> None:
    first = create(client, "one")
    assert (first.status_code, is_replayed(first)) == (201, False)
    plain = client.post(USERS, json={"email": "grace@example.com"})
    assert plain.headers.keys() == first.headers.keys()
    for _ in range(2):
        again = create(client, "one")
        assert essence(again) == essence(first)
        assert is_replayed(again)
    # The same request in other words.
    again = client.post(
        USERS,
        content='{"name": "\\u0041da", "unknown": 1, "email": "ada@EXAMPLE.com"}',
        headers={"idempotency-key": "one", "content-type": "application/json"},
    )
    assert essence(again) == essence(first)
    assert len(client.get(USERS).json()) == 2


def test_whatever_became_of_the_user(client: httpx.Client) -> None:
    first = create(client, "one")
    client.patch(first.headers["location"], json={"name": "Countess"})
    assert essence(create(client, "one")) == essence(first)
    client.delete(first.headers["location"])
    assert essence(create(client, "one")) == essence(first)
    assert client.get(USERS).json() == []


def test_a_key_stands_for_one_creation(client: httpx.Client) -> None:
    create(client, "one")
    for body in ({**ADA, "name": "Grace"}, {**ADA, "name": None}, {**ADA, "email": "grace@example.com"}):
        refused = create(client, "one", **body)
        assert_problem(refused, 422, "idempotency-key-reused")
        assert refused.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
        assert not is_replayed(refused)
    assert len(client.get(USERS).json()) == 1
    assert create(client, "two", email="grace@example.com").status_code == 201


def test_a_taken_address_is_an_answer_too(client: httpx.Client) -> None:
    url = client.post(USERS, json=ADA).headers["location"]
    first = create(client, "one")
    assert_problem(first, 409, "email-taken", "Email already registered")
    assert not is_replayed(first)
    client.delete(url)
    again = create(client, "one")
    assert essence(again) == essence(first)
    assert is_replayed(again)
    assert create(client, "two").status_code == 201


def test_a_request_that_was_not_understood_leaves_the_key_free(client: httpx.Client) -> None:
    assert create(client, "one", email="nobody").status_code == 422
    assert client.post(USERS, content="{}", headers={"idempotency-key": "one"}).status_code == 415
    assert create(client, "one").status_code == 201


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        (r'"a \"b\" \\"', r'a "b" \ '.strip()),
        ("plain: with, anything = else", None),
        ('"', None),
        ("k" * 255, None),
    ],
)
def test_a_key_is_a_quoted_string_or_printable_ascii(client: httpx.Client, written: str, meant: str | None) -> None:
    first = create(client, written)
    assert first.status_code == 201
    assert is_replayed(create(client, meant or written))


def test_two_keys_are_none(client: httpx.Client) -> None:
    headers = [("idempotency-key", "one"), ("idempotency-key", "two")]
    refused = client.post(USERS, json=ADA, headers=headers)
    assert_problem(refused, 400, "invalid-request", "Send one idempotency-key header")
    assert client.post(USERS, json=ADA, headers=headers[:1]).status_code == 201


@pytest.mark.parametrize("key", ["", "k" * 256, "k" * 4500, b"\xed\xa0\x80", "é".encode(), b"tab\there", b"\xff"])
def test_a_key_that_is_none(client: httpx.Client, key: str | bytes) -> None:
    refused = create(client, key)
    assert_problem(refused, 422, "invalid")
    assert refused.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert client.get(USERS).json() == []


def test_each_caller_has_keys_of_its_own(database: str) -> None:
    service = create_app(settings_for(database))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # What authentication sets before a request is routed.
        names = [value.decode() for name, value in scope.get("headers", ()) if name == b"x-caller"]
        await service({**scope, "caller": names[0]} if names else scope, receive, send)

    with serve(app) as url, httpx.Client(base_url=url) as client:
        answers = [
            client.post(
                USERS, json={"email": f"{caller}@example.com"}, headers={"idempotency-key": "1", "x-caller": caller}
            )
            for caller in ("ada", "grace", "ada")
        ]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert essence(answers[0]) == essence(answers[2])
    assert answers[0].json()["email"] != answers[1].json()["email"]


async def test_of_many_twins_one_creates(client: httpx.Client) -> None:
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        answers = await asyncio.gather(
            *(many.post(USERS, json=ADA, headers={"idempotency-key": "one"}) for _ in range(50)),
            *(
                many.post(USERS, json={"email": f"{n}@example.com"}, headers={"idempotency-key": f"{n}"})
                for n in range(50)
            ),
        )
    twins, others = answers[:50], answers[50:]
    assert len({essence(answer)[1] for answer in twins}) == 1
    assert Counter((answer.status_code, is_replayed(answer)) for answer in twins) == {(201, False): 1, (201, True): 49}
    assert {answer.status_code for answer in others} == {201}
    assert len(client.get(USERS).json()) == 51


async def test_of_many_different_creations_with_one_key_one_is_made(client: httpx.Client) -> None:
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        answers = await asyncio.gather(
            *(
                many.post(USERS, json={"email": f"{n}@example.com"}, headers={"idempotency-key": "one"})
                for n in range(20)
            )
        )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 422: 19}
    assert len(client.get(USERS).json()) == 1


@pytest.fixture
def elsewhere(database: str) -> Iterator[psycopg.Connection]:
    """Another worker's session, in a transaction."""
    with psycopg.connect(**parse_url(database).psycopg_arguments()) as connection:  # type: ignore[arg-type]
        yield connection


ELSEWHERE = """
    with created as (insert into users (email, name) values ('ada@example.com', 'Ada') returning id, body)
    insert into idempotency_keys (caller, key, fingerprint, user_id, body)
    select '', 'one', %s, id, body from created returning body
"""


@pytest.mark.parametrize("ending", ["commit", "rollback", "commit of another"])
def test_a_twin_in_another_session_is_waited_for(
    client: httpx.Client, database: str, elsewhere: psycopg.Connection, ending: str
) -> None:
    """The statement began before the twin's commit and sees none of it: its answer is the twin's all the same."""
    create(client, "fingerprint")
    fingerprint = execute(database, "select fingerprint from idempotency_keys")[0][0]
    execute(database, "delete from users; delete from idempotency_keys")
    found = elsewhere.execute(ELSEWHERE, ["other" if "another" in ending else fingerprint]).fetchone()
    assert found is not None
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(create, client, "one")
        wait_until_waiting(database, 1)
        (elsewhere.rollback if ending == "rollback" else elsewhere.commit)()
        response = answer.result()
    if ending == "commit":
        assert (response.status_code, response.text, is_replayed(response)) == (201, found[0], True)
    elif ending == "rollback":
        assert (response.status_code, is_replayed(response)) == (201, False)
    else:
        assert_problem(response, 422, "idempotency-key-reused")
    assert execute(database, "select count(*) from users") == [(1,)]


def test_a_twin_that_waits_at_the_key_alone_leaves_no_user(
    client: httpx.Client, database: str, elsewhere: psycopg.Connection
) -> None:
    """Its address is free: it has created a user by the time it finds the key used, and must take it back."""
    elsewhere.execute("insert into idempotency_keys values ('', 'one', 'other', null, '')")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(create, client, "one")
        wait_until_waiting(database, 1)
        elsewhere.commit()
        assert_problem(answer.result(), 422, "idempotency-key-reused")
    assert client.get(USERS).json() == []


def test_what_an_index_of_the_operator_refuses_is_told_as_without_a_key(client: httpx.Client, database: str) -> None:
    execute(database, "create unique index one_name on users (name)")
    assert create(client, "one").status_code == 201
    other = {"email": "other@example.com", "name": "Ada"}
    plain, keyed = client.post(USERS, json=other), create(client, "two", **other)
    assert plain.status_code == 409
    assert {**keyed.json(), "request_id": ""} == {**plain.json(), "request_id": ""}


@pytest.mark.parametrize("cut", [Cut.RESET, Cut.CLOSE])
def test_a_creation_whose_answer_was_lost_can_be_sent_again(rig: Rig, neon: NeonDatabase, cut: Cut) -> None:
    """The connection to PostgreSQL is cut after the commit, before its answer: the client cannot know what happened."""
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url) as client:
        rig.inject(Injection(Point.ANSWER, cut))
        assert_problem(create(client, "one"), 503, "outcome-unknown")
        (stored,) = execute(neon.superuser, "select body from users")
        again = create(client, "one")
        assert (again.status_code, again.text, is_replayed(again)) == (201, stored[0], True)
        assert (again.headers["location"], again.headers["etag"]) == (f"{USERS}/{again.json()['id']}", '"1"')
        assert execute(neon.superuser, "select count(*) from users") == [(1,)]


def test_a_client_that_left_before_the_answer_can_send_again(client: httpx.Client, database: str) -> None:
    body = b'{"email":"ada@example.com","name":"Ada"}'
    head = f"POST {USERS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: one\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until_true(database, "select count(*) = 1 from users")
    again = create(client, "one")
    assert (again.status_code, is_replayed(again)) == (201, True)
    assert client.get(USERS).json() == [again.json()]


def test_a_creation_that_never_arrived_leaves_the_key_free(rig: Rig, neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url) as client:
        rig.inject(Injection(Point.TORN_REQUEST, Cut.RESET))
        assert_problem(create(client, "one"), 503, "outcome-unknown")
        again = create(client, "one")
        assert (again.status_code, is_replayed(again)) == (201, False)


OLD = """
    insert into idempotency_keys (caller, key, fingerprint, body, created_at)
    select '', 'old' || n, '', '', now() - interval '24 hours' - n * interval '1 second' from generate_series(1, 10) n
"""
LEFT = "select key from idempotency_keys where key like 'old%' order by created_at"


def test_answers_are_kept_for_a_day_and_then_purged_in_small_steps(client: httpx.Client, database: str) -> None:
    first = create(client, "one")
    age = "update idempotency_keys set created_at = now() - interval '{}' where key = 'one'"
    execute(database, age.format("23 hours 59 minutes"))
    assert is_replayed(create(client, "one"))
    execute(database, age.format("24 hours 1 second"))
    # The same key is a new one now, whether its row is still there or not.
    assert_problem(create(client, "one"), 409, "email-taken")
    execute(database, OLD)
    client.delete(first.headers["location"])
    assert create(client, "two").status_code == 201
    assert execute(database, LEFT) == [(f"old{n}",) for n in range(8, 0, -1)]
    client.post(USERS, json={"email": "grace@example.com"})
    assert len(execute(database, LEFT)) == 8


@pytest.mark.parametrize(("younger", "is_kept"), [(0, False), (1, True)])
async def test_a_key_expires_at_one_moment(database: str, younger: int, is_kept: bool) -> None:
    """In that microsecond it is not replayed any more, and no longer in the way of the next use."""
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())

    async def add(key: str, age: str) -> None:
        await connection.execute(
            "insert into idempotency_keys (caller, key, fingerprint, body, created_at)"
            f" values ('', '{key}', 'f', '', now() - interval '{age}' + {younger} * interval '1 microsecond')"
        )

    async def keys() -> set[str]:
        return {key for (key,) in await connection.fetch("select key from idempotency_keys")}

    try:
        await connection.execute("begin")  # now() stands still
        # The statement deletes the two oldest ones, whatever their keys are, and the one of its own key.
        for key, age in {"old": "25 hours", "older": "26 hours", "1": "24 hours"}.items():
            await add(key, age)
        (row,) = await connection.fetch(INSERT_USERS_ONCE.sql, *arguments(INSERT_USERS_ONCE, 1))
        assert row["is_replayed"] == is_kept
        assert await keys() == {"1"}
        await add("2", "24 hours")
        await connection.fetch(INSERT_USERS_ONCE.sql, *arguments(INSERT_USERS_ONCE, 1))
        assert ("2" in await keys()) == is_kept
        await add("3", "24 hours")
        (counted,) = await connection.fetch(DELETE_EXPIRED.sql, 10)
        assert counted["deleted"] == (0 if is_kept else 1)
        assert ("3" in await keys()) == is_kept
    finally:
        await connection.close()


def test_of_the_expired_keys_the_oldest_are_erased_first(database: str) -> None:
    execute(database, f"{OLD}; update idempotency_keys set body = 'moved' where key = 'old10'")
    assert execute(database, DELETE_EXPIRED.sql.replace("$1", "2")) == [(2,)]
    assert execute(database, LEFT) == [(f"old{n}",) for n in range(8, 0, -1)]


def test_an_expired_answer_that_somebody_else_deletes_is_not_waited_for(
    client: httpx.Client, database: str, elsewhere: psycopg.Connection
) -> None:
    execute(database, OLD)
    elsewhere.execute("delete from idempotency_keys where key in ('old10', 'old9')")
    assert create(client, "one").status_code == 201
    elsewhere.rollback()
    assert execute(database, LEFT) == [(f"old{n}",) for n in (10, 9, 6, 5, 4, 3, 2, 1)]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Erase expired keys within milliseconds of a statement; once, as the pause is an hour."""
    monkeypatch.setattr(idempotency, "_ERASE_TICK_SECONDS", 0.01)
    monkeypatch.setattr(idempotency, "_ERASE_KEYS", 3)


ERASED = f"select not exists ({LEFT})"


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("request_", ["POST", "PATCH", "DELETE", "import", "GET"])
def test_expired_answers_are_erased_after_any_use_of_the_database(database: str, request_: str) -> None:
    """Also where no creation with a key follows; those that may be replayed stay."""
    execute(database, f"insert into users (email) values ('ada@example.com'); {OLD}")
    execute(database, "insert into idempotency_keys values ('', 'kept', '', null, '', now() - interval '23 hours')")
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        user = f"{USERS}/1"
        assert {
            "POST": lambda: client.post(USERS, json={"email": "grace@example.com"}),
            "PATCH": lambda: client.patch(user, json={"name": "Ada"}),
            "DELETE": lambda: client.delete(user),
            "import": lambda: client.post(
                f"{USERS}/import", content='{"email":"g@example.com"}', headers={"content-type": "application/x-ndjson"}
            ),
            "GET": lambda: client.get(user),
        }[request_]().is_success
        wait_until_true(database, ERASED)
    assert execute(database, "select key from idempotency_keys") == [("kept",)]


@pytest.mark.usefixtures("soon")
async def test_a_database_that_is_not_in_use_is_left_alone(database: str) -> None:
    execute(database, OLD)
    primary = PooledDatabase(database_options(settings_for(database)))
    await primary.open()
    erasing = asyncio.create_task(idempotency.keep_erasing(primary))
    await asyncio.sleep(0.1)
    assert primary.opened == 0
    # Two workers share the work, and neither waits for what another session holds.
    with locked(database, "select from idempotency_keys where key = 'old5' for update"):
        await select_users(primary, [1])
        await asyncio.to_thread(wait_until_true, database, f"select count(*) = 1 from ({LEFT})")
    # The next time is an hour later. The statement that erased is counted a moment after what it did.
    busy = [primary.metrics.seconds]
    while len(busy) < 100 and busy[-3:] != [busy[-1]] * 3:
        await asyncio.sleep(0.02)
        busy.append(primary.metrics.seconds)
    assert len(busy) < 100
    erasing.cancel()
    await primary.close()


@pytest.mark.usefixtures("soon")
def test_a_failure_to_erase_fails_no_request(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(idempotency, "_ERASE_PAUSE_SECONDS", 0.0)
    execute(database, f"{OLD}; alter table idempotency_keys rename to elsewhere")
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        assert client.post(USERS, json=ADA).status_code == 201
        wait_until(lambda: "expired idempotency keys were not erased" in caplog.text)
        assert "api.database" in {record.name for record in caplog.records if "not erased" in record.message}
        execute(database, "alter table elsewhere rename to idempotency_keys")
        assert client.get(USERS).status_code == 200
        wait_until_true(database, ERASED)


class FakeDatabase:
    """A database with so many expired keys, and the times of the statements that erase them."""

    def __init__(self, expired: int) -> None:
        self.expired = expired
        self.answers = True
        self.fails = False
        self.metrics = SimpleNamespace(seconds=0.0)
        self.times: list[float] = []

    def use(self) -> None:
        """Serve a request."""
        self.metrics.seconds += 1.0

    async def fetch(self, _: Statement, most: int) -> list[dict[str, int]]:
        self.use()
        self.times.append(asyncio.get_running_loop().time())
        if self.fails:
            raise DatabaseUnavailableError
        deleted = min(most, self.expired)
        self.expired -= deleted
        return [{"deleted": deleted}]


@contextmanager
def erasing(expired: int) -> Iterator[tuple[FakeDatabase, Callable[[float], None]]]:
    """Erase keys in simulated time; yield the database, and a function that lets time pass."""
    database = FakeDatabase(expired)
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        task = runner.get_loop().create_task(idempotency.keep_erasing(database))  # type: ignore[arg-type]
        runner.run(asyncio.sleep(0))  # until it waits
        yield database, lambda seconds: runner.run(asyncio.sleep(seconds))
        task.cancel()


MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(("expired", "statements"), [(2999, 3), (3000, 4)])
def test_keys_are_erased_a_minute_after_use_and_then_once_an_hour(expired: int, statements: int) -> None:
    with erasing(expired) as (database, wait):
        wait(HOUR)
        assert database.times == []
        database.use()
        wait(MINUTE)
        # A thousand at a time, until a statement finds fewer.
        assert (len(database.times), database.expired) == (statements, 0)
        for _ in range(120):
            database.use()
            wait(MINUTE)
        erased = [time - database.times[0] for time in database.times[statements - 1 :]]
        assert erased == [0.0, HOUR, 2 * HOUR]


def test_what_erases_is_no_use_of_the_database() -> None:
    """Else it would wake a compute every hour that nothing else uses."""
    with erasing(0) as (database, wait):
        database.use()
        wait(24 * HOUR)
        assert len(database.times) == 1


def test_after_a_failure_to_erase_the_next_attempt_is_an_hour_later() -> None:
    with erasing(1) as (database, wait):
        database.fails = True
        for _ in range(90):
            database.use()
            wait(MINUTE)
            database.fails = False
        first, *others = database.times
        assert [time - first for time in others] == [HOUR]


def test_nothing_is_erased_from_a_database_that_does_not_answer() -> None:
    with erasing(1) as (database, wait):
        database.answers = False
        database.use()
        wait(HOUR)
        assert database.times == []
        database.answers = True
        wait(MINUTE)
        assert len(database.times) == 1


STATEMENT = "delete from public.idempotency_keys where resource = 'users' and coalesce(row_id, user_id) = 42"


@pytest.mark.parametrize("row_id", ["row_id", "null"], ids=["this release", "the release before"])
def test_a_deleted_user_stays_in_the_answer_until_it_expires(client: httpx.Client, database: str, row_id: str) -> None:
    """As documented, with the statement that erases it at once."""
    first = create(client, "one")
    client.delete(first.headers["location"])
    assert execute(database, "select body from idempotency_keys") == [(first.text,)]
    execute(database, f"update idempotency_keys set row_id = {row_id}")
    execute(database, "insert into idempotency_keys values ('', 'other', '', null, '', now(), 'teams', 42)")
    assert STATEMENT in OPERATIONS.read_text()
    execute(database, STATEMENT.replace("42", str(first.json()["id"])))
    assert execute(database, "select key from idempotency_keys") == [("other",)]


def test_a_key_stands_for_one_creation_of_one_resource(client: httpx.Client, database: str) -> None:
    """Even if both were asked for with the same values."""
    created = create(client, "one")
    assert execute(database, "select resource, row_id from idempotency_keys") == [("users", created.json()["id"])]
    execute(database, "update idempotency_keys set resource = 'teams'")
    assert_problem(create(client, "one"), 422, "idempotency-key-reused")
