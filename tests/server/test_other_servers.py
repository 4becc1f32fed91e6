"""Under uvicorn's own protocol, which offers no extension, the application gives the same answers."""

import re
from typing import Any

import httpx

from api.app import create_app
from api.server.internals import HttpToolsProtocol
from api.server.protocol import HTTPProtocol
from tests.support.database import MakeDatabase
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users"
ONE = f"{USERS}/1"
AGAIN = {"json": {"email": "bob@example.com"}, "headers": {"idempotency-key": "1"}}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", USERS, {"json": {"email": "ada@example.com", "name": "Ada"}}),
    ("POST", USERS, {"json": {"email": "ADA@example.com"}}),
    ("POST", USERS, AGAIN),
    ("POST", USERS, AGAIN),
    ("POST", USERS, {"content": b"[" * 70_000, "headers": {"content-type": "application/json"}}),
    ("GET", ONE, {}),
    ("HEAD", ONE, {}),
    ("GET", ONE, {"headers": {"if-none-match": '"1"'}}),
    ("GET", ONE, {"headers": {"origin": "https://app.example.com"}}),
    ("GET", f"{USERS}?limit=1", {}),
    ("GET", f"{USERS}/export", {}),
    ("GET", f"{USERS}/x", {}),
    ("GET", "/nothing", {}),
    ("GET", "/health", {}),
    ("PUT", ONE, {}),
    ("PATCH", ONE, {"json": {"name": "Ada L."}, "headers": {"if-match": '"2"'}}),
    ("PATCH", ONE, {"json": {"name": None}}),
    ("DELETE", ONE, {}),
    ("DELETE", ONE, {}),
]


def test_the_answers_are_the_same(make_database: MakeDatabase) -> None:
    ours, theirs = (answers(http, make_database()) for http in (HTTPProtocol, HttpToolsProtocol))
    assert [status for status, _, _ in ours] == [201, 409, 201, 201, 413, 200, 200, 304, *[200] * 3, 404, 404, 200, 405,
                                                 412, 200, 204, 404]  # fmt: skip
    assert ours == theirs


def answers(http: Any, database: str) -> list[tuple[int, list[tuple[str, str]], str]]:
    """Return status, headers and body of each answer; times are hidden."""
    settings = settings_for(database, cors_origins="https://app.example.com")
    found = []
    with serve(create_app(settings), http) as url, httpx.Client(base_url=url, headers={"x-request-id": "1"}) as client:
        for method, path, options in REQUESTS:
            answer = client.request(method, path, **options)
            headers = [(name, value) for name, value in answer.headers.items() if name != "date"]
            found.append((answer.status_code, headers, re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+", "TIME", answer.text)))
    return found
