"""Arbitrary requests: the response is never a 500, and the next client is served."""

import json
import socket
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.app import create_app
from tests.support.database import execute
from tests.support.serving import serve, settings_for

pytestmark = pytest.mark.long

USERS = "/api/v1/users"
JSON = {"content-type": "application/json"}
EXAMPLES = settings(
    max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture(scope="module")
def shared(postgres: str, template: str) -> Iterator[httpx.Client]:
    """One application for all examples of this module: what one leaves behind, the next has to bear."""
    execute(postgres, f"create database properties template {template}")
    url = postgres.replace("/postgres?", "/properties?")
    execute(url, "insert into users (email, name) select i || '@example.com', 'x' from generate_series(1, 50) i")
    with serve(create_app(settings_for(url))) as base, httpx.Client(base_url=base) as client:
        yield client
    execute(postgres, "drop database properties with (force)")


text = st.text(st.characters(codec=None), max_size=40)
numbers = st.integers() | st.floats() | st.integers(-(2**70), 2**70)
anything = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
local = st.text("abcABC0189.+-_äß \"'\\\0@", min_size=1, max_size=12)
domains = st.sampled_from(
    ["example.com", "EXAMPLE.com", "bücher.example", "localhost", "b", "xn--a.com", "-x.com", "."]
)
emails = st.builds("{}@{}".format, local, domains) | text
users = st.fixed_dictionaries({}, optional={"email": emails | anything, "name": text | anything, "x": anything})
bodies = (
    st.one_of(users, anything).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
    | users.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
)
ids = st.integers(-5, 80).map(str) | st.integers().map(str) | text
tags = st.text('"*,W/ 019', max_size=30).map(str.strip)  # the blanks around a value are not part of it
headers = st.fixed_dictionaries(
    {},
    optional={
        "if-match": st.sampled_from(["*", '"1"', 'W/"1"', '"2", "3"', '"']) | tags,
        "if-none-match": st.sampled_from(["*", '"1"', 'W/"1"']) | tags,
    },
)
parameters = st.dictionaries(
    st.sampled_from(["limit", "skip", "after", "email", "x"]),
    st.integers(-2, 1002).map(str) | numbers.map(str) | text | emails,
    max_size=4,
)


def quoted(value: str) -> str:
    return quote_from_bytes(value.encode("utf-8", "surrogatepass"), safe="")


def query(values: dict[str, str]) -> str:
    return "&".join(f"{quoted(name)}={quoted(value)}" for name, value in values.items())


def assert_answered(response: httpx.Response, *statuses: int) -> None:
    assert response.status_code in statuses, (response.request.url, response.request.content, response.text)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code
    elif response.content:
        # Hypothesis tries words of the code: an id may be "export", and a path /docs or /metrics.
        kind = response.headers["content-type"].partition(";")[0]
        if kind == "application/x-ndjson":
            for line in response.content.splitlines():
                json.loads(line)
        elif response.url.path.startswith("/api/") or kind not in ("text/html", "text/plain"):
            response.json()


@EXAMPLES
@given(body=bodies)
def test_post(shared: httpx.Client, body: bytes) -> None:
    response = shared.post(USERS, content=body, headers=JSON)
    assert_answered(response, 201, 409, 422)
    if response.status_code == 201:
        assert shared.get(response.headers["location"]).content == response.content


@EXAMPLES
@given(user_id=ids, body=bodies, conditions=headers)
def test_patch(shared: httpx.Client, user_id: str, body: bytes, conditions: dict[str, str]) -> None:
    response = shared.patch(f"{USERS}/{quoted(user_id)}", content=body, headers={**JSON, **conditions})
    assert_answered(response, 200, 404, 405, 409, 412, 415, 422)


@EXAMPLES
@example("export", {})
@given(user_id=ids, conditions=headers)
def test_get(shared: httpx.Client, user_id: str, conditions: dict[str, str]) -> None:
    assert_answered(shared.get(f"{USERS}/{quoted(user_id)}", headers=conditions), 200, 304, 404, 412)


@EXAMPLES
@given(user_id=ids, conditions=headers)
def test_delete(shared: httpx.Client, user_id: str, conditions: dict[str, str]) -> None:
    assert_answered(shared.delete(f"{USERS}/{quoted(user_id)}", headers=conditions), 204, 404, 405, 412)


@EXAMPLES
@given(values=parameters)
def test_list(shared: httpx.Client, values: dict[str, str]) -> None:
    assert_answered(shared.get(f"{USERS}?{query(values)}"), 200, 422)


@EXAMPLES
@example("GET", b"docs", b"")
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
    path=st.binary(max_size=60) | st.lists(st.sampled_from([b"api", b"v1", b"users", b"..", b"", b"1"])).map(b"/".join),
    body=bodies,
)
def test_any_path(shared: httpx.Client, method: str, path: bytes, body: bytes) -> None:
    response = shared.request(method, f"{str(shared.base_url).rstrip('/')}/{quote_from_bytes(path)}", content=body)
    assert_answered(response, 200, 404, 405, 415, 422)


@settings(EXAMPLES, max_examples=300)
@given(request=st.binary(max_size=300))
def test_bytes_that_are_no_http(shared: httpx.Client, request: bytes) -> None:
    address = (shared.base_url.host, shared.base_url.port or 80)
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(request + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer or b" 5" not in answer[:12]
    assert shared.get("/health").status_code == 200
