"""Import and export over HTTP: each line's result, whole chunks, one snapshot, and clients that misbehave."""

import asyncio
import csv
import gc
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import ValidationError

from api.app import create_app
from api.auth.keys import make_api_key
from api.neon.url import parse_url
from api.server.progress import PERIOD_SECONDS
from api.server.protocol import HTTPProtocol
from api.users.bulk import writing
from api.users.bulk.handlers import CHUNK_ROWS
from api.users.bulk.report import MAX_REFUSAL_BYTES, MAX_REFUSALS
from tests.support.catalogue import empty
from tests.support.database import execute
from tests.support.rig import Cut, Injection, NeonDatabase, Point, Rig
from tests.support.serving import serve, settings_for
from tests.support.users import assert_invalid, assert_problem, create
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

USERS = "/api/v1/users"
IMPORT, EXPORT = f"{USERS}/import", f"{USERS}/export"
NDJSON, CSV = "application/x-ndjson", "text/csv"

Body = bytes | str | list[Any]


@pytest.fixture(scope="module")
def database(postgres: str, template: str) -> Iterator[str]:
    """One database for all of these tests, and one server: neither depends on whether requests are batched."""
    execute(postgres, f"create database bulk template {template}")
    yield postgres.replace("/postgres?", "/bulk?")
    execute(postgres, "drop database bulk with (force)")


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[httpx.Client]:
    settings = settings_for(database, pool_max_size=2, statement_timeout_seconds=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: httpx.Client, database: str) -> httpx.Client:
    empty(database)
    return server


def send(client: httpx.Client, body: Body, media_type: str = NDJSON, **query: str) -> httpx.Response:
    if isinstance(body, list):
        body = "".join(json.dumps(line) + "\n" for line in body)
    return client.post(IMPORT, params=query, content=body, headers={"content-type": media_type})


def load(client: httpx.Client, body: Body, media_type: str = NDJSON, **query: str) -> tuple[list[Any], dict[str, Any]]:
    """The refusals as (line, status), and the summary."""
    response = send(client, body, media_type, **query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NDJSON
    return read_answer(response.text)


def read_answer(text: str) -> tuple[list[Any], dict[str, Any]]:
    *lines, last = map(json.loads, text.splitlines())
    refusals = [(line["line"], line["problem"]["status"]) for line in lines if "problem" in line]
    assert all(set(line) in ({"line", "problem"}, {"progress"}) for line in lines)
    summary: dict[str, Any] = last["summary"]
    assert summary.pop("seconds") >= 0
    assert summary["refused"] == len(refusals) + summary.get("unreported", 0)
    return refusals, summary


def done(lines: int, created: int = 0, updated: int = 0, skipped: int = 0, refused: int = 0) -> dict[str, Any]:
    counts = {"created": created, "updated": updated, "skipped": skipped, "refused": refused}
    return {"complete": True, "lines": lines, **counts}


def people(number: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"email": f"{n}@example.com", "name": f"Name {n}"} for n in range(start, start + number)]


def names(client: httpx.Client) -> dict[str, Any]:
    return {user["email"]: user["name"] for user in client.get(USERS, params={"limit": 1000}).json()}


# Import


def test_users_as_post_makes_them(client: httpx.Client) -> None:
    assert load(client, [{"email": "Ada@EXAMPLE.com", "name": "Ada"}, {"email": "b@example.com"}]) == ([], done(2, 2))
    assert load(client, "name,email\nGrace,g@example.com\n,h@example.com\n", CSV) == ([], done(3, 2))
    assert names(client) == {
        "Ada@example.com": "Ada",
        "b@example.com": None,
        "g@example.com": "Grace",
        "h@example.com": None,
    }
    user = client.get(USERS).json()[0]
    assert user["created_at"] == user["updated_at"]
    assert client.get(f"{USERS}/{user['id']}").headers["etag"] == '"1"'
    assert load(client, b"") == ([], done(0))


LINES = [
    '{"email":"a@example.com"}',
    '{"email":"a@example.com","name":null}',
    '{"name":"x"}',
    '{"email":null}',
    "{}",
    "[]",
    "null",
    '{"email":"nobody"}',
    '{"email":5}',
    '{"email":"a@localhost"}',
    '{"email":"a@b..com","name":5}',
    '{"email": ["a@b.co"]}',
    '{"email":"Ada <a@example.com>"}',
    '{"email":" a@example.com "}',
    '{"email":"a@xn--bcher-kva.example.com"}',
    '{"email":"a@b\\u00fccher.example.com"}',
    '{"email":"a@example.com","email":"b@example.com"}',
    '{"email":"a@example.com",}',
    '{"email":"a@example.com"} x',
    '{"email":"a@example.com","name":"\\u0000"}',
    '{"email":"a@example.com","name":"\\ud800"}',
    '{"email":"a@example.com","x":NaN}',
    '{"email":"a@example.com","x":1e999}',
    '{"email":"a@example.com","x":' + "9" * 5000 + "}",
    '{"email":"a@example.com","x":' + "[" * 300 + "]" * 300 + "}",
    '{"email":"a@example.com","name":"' + "x" * 256 + '"}',
    '{"email":"' + "a" * 65 + '@example.com"}',
    '{"email":"' + "a" * 250 + '@example.com"}',
    '\ufeff{"email":"a@example.com"}',
    "{'email':'a@example.com'}",
    '{"email":"a@example.com"}{"email":"b@example.com"}',
    '"a@example.com"',
    "true",
    "{",
]


