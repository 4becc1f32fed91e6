"""Security headers, CORS, and proof that the search for leaked secrets finds one."""

import logging
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from api.app import create_app, describe
from api.auth.keys import make_api_key
from tests.support import leaks, rig
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users"
KEY, ENTRY = make_api_key("x", read_only=False)
APP = "https://app.example.com"


@pytest.fixture
def origins() -> str | None:
    return None


@pytest.fixture
def client(database: str, origins: str | None) -> Iterator[httpx.Client]:
    settings = settings_for(database, api_keys=ENTRY, cors_origins=origins)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    client.headers["authorization"] = f"Bearer {KEY}"
    created = client.post(USERS, json={"email": "ada@example.com"})
    user, etag = created.headers["location"], created.headers["etag"]
    answers = [
        (201, created),
        (200, client.get(USERS)),
        (200, client.get(user)),
        (200, client.head(user)),
        (304, client.get(user, headers={"if-none-match": etag})),
        (200, client.patch(user, json={})),
        (404, client.get(f"{USERS}/0")),
        (404, client.get("/nothing")),
        (405, client.put(USERS)),
        (409, client.post(USERS, json={"email": "ada@example.com"})),
        (412, client.delete(user, headers={"if-match": '"9"'})),
        (415, client.post(USERS, content=b"x")),
        (422, client.post(USERS, json={})),
        (204, client.delete(user)),
        (200, client.get("/health")),
        (200, client.get("/openapi.json")),
        (401, client.get(USERS, headers={"authorization": "Bearer x"})),
        (401, httpx.get(client.base_url.join(USERS))),
    ]
    for status, answer in answers:
        assert answer.status_code == status
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("cache-control") == ["private, no-cache"]
        assert "server" not in answer.headers


def ask_first(
    client: httpx.Client, origin: str, method: str = "PATCH", headers: str = "authorization"
) -> httpx.Response:
    asked = {"access-control-request-method": method, "access-control-request-headers": headers}
    return client.options(USERS, headers={"origin": origin, **asked})


def test_other_origins_are_let_in_by_name_alone(client: httpx.Client) -> None:
    assert ask_first(client, APP).status_code == 401
    answer = client.get(USERS, headers={"origin": APP, "authorization": f"Bearer {KEY}"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins", [f"{APP}, http://localhost:3000", "HTTPS://App.example.com:443,http://LOCALHOST:3000"]
)
def test_named_origins(client: httpx.Client, database: str) -> None:
    methods = {method.upper() for path in describe(settings_for(database))["paths"].values() for method in path}
    for origin in (APP, "http://localhost:3000"):
        answer = ask_first(client, origin, headers="authorization, content-type, if-match")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        # Those of the routes, no more: a page may send what some resource serves.
        assert set(answer.headers["access-control-allow-methods"].split(", ")) == {"HEAD", *methods}
        assert "access-control-allow-credentials" not in answer.headers
    for origin in ("https://evil.example", f"{APP}.evil.example", "http://app.example.com", "null"):
        assert ask_first(client, origin).status_code == 400
        answer = client.get(USERS, headers={"origin": origin, "authorization": f"Bearer {KEY}"})
        assert "access-control-allow-origin" not in answer.headers
    answer = client.get(USERS, headers={"origin": APP, "authorization": f"Bearer {KEY}"})
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["vary"] == "Origin"
    assert {"ETag", "Location", "Link"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    # A browser's program can read why it was refused.
    refused = client.get(USERS, headers={"origin": APP})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)


@pytest.mark.parametrize("origins", ["*"])
def test_every_origin(client: httpx.Client) -> None:
    answer = client.get(USERS, headers={"origin": "https://any.example", "authorization": f"Bearer {KEY}"})
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "text",
    [
        "password sesame",
        f"password {rig.PASSWORD}",
        f"password {quote(rig.PASSWORD, safe='')}",
        "postgresql://ada:x@localhost/x",
        f"sent {KEY}",
        "Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl",
        "no such user ada.lovelace+x@example.com",
    ],
)
def test_a_leak_would_be_found(text: str) -> None:
    logging.getLogger("api.anything").debug("something happened: %s", text)
    assert len(leaks.found) == 1
    assert text in leaks.found[0]
    leaks.found.clear()


def test_a_leak_in_a_problem_would_be_found(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.errors import Problem
    from api.http import request as http

    monkeypatch.setattr(http, "not_json", lambda: Problem(415, "not what ada@example.com may send"))
    client.post(USERS, content=b"x", headers={"authorization": f"Bearer {KEY}"})
    assert len(leaks.found) == 1
    leaks.found.clear()
