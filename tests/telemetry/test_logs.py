"""The log: request ids, where a slow request spent its time, and no personal data."""

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.auth.keys import make_api_key
from api.context import RequestContext, serving
from tests.support.commands import USERS_API, on, on_a_terminal, served
from tests.support.database import locked, wait_until_waiting
from tests.support.logs import TRACE, TRACEPARENT, Log
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users"
NEW_ID = "[0-9a-f]{16}"


@pytest.fixture
def logging_client(database: str, batching: bool) -> Iterator[httpx.Client]:
    """A client of an application that logs every request, and every one as slow."""
    app = create_app(settings_for(database, batching=batching, slow_request_seconds=0, access_log=True))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        yield client


# Ids


@pytest.mark.parametrize(
    "sent",
    ["a", "2b9ea715591e7aa5", "Root=1-67891233-abcdef012345678912345678", "a/b:c+d_e.f=", "x" * 64],
)
def test_a_request_has_the_id_that_its_client_gave_it(client: httpx.Client, sent: str) -> None:
    for path in ("/health", f"{USERS}/999999", "/nowhere"):
        answer = client.get(path, headers={"x-request-id": sent})
        assert answer.headers["x-request-id"] == sent
        assert answer.status_code == 200 or answer.json()["request_id"] == sent


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "x" * 65,
        "a b",
        "a\tb",
        "ada@example.com",
        "{}",
        "a%0a",
        '"',
        "é",
        make_api_key("x", read_only=True)[0],
        f"id-{make_api_key('x', read_only=True)[0]}"[:64],
    ],
)
def test_what_is_no_id_is_replaced(client: httpx.Client, sent: str) -> None:
    answer = client.get(f"{USERS}/999999", headers=[(b"x-request-id", sent.encode())])
    assert re.fullmatch(NEW_ID, answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_new_ids_differ(client: httpx.Client) -> None:
    ids = [client.get("/health").headers["x-request-id"] for _ in range(600)]
    assert len(set(ids)) == 600
    assert all(re.fullmatch(NEW_ID, each) for each in ids)


def test_every_answer_has_one(database: str) -> None:
    key, entry = make_api_key("ada", read_only=True)
    app = create_app(settings_for(database, api_keys=entry, cors_origins="https://app.example.com"))
    preflight = {"origin": "https://app.example.com", "access-control-request-method": "GET"}
    own = {"access-control-request-headers": "x-request-id, traceparent", "x-request-id": "mine"}
    with serve(app) as url:
        for answer in (
            httpx.get(f"{url}{USERS}", headers={"x-request-id": "mine"}),
            httpx.get(f"{url}{USERS}", headers={"x-request-id": "mine", "authorization": f"Bearer {key}"}),
            httpx.options(f"{url}{USERS}", headers={**preflight, **own}),
            httpx.get(f"{url}/openapi.json", headers={"x-request-id": "mine"}),
        ):
            assert answer.headers.get_list("x-request-id") == ["mine"]
        assert answer.status_code == 200
        exposed = httpx.get(f"{url}/health", headers={"origin": "https://app.example.com"})
    assert "X-Request-Id" in exposed.headers["access-control-expose-headers"]


def test_what_is_no_request_has_one_too(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert re.findall(rb"x-request-id: (\w+)", head) == [json.loads(body)["request_id"].encode()]


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (TRACEPARENT, TRACE),
        (f"cc{TRACEPARENT[2:]}-what-the-future-brings", TRACE),
        (TRACEPARENT.upper(), None),
        (f"ff{TRACEPARENT[2:]}", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (TRACEPARENT[:-1], None),
        (f"{TRACEPARENT}-more", None),
        ("ada@example.com", None),
    ],
)
def test_the_trace_of_a_request_is_in_the_log(
    logging_client: httpx.Client, log: Log, sent: str, trace: str | None
) -> None:
    answer = logging_client.get("/health", headers={"traceparent": sent, "x-request-id": "mine"})
    assert answer.status_code == 200
    (line,) = log.about("slow request", 1)
    assert (line["request_id"], line.get("trace_id")) == ("mine", trace)


# What is logged


def test_a_slow_request_says_where_its_time_went(
    database: str, batching: bool, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.database.slots.SLOT_SECONDS", 60.0)
    settings = settings_for(database, batching=batching, batch_in_flight=1, pool_max_size=1, slow_request_seconds=0)
    with serve(create_app(settings)) as url:
        path = f"{url}{httpx.post(f'{url}{USERS}', json={'email': 'ada@example.com'}).headers['location']}"
        with ThreadPoolExecutor() as threads, locked(database):
            first = threads.submit(httpx.get, path, timeout=60)
            wait_until_waiting(database, 1)
            others = [threads.submit(httpx.get, path, headers={"x-request-id": f"n{n}"}, timeout=60) for n in range(3)]
            while httpx.get(f"{url}/metrics").text.count("users_api_requests_under_way 4.0") != 1:
                pass
        assert {answer.result().status_code for answer in (first, *others)} == {200}
    lines = {line["request_id"]: line for line in log.about("slow request")}
    blocked, *waited = (lines[answer.result().headers["x-request-id"]] for answer in (first, *others))
    for line in (blocked, *waited):
        parts = line["batch_seconds"] + line["queue_seconds"] + line["database_seconds"]
        assert 0 < parts <= line["total_seconds"] + 1e-5
        assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", f"{USERS}/1", 200, "warning")
    assert blocked["batch_seconds"] == 0
    assert max(blocked, key=lambda name: blocked[name] if name.endswith("_seconds") else 0) == "total_seconds"
    assert blocked["database_seconds"] > blocked["queue_seconds"]
    for line in waited:
        assert (line["batch_seconds"] > 0, line["shared_by"]) == ((True, 3) if batching else (False, 1))
        assert batching or line["queue_seconds"] > 0


def test_an_import_and_an_export_say_how_long_the_database_took(database: str, log: Log) -> None:
    with serve(create_app(settings_for(database, slow_request_seconds=0))) as url:
        body = "".join(f'{{"email": "ada{n}@example.com"}}\n' for n in range(2500))
        media_type = {"content-type": "application/x-ndjson"}
        assert httpx.post(f"{url}{USERS}/import", content=body, headers=media_type).status_code == 200
        assert httpx.get(f"{url}{USERS}/export").status_code == 200
    lines = log.about("slow request", 2)
    assert {line["path"] for line in lines} == {f"{USERS}/import", f"{USERS}/export"}
    for line in lines:
        assert 0 < line["queue_seconds"] + line["database_seconds"] <= line["total_seconds"]
        assert line["database_seconds"] > 0


def test_a_request_that_was_refused_a_connection_says_how_long_it_waited(log: Log) -> None:
    settings = settings_for("postgresql://x@127.0.0.1:1/x", acquire_timeout_seconds=0.2, slow_request_seconds=0)
    with serve(create_app(settings)) as url:
        assert httpx.get(f"{url}{USERS}/1").status_code == 503
    (line,) = log.about("slow request")
    assert line["queue_seconds"] > 0.19
    assert line["database_seconds"] == 0


def test_quick_requests_are_not_logged_unless_that_is_asked_for(database: str, batching: bool, log: Log) -> None:
    # A second is the default, which the first connection to the database may take.
    app = create_app(settings_for(database, batching=batching, slow_request_seconds=60))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        client.get(f"{USERS}/1")
        client.get("/health")
    assert not log.about("slow request")
    assert not log.about("request")


def test_the_access_log(database: str, log: Log) -> None:
    key, entry = make_api_key("ada", read_only=True)
    with serve(create_app(settings_for(database, api_keys=entry, access_log=True, slow_request_seconds=60))) as url:
        credentials = {"authorization": f"Bearer {key}"}
        httpx.get(f"{url}{USERS}/7", headers=credentials)
        httpx.get(f"{url}{USERS}?email=ada@example.com", headers=credentials)
        # What a client has made up is not repeated.
        httpx.get(f"{url}{USERS}/ada@example.com", headers=credentials)
        httpx.get(f"{url}/ada@example.com", headers=credentials)
        httpx.get(f"{url}{USERS}/{key}")
    assert [(line.get("path"), line["status"], line.get("caller")) for line in log.about("request")] == [
        (f"{USERS}/7", 404, "key:ada"),
        (USERS, 200, "key:ada"),
        (f"{USERS}/{{id}}", 404, "key:ada"),
        (None, 404, "key:ada"),
        (None, 401, None),
    ]
    # What stores them makes a column of integers of the first 0.
    assert {type(line[name]) for line in log.about("request") for name in line if name.endswith("_seconds")} == {float}


def test_a_line_from_the_middle_of_a_request_names_it(logging_client: httpx.Client, log: Log) -> None:
    logging_client.post(f"{USERS}/import?on_conflict=update", content=b"{}", headers={"x-request-id": "mine"})
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda n: logging_client.get(f"{USERS}/{n}"), range(1, 20)))
    assert len({line["request_id"] for line in log.about("slow request", 20)}) == 20
    assert all("request_id" in line for line in log.lines if line["logger"] == "api.requests")
    assert not [line for line in log.lines if line["logger"].startswith("uvicorn") and "request_id" in line]