def test_a_line_is_judged_exactly_as_a_request_is(client: httpx.Client, database: str) -> None:
    # Behind an empty line: the mark that a file may begin with is none there.
    lines = [json.loads(line) for line in send(client, "\n" + "\n".join(LINES), on_conflict="skip").text.splitlines()]
    judged = {line["line"] - 2: line["problem"] for line in lines if "problem" in line}
    imported = names(client)
    assert len(judged) > 15
    for number, line in enumerate(LINES):
        empty(database)
        single = client.post(USERS, content=line, headers={"content-type": "application/json"})
        if single.status_code == 201:
            assert number not in judged, line
            assert single.json()["email"] in imported
        else:
            assert {**judged[number], "request_id": ""} == {**single.json(), "request_id": ""}, line


def test_what_is_wrong_costs_its_line_and_the_rest_goes_on(client: httpx.Client) -> None:
    ada = b'{"email":"ada@example.com"}\n'
    file = (
        b"\xff\n" + ada + b"x" * 10_000_000 + b"\n" + ada.upper().lower() + b'{"email":"b@example.com","name":"a\0"}\n'
    )
    file += b'{"email":"nobody"}\n\n{"email":"c@example.com"}'
    assert load(client, file) == ([(1, 422), (3, 413), (4, 409), (5, 422), (6, 422)], done(8, 2, refused=5))
    rows = b'email,name\nd@example.com,"D\ne@example.com,E\n\xff,F\ng@example.com\nADA@example.com,\n'
    assert load(client, rows + b'h@example.com,"H, ""h"""\n', CSV) == (
        [(2, 422), (4, 422), (5, 422), (6, 409)],
        done(7, 2, refused=4),
    )
    assert names(client)["h@example.com"] == 'H, "h"'


def test_a_taken_address_within_the_file_and_before_it(client: httpx.Client) -> None:
    create(client, "Ada@example.com")
    file = [
        {"email": e} for e in ("a@example.com", "ADA@example.com", "A@example.com", "a@example.com", "b@example.com")
    ]
    assert load(client, file) == ([(2, 409), (3, 409), (4, 409)], done(5, 2, refused=3))
    assert load(client, file, on_conflict="skip") == ([], done(5, skipped=5))
    response = send(client, file)
    problem = json.loads(response.text.splitlines()[0])["problem"]
    assert (problem["type"], problem["detail"]) == ("urn:problem:users-api:email-taken", "Email already registered")
    # Far apart in the file, in different chunks.
    many = [*people(CHUNK_ROWS), *people(1), *people(CHUNK_ROWS, CHUNK_ROWS)]
    assert load(client, many) == ([(CHUNK_ROWS + 1, 409)], done(2 * CHUNK_ROWS + 1, 2 * CHUNK_ROWS, refused=1))


def test_update_brings_users_to_what_the_file_says(client: httpx.Client) -> None:
    for n in range(4):
        create(client, f"{n}@example.com", name=f"old {n}")
    before = client.get(USERS).json()
    file = [
        {"email": "0@example.com", "name": "new"},
        {"email": "1@example.com"},  # a name that is not there is left alone
        {"email": "2@example.com", "name": None},  # null clears it
        {"email": "3@EXAMPLE.com", "name": "old 3"},  # as it is already
        {"email": "4@example.com", "name": "made"},
    ]
    assert load(client, file, on_conflict="update") == ([], done(5, 1, 2, 2))
    after = client.get(USERS).json()
    assert [user["name"] for user in after] == ["new", "old 1", None, "old 3", "made"]
    assert [user["id"] for user in after[:4]] == [user["id"] for user in before]
    assert [user["created_at"] for user in after[:4]] == [user["created_at"] for user in before]
    changed = [new["updated_at"] > old["updated_at"] for new, old in zip(after, before, strict=False)]
    assert changed == [True, False, True, False]
    etags = [client.get(f"{USERS}/{user['id']}").headers["etag"] for user in after]
    assert etags == ['"2"', '"1"', '"2"', '"1"', '"1"']


