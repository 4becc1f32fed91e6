"""Under other servers, which offer no extension of ours, the application gives the same answers, byte for byte."""

import re
import sys
from typing import Any

import httpx
import pytest

from api.app import create_app
from benchmarks.systems import SYSTEMS, System, serving
from tests.support.database import MakeDatabase
from tests.support.roles import SERVER, as_role
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users"
ONE = f"{USERS}/1"
AGAIN = {"json": {"email": "bob@example.com"}, "headers": {"idempotency-key": "1"}}
NDJSON = {"content-type": "application/x-ndjson"}
LINES = [b'{"email":"carl@example.com"}\n{"ema', b'il":"no address"}\n', b'{"email":"ADA@example.com"}\n']
REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", USERS, {"json": {"email": "ada@example.com", "name": "Ada"}}, 201),
    ("POST", USERS, {"json": {"email": "ADA@example.com"}}, 409),
    ("POST", USERS, {"json": {"email": "ada", "name": 1}}, 422),
    ("POST", USERS, AGAIN, 201),
    ("POST", USERS, AGAIN, 201),
    ("POST", USERS, {"content": b"[" * 70_000, "headers": {"content-type": "application/json"}}, 413),
    ("GET", ONE, {}, 200),
    ("HEAD", ONE, {}, 200),
    ("GET", ONE, {"headers": {"if-none-match": '"1"'}}, 304),
    ("GET", ONE, {"headers": {"origin": "https://app.example.com"}}, 200),
    ("GET", f"{USERS}?limit=1", {}, 200),
    ("GET", f"{USERS}?limit=x", {}, 422),
    ("HEAD", USERS, {}, 200),
    ("POST", f"{USERS}/import", {"content": LINES, "headers": NDJSON}, 200),
    ("GET", f"{USERS}/export", {}, 200),
    ("GET", f"{USERS}/x", {}, 404),
    ("GET", f"{USERS}/99", {}, 404),
    ("GET", "/nothing", {}, 404),
    ("GET", "/health", {}, 200),
    ("PUT", ONE, {}, 405),
    ("PATCH", ONE, {"json": {"name": "Ada L."}, "headers": {"if-match": '"2"'}}, 412),
    ("PATCH", ONE, {"json": {"name": None}}, 200),
    ("DELETE", ONE, {}, 204),
    ("DELETE", ONE, {}, 404),
    ("GET", "/metrics", {}, 200),
]
ORIGINS = "https://app.example.com"
FACTORY = "api.server.workers:app_from_environment"


def _python(options: str) -> tuple[str, ...]:
    return (sys.executable, *options.split())


OTHERS = [
    System("uvicorn", "uvicorn", _python(f"-m uvicorn --factory {FACTORY} --port {{port}} --log-level warning")),
    System(
        "hypercorn", "Hypercorn", _python(f"-m hypercorn {FACTORY}() --bind 127.0.0.1:{{port}} --log-level warning")
    ),
    SYSTEMS["users_api_granian"],
]
_OF_THE_SERVER = {"date", "server", "connection"}


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_the_answers_are_the_same(make_database: MakeDatabase, other: System) -> None:
    with serve(create_app(settings_for(make_database(), cors_origins=ORIGINS))) as url:
        ours = answers(url)
    assert [status for status, _, _ in ours] == [status for *_, status in REQUESTS]
    system = other.with_environment(other.name, other.title, AUTH="off", CORS_ORIGINS=ORIGINS, LOG_LEVEL="error")
    with serving(system, 1, as_role(make_database(), SERVER), "/health") as server:
        theirs = answers(server.url)
    for request, our, their in zip(REQUESTS, ours, theirs, strict=True):
        assert our == their, request


def answers(url: str) -> list[tuple[int, list[tuple[str, str]], str]]:
    """Return status, headers and body of each answer; times are hidden."""
    found = []
    with httpx.Client(base_url=url, headers={"x-request-id": "1"}) as client:
        for method, path, options, _ in REQUESTS:
            answer = client.request(method, path, **options)
            headers = [(name, value) for name, value in answer.headers.items() if name not in _OF_THE_SERVER]
            text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+", "TIME", re.sub(r'"seconds":[\d.]+', "", answer.text))
            if path == "/metrics":
                text = "\n".join(sorted(line.rpartition(" ")[0] for line in text.splitlines()))
                headers = [(name, value) for name, value in headers if name != "content-length"]
            found.append((answer.status_code, headers, text))
    return found