async def test_what_several_requests_share_names_none_of_them(log: Log) -> None:
    async def nobody(message: Any) -> None: ...

    serving.set([RequestContext(b"a", nobody), RequestContext(b"b", nobody)])
    logging.getLogger("api").warning("shared")
    serving.set([RequestContext(b"a", nobody)])
    logging.getLogger("api").warning("alone")
    assert [line.get("request_id") for line in log.lines] == [None, "a"]


# Server-Timing


def test_server_timing_only_where_it_is_set(client: httpx.Client, database: str) -> None:
    assert "server-timing" not in client.get(f"{USERS}/1").headers
    with serve(create_app(settings_for(database, server_timing=True))) as url:
        told = httpx.get(f"{url}{USERS}/1").headers["server-timing"]
        parts = dict(part.split(";dur=") for part in told.split(", "))
        assert list(parts) == ["batch", "queue", "db", "total"]
        assert 0 < float(parts["db"]) < float(parts["total"])


# The form


def test_every_line_of_a_server_is_json(directory: Path, database: str) -> None:
    log = directory / "log"
    into_the_log = ["sh", "-c", f'exec "$0" "$@" 2> {log}', str(USERS_API)]
    variables = {**on(database), "DRAIN_SECONDS": "0", "ACCESS_LOG": "true", "LOG_LEVEL": "debug"}
    with served("--workers", "2", cwd=directory, program=into_the_log, **variables) as (url, _):  # type: ignore[arg-type]
        httpx.get(f"{url}{USERS}/1", headers={"x-request-id": "mine"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"]) for line in lines)
    assert {"uvicorn.error", "api.requests", "asyncio"} <= {line["logger"] for line in lines}
    assert not [line for line in lines if "color_message" in line]
    (line,) = [line for line in lines if line.get("request_id") == "mine"]
    assert (line["event"], line["level"], line["path"]) == ("request", "info", f"{USERS}/1")


LOG_SOMETHING = """
import logging.config
from api.telemetry.logs import LOG_CONFIG
logging.config.dictConfig(LOG_CONFIG)
password = "sesame"
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("api").exception("it %s", "failed", extra={"seconds": 0.25, "also": 1})
"""


def test_lines_for_people_on_a_terminal() -> None:
    coloured = on_a_terminal(sys.executable, "-c", LOG_SOMETHING)
    assert coloured.returncode == 0
    assert "\x1b[" in coloured.stdout
    ended = on_a_terminal(sys.executable, "-c", LOG_SOMETHING, NO_COLOR="1")
    assert ended.returncode == 0
    plain = ended.stdout
    assert "\x1b[" not in plain
    assert re.search(r"\d{4}-\S+Z \[error +\] it failed +\[api\] seconds=0.25 also=1", plain), plain
    assert "ZeroDivisionError" in plain
    assert "{" not in plain


def test_json_for_everything_else() -> None:
    said = subprocess.run([sys.executable, "-c", LOG_SOMETHING], capture_output=True, text=True, check=True).stderr
    line = json.loads(said)
    assert (line["event"], line["level"], line["logger"], line["seconds"]) == ("it failed", "error", "api", 0.25)
    # From 3.13 on the line's text follows.
    assert re.match(r"ZeroDivisionError: division by zero\nTraceback .*:\n  File .*, line 7, in", line["exception"])


def test_ids_drawn_in_several_threads() -> None:
    drawn: set[str] = set()

    async def ask(times: int) -> None:
        transport = httpx.ASGITransport(app=create_app(settings_for("postgresql://x@127.0.0.1:1/x")))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for _ in range(times):
                drawn.add((await client.get("/health")).headers["x-request-id"])

    threads = [threading.Thread(target=lambda: asyncio.run(ask(300))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1200