def test_update_writes_an_address_as_the_file_does_and_lines_in_their_order(client: httpx.Client) -> None:
    create(client, "Ada@example.com")
    file = [
        {"email": "ada@example.com", "name": "1"},
        {"email": "ADA@example.com"},
        {"email": "aDA@example.com", "name": "2"},
    ]
    assert load(client, file, on_conflict="update") == ([], done(3, 0, 3))
    assert names(client) == {"aDA@example.com": "2"}
    # CSV: the column is there or not, and an empty cell clears the name.
    assert load(client, "email\nada@example.com\n", CSV, on_conflict="update") == ([], done(2, 0, 1))
    assert names(client) == {"ada@example.com": "2"}
    assert load(client, "email,name\nada@example.com,\n", CSV, on_conflict="update") == ([], done(2, 0, 1))
    assert names(client) == {"ada@example.com": None}


@pytest.mark.parametrize("on_conflict", ["error", "skip", "update"])
def test_a_file_of_one_address(client: httpx.Client, on_conflict: str) -> None:
    file = [{"email": "ada@example.com", "name": f"{n}"} for n in range(150)]
    _, summary = load(client, file, on_conflict=on_conflict)
    outcome = {"error": {"refused": 149}, "skip": {"skipped": 149}, "update": {"updated": 149}}[on_conflict]
    assert summary == done(150, 1, **outcome)
    assert names(client) == {"ada@example.com": "149" if on_conflict == "update" else "0"}


def test_a_row_that_somebody_holds_is_refused_and_the_rest_is_written(client: httpx.Client, database: str) -> None:
    create(client, "3@example.com")
    with psycopg.connect(**parse_url(database).psycopg_arguments()) as elsewhere:  # type: ignore[arg-type]
        elsewhere.execute("update users set name = 'held'")
        refusals, summary = load(client, people(8), on_conflict="update")
        elsewhere.rollback()
    assert (refusals, summary) == ([(4, 503)], done(8, 7, refused=1))


def test_what_the_database_alone_refuses_costs_its_line(client: httpx.Client, database: str) -> None:
    execute(database, "alter table users add constraint no_seven check (email !~ '^7@')")
    try:
        assert load(client, people(20)) == ([(8, 409)], done(20, 19, refused=1))
    finally:
        execute(database, "alter table users drop constraint no_seven")


# What Python's own lower() keeps apart, and PostgreSQL's does not.
PAIRS = [("\u0130x@example.com", "ix@example.com"), ("\u0391\u03a3@example.com", "\u03b1\u03c3@example.com")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize(
    ("on_conflict", "refusals", "outcome", "kept"),
    [
        ("error", [(3, 409)], done(3, 2, refused=1), "1"),
        ("skip", [], done(3, 2, skipped=1), "1"),
        ("update", [], done(3, 2, updated=1), "2"),
    ],
)
def test_two_addresses_that_postgresql_alone_takes_for_one(
    client: httpx.Client, first: str, second: str, on_conflict: str, refusals: list[Any], outcome: Any, kept: str
) -> None:
    file = [{"email": "ada@example.com"}, {"email": first, "name": "1"}, {"email": second, "name": "2"}]
    assert load(client, file, on_conflict=on_conflict) == (refusals, outcome)
    assert names(client) == {"ada@example.com": None, {"1": first, "2": second}[kept]: kept}


def test_those_of_which_no_python_knows_cost_nobody_else_anything(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a character is whose lower case came with a Unicode that PostgreSQL has, and Python not yet."""
    monkeypatch.setattr(writing, "email_key", attrgetter("email"))
    file = [*people(9), {"email": "ADA@example.com", "name": "1"}, {"email": "ada@example.com", "name": "2"}]
    assert load(client, file, on_conflict="update") == ([], done(11, 10, updated=1))
    assert names(client)["ada@example.com"] == "2"


REFUSES = """
    create function refuse() returns trigger language plpgsql as
    $$ begin raise 'no %', new.name using errcode = '{}'; end $$;
    create trigger refuse before insert or update on users for each row when (new.name = 'refused')
        execute function refuse()
"""


@pytest.mark.parametrize("on_conflict", ["error", "skip", "update"])
def test_what_a_trigger_refuses_costs_its_line(client: httpx.Client, database: str, on_conflict: str) -> None:
    execute(database, REFUSES.format("P0001"))
    try:
        file = [*people(8), {"email": "ada@example.com", "name": "refused"}, {"email": "alan@example.com"}]
        assert load(client, file, on_conflict=on_conflict) == ([(9, 409)], done(10, 9, refused=1))
    finally:
        execute(database, "drop function refuse cascade")
    assert "ada@example.com" not in names(client)


def test_a_failure_between_two_statements_does_not_say_that_nothing_was_written(
    client: httpx.Client, database: str
) -> None:
    first, second = {"email": "ada@example.com"}, {"email": "ada@example.com", "name": "refused"}
    execute(database, REFUSES.format("XX000"))
    try:
        assert_problem(send(client, [second]), 503, "unavailable")
        # Two lines of one address are two statements.
        assert_problem(send(client, [first, second], on_conflict="update"), 503, "outcome-unknown")
    finally:
        execute(database, "drop function refuse cascade")
    assert names(client) == {"ada@example.com": None}


def test_an_answer_comes_in_the_order_of_the_lines(client: httpx.Client) -> None:
    file = "".join("nobody\n" if n % 3 else '{"email":"ada@example.com"}\n' for n in range(3000))
    refusals, _ = load(client, file)
    assert [line for line, _ in refusals] == list(range(2, 3001))


def test_a_client_that_reads_nothing_before_it_has_sent_everything(client: httpx.Client) -> None:
    """httpx is one. The answer is larger than what the sockets between them hold for certain."""
    response = send(client, b"nobody\n" * 40_000)
    assert len(response.content) > 1_500_000
    refusals, summary = read_answer(response.text)
    assert summary == done(40_000, refused=40_000) | {"unreported": 40_000 - MAX_REFUSALS}
    assert refusals == [(n, 422) for n in range(1, MAX_REFUSALS + 1)]


def test_refusals_beyond_the_cap_are_counted_and_the_users_between_them_written(client: httpx.Client) -> None:
    """Also on a root file system that is read-only, without /tmp: no file is needed."""
    file = b"nobody\n" * MAX_REFUSALS + lines_of(people(2)) + b"nobody\n" + lines_of(people(1))
    refusals, summary = load(client, file)
    assert summary == done(MAX_REFUSALS + 4, 2, refused=MAX_REFUSALS + 2) | {"unreported": 2}
    assert len(refusals) == MAX_REFUSALS


def test_the_refusals_of_an_answer_have_a_bound_in_bytes(client: httpx.Client) -> None:
    """The message lists every character that an address may not have: some 30 KiB of them."""
    address = "".join(map(chr, range(0xE0100, 0xE0100 + 2000))) + "@example.com"
    response = send(client, [{"email": address}] * 300)
    refusals, summary = read_answer(response.text)
    assert 0 < MAX_REFUSAL_BYTES - len(response.content) < 32 * 1024
    assert summary == done(300, refused=300) | {"unreported": 300 - len(refusals)}


@contextmanager
def uploading(client: httpx.Client, *, size: int | None = None, key: str = "", **query: str) -> Iterator[socket.socket]:
    """An import whose body the test sends by itself, in chunks or with a declared size."""
    framing = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
    head = f"POST {httpx.URL(IMPORT, params=query)} HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\n{framing}\r\n"
    if key:
        head += f"authorization: Bearer {key}\r\n"
    with connect(client) as connection:
        connection.sendall(f"{head}\r\n".encode())
        yield connection


def connect(client: httpx.Client) -> socket.socket:
    connection = socket.socket()
    # Small buffers, so that a client that does not read blocks the server soon.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    connection.settimeout(60)
    connection.connect((client.base_url.host, client.base_url.port))
    return connection


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def count(database: str) -> Any:
    return execute(database, "select count(*) from users")[0][0]


def test_what_comes_slowly_is_written_and_told_meanwhile(client: httpx.Client, database: str) -> None:
    with uploading(client) as connection:
        connection.sendall(chunk(lines_of(people(3)) + b"nobody\n"))
        told = b""
        while b'"line":4' not in told:
            told += connection.recv(65536)
        assert b"200 OK" in told
        assert count(database) == 3
        connection.sendall(chunk(lines_of(people(2, 3))) + b"0\r\n\r\n")
        answer = b""
        while b"summary" not in answer:
            answer += connection.recv(65536)
        assert b'"complete":true,"lines":6,"created":5' in answer


def test_expect_100_continue(client: httpx.Client) -> None:
    body = lines_of(people(1))
    head = f"POST {IMPORT} HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\ncontent-length: {len(body)}\r\n"
    with connect(client) as connection:
        connection.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_client_that_vanishes_leaves_whole_chunks_and_no_connection(
    client: httpx.Client, database: str, ending: str
) -> None:
    rows = 2 * CHUNK_ROWS + CHUNK_ROWS // 2
    for _ in range(3):  # more than there are places: each is given back
        empty(database)
        with uploading(client, size=1_000_000_000) as connection:
            connection.sendall(lines_of(people(rows)))
            wait_until(lambda: count(database) >= CHUNK_ROWS)
            if ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_until(lambda: client.get(USERS).status_code == 200 and is_idle(database))
        # What was on its way is there as a whole, or not at all; what was less than a chunk is not.
        assert count(database) % CHUNK_ROWS == 0
        assert count(database) <= 2 * CHUNK_ROWS
    assert load(client, people(1), on_conflict="skip")[1]["complete"]


def test_a_client_that_vanishes_while_postgresql_writes_is_no_error_of_ours(
    client: httpx.Client, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    create(client, "0@example.com")
    with psycopg.connect(**parse_url(database).psycopg_arguments()) as elsewhere:  # type: ignore[arg-type]
        elsewhere.execute("update users set name = 'held'")
        with uploading(client, on_conflict="update") as connection:
            connection.sendall(chunk(lines_of(people(1))))
            wait_until(lambda: execute(database, "select count(*) from pg_locks where not granted") == [(1,)])
        wait_until(lambda: execute(database, "select count(*) from pg_locks where not granted") == [(0,)])
        elsewhere.rollback()
    assert load(client, people(1), on_conflict="skip")[1]["complete"]
    gc.collect()  # asyncio logs an exception that was never retrieved when its task is collected
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def is_idle(database: str) -> bool:
    running = "state <> 'idle' and backend_type = 'client backend' and pid <> pg_backend_pid()"
    return execute(
        database, f"select count(*) = 0 from pg_stat_activity where datname = current_database() and {running}"
    ) == [(True,)]


@pytest.fixture
def strict(database: str) -> Iterator[httpx.Client]:
    """A server whose idle timeout is a second: PostgreSQL needs part of it to start an export."""
    empty(database)
    settings = settings_for(database, bulk_idle_seconds=1, bulk_max_requests=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_a_client_that_falls_silent_is_given_up(strict: httpx.Client) -> None:
    with uploading(strict) as connection:
        connection.sendall(chunk(lines_of(people(1))))
        answer = connection.recv(65536)
        assert b" 408 " in answer.splitlines()[0] or b'"status":408' in answer + connection.recv(65536)
    with uploading(strict) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert load(strict, people(1, 1))[1] == done(1, 1)


def test_a_client_that_trickles_is_given_up(strict: httpx.Client) -> None:
    """A blank now and then is not silence, and holds no slot."""
    with uploading(strict) as connection:
        connection.settimeout(0.05)
        answer = b""
        while b"request_id" not in answer:
            with suppress(TimeoutError):
                answer += connection.recv(65536)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(chunk(b"\n"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"Less than 1024 bytes have come in 1 seconds" in answer
    assert load(strict, people(1, 1))[1] == done(1, 1)


def test_silence_is_told_before_the_connection_would_end_of_it(database: str) -> None:
    with pytest.raises(ValidationError, match="bulk_idle_seconds"):
        settings_for(database, bulk_idle_seconds=PERIOD_SECONDS)


def test_a_client_may_send_for_long_before_it_reads(database: str) -> None:
    """The connection is looked at when the test wants it to be."""
    connections: list[HTTPProtocol] = []

    class Watched(HTTPProtocol):
        period = 3600.0
        min_bytes = 4096

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # The sockets are full before the answer reaches its bound.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
            connections.append(self)

    piece = b"nobody\n" * CHUNK_ROWS
    with (
        serve(create_app(settings_for(database)), http=Watched) as url,
        httpx.Client(base_url=url) as client,
        uploading(client) as connection,
    ):

        def send_piece() -> HTTPProtocol:
            before = connections[0]._received if connections else 0
            connection.sendall(chunk(piece))
            wait_until(lambda: bool(connections) and connections[0]._received >= before + len(piece))
            return connections[0]

        while not send_piece().transport.get_write_buffer_size():
            pass  # until the sockets are full of the answer
        for _ in range(5):
            watched, looked = send_piece(), threading.Event()
            watched.loop.call_soon_threadsafe(watched._check_progress)
            watched.loop.call_soon_threadsafe(looked.set)
            looked.wait()
        connection.sendall(b"0\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            data = connection.recv(1 << 20)
            assert data, "the connection was ended"
            answer += data
    assert b'{"summary":{"complete":true,' in answer


@pytest.mark.parametrize("path", [IMPORT, EXPORT])
def test_only_so_many_at_once(database: str, path: str) -> None:
    empty(database)
    settings = settings_for(database, bulk_max_requests=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        with uploading(client) as connection:
            connection.sendall(chunk(b'{"email":"ada@example.com"}\n'))
            wait_until(lambda: count(database) == 1)
            refused = send(client, b"") if path == IMPORT else client.get(EXPORT)
            assert_problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "5"
            # The others go on.
            assert len(client.get(USERS).json()) == 1
            connection.sendall(b"0\r\n\r\n")
            connection.recv(65536)
        wait_until(lambda: client.get(EXPORT).status_code == 200)


@pytest.mark.parametrize("path", [IMPORT, EXPORT])
def test_one_caller_leaves_a_slot_to_others(database: str, path: str) -> None:
    execute(database, "truncate users restart identity cascade")
    (ada, ada_entry), (bob, bob_entry) = (make_api_key(name, read_only=False) for name in ("ada", "bob"))
    settings = settings_for(database, bulk_max_requests=3, api_keys=f"{ada_entry},{bob_entry}")

    def ask(client: httpx.Client, key: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", "content-type": NDJSON}
        return client.request("POST" if path == IMPORT else "GET", path, headers=headers)

    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client, ExitStack() as stack:
        for number in range(2):
            assert ask(client, ada).status_code == 200
            connection = stack.enter_context(uploading(client, key=ada))
            connection.sendall(chunk(lines_of(people(CHUNK_ROWS, number * CHUNK_ROWS))))
            wait_until(lambda: count(database) == (number + 1) * CHUNK_ROWS)  # noqa: B023
        refused = ask(client, ada)
        assert_problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "5"
        assert ask(client, bob).status_code == 200
        connection.sendall(b"0\r\n\r\n")
        connection.recv(65536)
        wait_until(lambda: ask(client, ada).status_code == 200)


@pytest.mark.parametrize("path", [IMPORT, EXPORT])
def test_a_slot_is_free_once_the_end_of_the_answer_has_come(strict: httpx.Client, path: str) -> None:
    """There is one slot, and the next request comes at once."""
    for number in range(50):
        response = send(strict, people(1, number)) if path == IMPORT else strict.get(EXPORT)
        assert response.status_code == 200


async def test_others_get_their_turn_during_an_import(client: httpx.Client) -> None:
    body = lines_of(people(20_000))
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as many:
        importing = asyncio.create_task(many.post(IMPORT, content=body, headers={"content-type": NDJSON}))
        answered = 0
        while not importing.done():
            assert (await many.get(f"{USERS}/1")).status_code in (200, 404)
            answered += 1
        assert json.loads((await importing).text.splitlines()[-1])["summary"]["created"] == 20_000
    # Twenty statements and two hundred turns: had it kept the loop or the pool, there would be a handful.
    assert answered > 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "application/json"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "text/csv; charset=latin-1"}, 415),
        ({"content-type": "text/csv; charset*0*=a%00b''utf-8"}, 415),
        ({"content-type": f"text/csv; charset*{'0' * 4400}=utf-8"}, 415),
        ({"content-type": NDJSON, "content-encoding": "gzip"}, 415),
        ({"content-type": "Application/X-NDJSON; charset=UTF-8"}, 200),
        ({"content-type": "application/jsonl", "content-encoding": "identity"}, 200),
        ({"content-type": "application/jsonl", "content-encoding": "Identity"}, 200),
    ],
)
def test_which_bodies_are_taken(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.post(IMPORT, content=b'{"email":"ada@example.com"}', headers=headers)
    assert response.status_code == status
    if status == 415:
        assert_problem(
            response, 415, None, "The body must be application/x-ndjson or text/csv, in UTF-8 and not compressed"
        )


def test_what_is_refused_as_a_whole(client: httpx.Client) -> None:
    assert_invalid(send(client, b"", on_conflict="ignore"), ["query", "on_conflict"])
    for body in (b"", b"ada@example.com\n", b"email;name\n", "email\n".encode("utf-16")):
        refused = send(client, body, CSV)
        assert_invalid(refused, ["body"])
        assert "the first line must name the columns" in refused.json()["detail"]
    for path, allowed in ((IMPORT, "POST"), (EXPORT, "GET, HEAD")):
        refused = client.patch(path, json={})
        assert_problem(refused, 405)
        assert refused.headers["allow"] == allowed
    for path in (f"{USERS}/imports", f"{USERS}/export1", f"{USERS}/xexport"):
        assert_problem(client.get(path), 404, None, "User not found")


# Export


@pytest.fixture
def odd_names(client: httpx.Client) -> httpx.Client:
    odd = [
        None,
        "",
        "Ada",
        'quote " and \\',
        "\\n \\\\ \\.",
        "\\.",
        "tab\tnewline\r\n\x01\x02\x7f",
        "Zoë 🦊 \u2028",
        "a,b",
        "x" * 255,
    ]
    for n, name in enumerate(odd):
        create(client, f"{n}@example.com", name=name)
    return client


def test_export_is_byte_for_byte_what_the_list_has(odd_names: httpx.Client) -> None:
    response = odd_names.get(EXPORT)
    assert (response.status_code, response.headers["content-type"]) == (200, NDJSON)
    assert response.headers["content-disposition"] == 'attachment; filename="users.ndjson"'
    assert response.content == b"".join(
        odd_names.get(f"{USERS}/{user['id']}").content + b"\n" for user in odd_names.get(USERS).json()
    )


def test_csv_holds_the_same_values(odd_names: httpx.Client) -> None:
    response = odd_names.get(EXPORT, params={"format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))
    expected = [
        {name: "" if value is None else str(value) for name, value in user.items()}
        for user in odd_names.get(USERS).json()
    ]
    assert rows == expected


@pytest.mark.parametrize(("format", "media_type"), [("ndjson", NDJSON), ("csv", CSV)])
def test_there_and_back(odd_names: httpx.Client, database: str, format: str, media_type: str) -> None:
    before = names(odd_names)
    exported = odd_names.get(EXPORT, params={"format": format}).content
    assert load(odd_names, exported, media_type, on_conflict="skip")[1]["skipped"] == len(before)
    empty(database)
    assert load(odd_names, exported, media_type)[1]["created"] == len(before)
    # CSV cannot tell an empty name from none.
    assert names(odd_names) == {email: name or None if format == "csv" else name for email, name in before.items()}


FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # at last the full-width ones


def guard(text: str) -> str:
    return f"'{text}" if text.startswith((*FORMULAS, "'")) else text


def test_a_spreadsheet_takes_no_cell_for_a_formula(client: httpx.Client) -> None:
    """And the file can be read back, whatever the values begin with."""
    firsts = [*FORMULAS, "'", "''=", '"=', "a=", " =", "1", ""]
    users: list[Any] = [{"email": f"{n}@example.com", "name": f"{first}SUM(A1)"} for n, first in enumerate(firsts)]
    users += [{"email": f"{first}ada@example.com", "name": None} for first in ("=", "+", "-", "'", "'=", "a")]
    assert load(client, users)[1]["created"] == len(users)
    response = client.get(EXPORT, params={"format": "csv-safe"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="users.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))
    assert not [cell for row in rows for cell in row.values() if cell.startswith(FORMULAS)]
    assert {row["email"]: row["name"] for row in rows} == {
        guard(user["email"]): guard(user["name"] or "") for user in users
    }
    # Without the parameter, values are as they were.
    plain = csv.DictReader(io.StringIO(client.get(EXPORT, headers={"accept": CSV}).text, newline=""))
    assert {row["email"]: row["name"] for row in plain} == {user["email"]: user["name"] or "" for user in users}
    for user in client.get(USERS).json():
        client.delete(f"{USERS}/{user['id']}")
    assert load(client, response.content, CSV, format="csv-safe")[1]["created"] == len(users)
    assert names(client) == {user["email"]: user["name"] for user in users}
    assert_invalid(send(client, b"", CSV, format="csv"), ["query", "format"])


def test_export_of_nobody(client: httpx.Client) -> None:
    assert client.get(EXPORT).content == b""
    assert client.get(EXPORT, params={"format": "csv"}).text == "id,email,name,created_at,updated_at\n"


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        (None, NDJSON),
        ("TEXT/CSV;charset=utf-8", CSV),
        ("text/csv;q=0", None),
    ],
)
def test_accept(client: httpx.Client, accept: str | None, found: str | None) -> None:
    request = client.build_request("GET", EXPORT)
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    response = client.send(request)
    if found is None:
        assert_problem(response, 406)
        assert client.get(EXPORT, params={"format": "csv"}, headers={"accept": accept or ""}).status_code == 200
    else:
        assert response.headers["content-type"].partition(";")[0] == found
        assert response.headers["vary"] == "Accept"


def test_head_of_an_export_reads_nothing(client: httpx.Client, database: str) -> None:
    execute(database, "alter table users rename to hidden")
    try:
        response = client.head(EXPORT, params={"format": "csv"})
        assert (response.status_code, response.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        # What fails before the first byte has a status of its own.
        assert_problem(client.get(EXPORT), 503, "unavailable")
    finally:
        execute(database, "alter table hidden rename to users")
    assert_invalid(client.get(EXPORT, params={"format": "xml"}), ["query", "format"])


MANY = 30_000
FILL = f"insert into users (email, name) select n || '@example.com', repeat('x', 200) from generate_series(1, {MANY}) n"
# PostgreSQL waits for its client, which waits for its own.
IS_HELD_BACK = """
    select count(*) from pg_stat_activity
    where datname = current_database() and query ~* '^copy' and state = 'active' and wait_event = 'ClientWrite'
"""
COPIES = "select count(*) from pg_stat_activity where datname = current_database() and query ~* '^copy'"


@contextmanager
def exporting(client: httpx.Client) -> Iterator[socket.socket]:
    """An export of which the test reads what it will, and nothing yet."""
    with connect(client) as connection:
        connection.sendall(f"GET {EXPORT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        yield connection


def test_a_slow_reader_holds_postgresql_back_and_sees_one_snapshot(client: httpx.Client, database: str) -> None:
    execute(database, FILL)
    with exporting(client) as connection:
        wait_until(lambda: execute(database, IS_HELD_BACK) == [(1,)])
        execute(database, "update users set name = 'later'; delete from users where id % 2 = 0")
        client.post(USERS, json={"email": "later@example.com"})
        received = bytearray()
        while data := connection.recv(1 << 20):
            received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    users = [json.loads(line) for line in dechunk(body).splitlines()]
    assert [user["email"] for user in users] == [f"{n}@example.com" for n in range(1, MANY + 1)]
    assert {user["name"] for user in users} == {"x" * 200}


def dechunk(body: bytes) -> bytes:
    pieces: list[bytes] = []
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return b"".join(pieces)
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]


def test_a_reader_that_vanishes_frees_its_connection(client: httpx.Client, database: str) -> None:
    execute(database, FILL)
    for _ in range(3):
        with exporting(client) as connection:
            wait_until(lambda: execute(database, IS_HELD_BACK) == [(1,)])
            connection.recv(1000)
        wait_until(lambda: execute(database, COPIES) == [(0,)])
    assert client.get(EXPORT).content.count(b"\n") == MANY


def test_a_reader_that_falls_silent_is_given_up(strict: httpx.Client, database: str) -> None:
    execute(database, FILL)
    with exporting(strict) as connection:
        received = bytearray(connection.recv(1000))  # it has begun
        wait_until(lambda: execute(database, COPIES) == [(0,)])
        while data := connection.recv(1 << 20):
            received += data
    # Or, on a machine under load, PostgreSQL was the one that was silent.
    assert received.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 504 "))
    # The body breaks off: no client takes it for the whole.
    assert not received.endswith(b"0\r\n\r\n")


# Neon's pooler, and a database that fails


def test_through_the_pooler(neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert load(client, people(2500)) == ([], done(2500, 2500))
        assert load(client, people(2500), on_conflict="update") == ([], done(2500, skipped=2500))
        for format in ("ndjson", "csv"):
            assert client.get(EXPORT, params={"format": format}).content.count(b"@example.com") == 2500


def test_an_import_tells_where_its_database_left_it(rig: Rig, neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url, timeout=60) as client:
        # In the first chunk: nothing is known to be there, and the answer has a status of its own.
        rig.inject(Injection(Point.ANSWER, Cut.RESET))
        assert_problem(send(client, people(5)), 503, "outcome-unknown")
        # In a later one: the lines before it are done.
        with uploading(client) as connection:
            connection.sendall(chunk(lines_of(people(CHUNK_ROWS, 100))))
            wait_until(lambda: count(neon.superuser) == 5 + CHUNK_ROWS)
            rig.inject(Injection(Point.ANSWER, Cut.RESET))
            connection.sendall(chunk(lines_of(people(CHUNK_ROWS, 5000))))
            answer = b""
            while b"summary" not in answer:
                answer += connection.recv(65536)
        summary = json.loads(answer[answer.index(b'{"summary"') :].splitlines()[0])["summary"]
        assert (summary["complete"], summary["lines"], summary["created"]) == (False, CHUNK_ROWS, CHUNK_ROWS)
        assert summary["problem"]["type"] == "urn:problem:users-api:outcome-unknown"
        # Sent again from there, with what may be there already skipped, it is whole.
        assert load(client, people(CHUNK_ROWS, 5000), on_conflict="skip")[1]["complete"]
        assert count(neon.superuser) == 5 + 2 * CHUNK_ROWS


def test_a_database_that_is_not_there() -> None:
    settings = settings_for("postgresql://postgres@127.0.0.1:1/none", acquire_timeout_seconds=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert_problem(send(client, people(1)), 503, "unavailable")
        assert_problem(client.get(EXPORT), 503, "unavailable")


def test_an_export_that_breaks_off_has_no_end(rig: Rig, neon: NeonDatabase) -> None:
    # Two proxies and the sockets between them hold more than those of the other tests.
    execute(neon.superuser, FILL.replace(str(MANY), str(3 * MANY)))
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url, timeout=60) as client:
        with exporting(client) as connection:
            wait_until(lambda: execute(neon.superuser, IS_HELD_BACK) == [(1,)])
            execute(neon.superuser, "select pg_terminate_backend(pid) from pg_stat_activity where query ~* '^copy'")
            received = bytearray()
            while data := connection.recv(1 << 20):
                received += data
        assert received.startswith(b"HTTP/1.1 200 ")
        assert not received.endswith(b"0\r\n\r\n")
        # What a client makes of it.
        with client.stream("GET", EXPORT) as response:
            pieces: Iterator[bytes] = response.iter_raw()
            next(pieces)
            rig.cut(Cut.RESET)
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
