"""The same requests to this service and to its FastAPI + SQLAlchemy peer: every difference is listed here."""

import difflib
import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from api.app import create_app
from benchmarks.peers import fastapi_sqlalchemy
from tests.support.database import MakeDatabase
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users/"
UNKNOWN_ID = 999_999_999
RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)")


@dataclass(frozen=True)
class Call:
    """One request. In the path, `<3>` stands for the id of the fourth user that was created."""

    method: str
    path: str
    body: Any = ...  # a value to send as JSON; bytes go out as they are; nothing goes out for ...
    content_type: str = "application/json"

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and self.path.partition("?")[0].rstrip("/") == USERS.rstrip("/")

    @property
    def query(self) -> httpx.QueryParams:
        return httpx.URL(self.path).params

    @property
    def email(self) -> str | None:
        """The address that the request asks for, if it has one."""
        email = self.body.get("email") if isinstance(self.body, dict) else None
        return email if isinstance(email, str) else None


@dataclass(frozen=True)
class Answer:
    """What of an answer has to be the same on both sides. A 422 is the set of the places that it complains about."""

    status: int
    media_type: str
    body: Any

    def __str__(self) -> str:
        shown = sorted(self.body, key=repr) if isinstance(self.body, frozenset) else self.body
        return f"{self.status} {self.media_type}\n{json.dumps(shown, indent=2, ensure_ascii=False)}"


@dataclass
class Side:
    """One application, and what its clients have seen so far."""

    client: httpx.Client
    ids: list[int] = field(default_factory=list)  # of every user created, in order
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)  # id → the user as last answered; the living ones

    def send(self, call: Call) -> httpx.Response:
        path = re.sub(r"<(\d+)>", lambda found: str(self.ids[int(found[1])]), call.path)
        if call.body is ...:
            return self.client.request(call.method, path)
        content = call.body if isinstance(call.body, bytes) else json.dumps(call.body).encode()
        return self.client.request(call.method, path, content=content, headers={"content-type": call.content_type})

    def answer(self, call: Call) -> Answer:
        response = self.send(call)
        media_type = response.headers.get("content-type", "").partition(";")[0] if response.content else ""
        body: Any = response.json() if media_type.endswith("json") else response.text
        if response.status_code == 201:
            self.ids.append(body["id"])
        if response.status_code == 204:
            del self.seen[int(str(response.url).rpartition("/")[2])]
        if isinstance(body, list):
            body = [self.timeless(user) for user in body]
        elif response.is_success and isinstance(body, dict) and "id" in body:
            body = self.timeless(body)
        return Answer(response.status_code, media_type, body)

    def timeless(self, user: dict[str, Any]) -> dict[str, Any]:
        """Replace the id by its place in the order of creation, and each time by what can be compared of it."""
        for key in ("created_at", "updated_at"):
            assert RFC3339_UTC.fullmatch(user[key]), f"{key} is not RFC 3339 in UTC: {user[key]}"
        created, updated = (datetime.fromisoformat(user[key]) for key in ("created_at", "updated_at"))
        assert abs((datetime.now(UTC) - updated).total_seconds()) < 600, f"updated_at is not now: {updated}"
        assert created <= updated, f"created_at is later than updated_at: {user}"
        before = self.seen.get(user["id"], user)
        assert datetime.fromisoformat(before["created_at"]) == created, f"created_at has changed: {before} {user}"
        self.seen[user["id"]] = user
        return {
            **user,
            "id": f"<{self.ids.index(user['id'])}>",
            "created_at": "a time",
            "updated_at": "as created" if created == updated else "later",
            "(since last seen)": "unchanged" if before["updated_at"] == user["updated_at"] else "changed",
        }

    def has_taken(self, email: str) -> bool:
        return any(user["email"].lower() == email.lower() for user in self.seen.values())


def detail(body: Any) -> Any:
    """Return the detail of an error, or the whole of a body that has none."""
    return body["detail"] if isinstance(body, dict) and "detail" in body else body


def expected_of_ours(call: Call, peer: Side, answer: Answer) -> Answer:
    """Turn the peer's answer into ours: the deliberate differences of the HTTP contract, and nothing else."""
    status, body = answer.status, answer.body

    # A taken email is 409 on POST and on PATCH alike: the peer says 400, or 500 where only the index noticed, which is
    # also where the address differs from the taken one in nothing but case.
    crashed_on_taken = status == 500 and call.email is not None and peer.has_taken(call.email)
    if crashed_on_taken or (status, body) == (400, {"detail": "Email already registered"}):
        status, body = 409, {"detail": "Email already registered"}

    # `limit` is bounded: the peer takes any.
    limit = call.query.get_list("limit")[-1:] if call.is_list else []
    if any(re.fullmatch(r"-?\d+", text) and not 1 <= int(text) <= 1000 for text in limit):
        return Answer(422, "application/problem+json", frozenset({("query", "limit")}))

    if status == 422:
        places = frozenset(tuple(error["loc"]) for error in body["detail"])
        if ("path", "user_id") in places:
            # A non-numeric id names no user: 404.
            status, body = 404, {"detail": "User not found"}
        else:
            # The list of faults stands in `errors`, not in `detail`; its one offset is that of broken JSON.
            places = frozenset(place[:1] if isinstance(place[-1], int) else place for place in places)
            return Answer(422, "application/problem+json", places)

    # Errors are problem+json that keep the peer's `detail`.
    return Answer(status, "application/problem+json", detail(body)) if status >= 400 else answer


def essence_of_ours(answer: Answer) -> Answer:
    """Reduce our problems to what the peer has as well."""
    if answer.status == 422 and "errors" in answer.body:
        return replace(answer, body=frozenset(tuple(error["loc"]) for error in answer.body["errors"]))
    return replace(answer, body=detail(answer.body)) if answer.status >= 400 else answer


class Pair:
    """Both applications; every call goes to both, and their answers must agree."""

    def __init__(self, ours: Side, peer: Side) -> None:
        self.ours, self.peer, self.count = ours, peer, 0

    def check(self, call: Call) -> int:
        """Send one request to both; return the status that they agree on."""
        peer = expected_of_ours(call, self.peer, self.peer.answer(call))
        ours = essence_of_ours(self.ours.answer(call))
        self.count += 1
        if ours != peer:
            lines = difflib.unified_diff(
                str(peer).splitlines(), str(ours).splitlines(), "peer", "ours", lineterm="", n=99
            )
            pytest.fail(f"request {self.count}: {call}\n" + "\n".join(lines), pytrace=False)
        return ours.status


@contextmanager
def running(app: ASGIApp, *, follow_redirects: bool) -> Iterator[Side]:
    # No connection is kept, since uvicorn closes the one on which the peer has crashed.
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        serve(app) as base_url,
        httpx.Client(base_url=base_url, follow_redirects=follow_redirects, limits=limits) as client,
    ):
        yield Side(client)


@pytest.fixture
def pair(make_database: MakeDatabase, caplog: pytest.LogCaptureFixture) -> Iterator[Pair]:
    caplog.set_level("CRITICAL", "uvicorn.error")  # the peer's crashes are expected
    with (
        # `/api/v1/users` does not redirect: only the peer's client follows.
        running(create_app(settings_for(make_database())), follow_redirects=False) as ours,
        running(fastapi_sqlalchemy.create_app(make_database()), follow_redirects=True) as peer,
    ):
        yield Pair(ours, peer)


ADA = {"email": "ada@example.com", "name": "Ada"}
BAD_EMAILS: list[Any] = ["", "ada", "ada@", "@example.com", "a b@example.com", "ada@@example.com", "ada@example"]
BAD_EMAILS += ["a" * 250 + "@example.com", "a@" + "b" * 250 + ".com", "ada@-example.com", "a@b..com"]
BAD_EMAILS += [5, 1.5, True, [], {}]
BAD_NAMES: list[Any] = ["x" * 256, "é" * 256, 5, 1.5, False, ["Ada"], {"first": "Ada"}]
BAD_BODIES = [b"", b"{", b"nonsense", b'{"email": }', b"[]", b"null", b"5", b'"text"', b"[{}]"]
BAD_BODIES += [b'{"email": "a@example.com",}', b"{'email': 'a@example.com'}", b'{"email": "a@example.com"} x', b"\x00"]
GOOD_EMAILS = ["Grace@EXAMPLE.org", "o'hara+tag@mail.example.com", "josé@example.com", "ünï@bücher.example"]
GOOD_EMAILS += ["x@xn--bcher-kva.ch", "a" * 65 + "@example.com", '"quoted"@example.com', "x@EXAMPLE.com."]
GOOD_EMAILS += [" padded@example.com ", "Named One <named@example.com>", "e\u0301@example.com", "a.b.c@sub.example.co"]
GOOD_NAMES: list[Any] = [None, "", " ", "x" * 255, "é" * 255, "😀" * 255]
GOOD_NAMES += ['quote " back \\ slash', "tab\t line\n \u2028 \x1f \x7f", "<b>&"]
PAGES = ["?", "?limit=1", "?limit=2", "?skip=1", "?skip=2&limit=2", "?limit=2&skip=2", "?skip=1000"]
PAGES += ["?limit=1000", "?limit=01", "?limit=%201", "?limit=0", "?limit=-1", "?limit=1001", "?limit=99999"]
PAGES += ["?limit=abc", "?skip=abc", "?limit=", "?skip=", "?skip=1.5", "?limit=abc&skip=abc", "?limit=1&limit=2"]
PAGES += ["?limit=abc&limit=2", "?unknown=1", "?unknown", "?limit=2&unknown=%00", "?LIMIT=1", "?offset=1"]
PAGES += ["?limit=%31"]


def by_hand() -> Iterator[Call]:  # noqa: C901 - a list of calls, some of them by loops
    """Yield the edge cases, past mistakes among them."""
    one = USERS + "<0>"
    yield Call("GET", "/health")
    yield Call("GET", USERS)
    yield Call("GET", USERS + "1")
    yield Call("POST", USERS, ADA)
    yield Call("POST", USERS, ADA)
    yield Call("POST", USERS, ADA | {"email": "ADA@Example.COM"})
    yield Call("POST", USERS.rstrip("/"), {"email": "bob@example.com"})
    yield Call("GET", USERS.rstrip("/"))
    yield Call("GET", USERS.rstrip("/") + "?limit=1")
    # Bodies.
    for email in GOOD_EMAILS:
        yield Call("POST", USERS, {"email": email})
    for number, name in enumerate(GOOD_NAMES):
        yield Call("POST", USERS, {"email": f"named{number}@example.com", "name": name})
        yield Call("PATCH", one, {"name": name})
    yield Call(
        "POST", USERS, {"email": "extra@example.com", "id": 7, "created_at": "2000-01-01", "version": 9, "is_admin": 1}
    )
    yield Call("PATCH", one, {"id": 7, "updated_at": None, "unknown": {}})
    yield Call("POST", USERS, b'{"email": "first@example.com", "email": "last@example.com"}')
    yield Call("POST", USERS, b' \n{"email": "charset@example.com"}\n', "application/json; charset=utf-8")
    for email in [*BAD_EMAILS, None]:
        yield Call("POST", USERS, {"email": email})
        yield Call("PATCH", one, {"email": email})
    for name in BAD_NAMES:
        yield Call("POST", USERS, {"email": "fresh@example.com", "name": name})
        yield Call("PATCH", one, {"name": name})
    for body in BAD_BODIES:
        yield Call("POST", USERS, body)
        yield Call("PATCH", one, body)
    yield Call("POST", USERS, {})
    yield Call("POST", USERS, {"name": "no address"})
    yield Call("POST", USERS, {"Email": "case@example.com"})
    yield Call("POST", USERS, {"email": "bad", "name": 5})
    yield Call("PATCH", one, {"email": "bad", "name": 5})
    # Partial updates: absent, null, both, nothing, the same again, the user's own address, another user's.
    yield Call("PATCH", one, {"name": "Lovelace"})
    yield Call("PATCH", one, {"name": "Lovelace"})
    yield Call("PATCH", one, {})
    yield Call("PATCH", one, {"name": None})
    yield Call("PATCH", one, {"name": None})
    yield Call("PATCH", one, {"email": "ada@example.com"})
    yield Call("PATCH", one, {"email": "Ada@Example.com"})
    yield Call("PATCH", one, {"email": "lovelace@example.com", "name": "Both"})
    yield Call("PATCH", one, {"email": "bob@example.com"})
    yield Call("PATCH", one, {"email": "BOB@example.com", "name": "must not stick"})
    yield Call("GET", one)
    yield Call("POST", USERS, ADA)  # the address is free again
    # Pages.
    for page in PAGES:
        yield Call("GET", USERS + page)
    # Ids that no user has, and methods and paths that nothing answers.
    for unknown in [
        str(UNKNOWN_ID),
        "0",
        "-1",
        str(2**63 - 1),
        "abc",
        "1.5",
        "1e3",
        "%20",
        "0x1",
        "null",
        "%F0%9F%98%80",
    ]:
        for method in ("GET", "DELETE"):
            yield Call(method, USERS + unknown)
        yield Call("PATCH", USERS + unknown, {"name": "nobody"})
    yield Call("PATCH", USERS + str(UNKNOWN_ID), {})
    yield Call("PATCH", USERS + str(UNKNOWN_ID), {"name": 5})
    yield Call("PATCH", USERS + str(UNKNOWN_ID), {"email": "bob@example.com"})
    yield Call("PATCH", USERS + "abc", {"name": 5})
    yield Call("GET", one + "?unknown=1")
    for method, path in [
        ("PUT", USERS),
        ("DELETE", USERS),
        ("PATCH", USERS),
        ("PUT", one),
        ("POST", one),
        ("POST", "/health"),
    ]:
        yield Call(method, path, {})
    for path in ["/api", "/api/v1", "/api/v2/users", one + "/posts", "/healthz"]:
        yield Call("GET", path)
    # Gone is gone, and its address is free.
    yield Call("DELETE", USERS + "<1>")
    yield Call("DELETE", USERS + "<1>")
    yield Call("GET", USERS + "<1>")
    yield Call("PATCH", USERS + "<1>", {"name": "ghost"})
    yield Call("POST", USERS, {"email": "bob@example.com"})
    yield Call("GET", USERS)


def at_random(rng: random.Random, created: int) -> Call:
    """Draw one request from few enough users and addresses that they collide."""
    address = rng.choice(["ann", "ben", "cat", "dan", "eve"]) + rng.choice(["", "1", "2", "3"]) + "@example.com"
    email = rng.choice([address, address, address, address.upper(), address.title(), rng.choice(BAD_EMAILS)])
    name = rng.choice([*GOOD_NAMES, *GOOD_NAMES, *BAD_NAMES])
    change = rng.choice([{"email": email}, {"email": email, "name": name}, {"name": name}, {"name": name, "x": 1}, {}])
    user = f"{USERS}<{rng.randrange(created)}>"
    create = Call("POST", USERS, {"email": email} | change)
    page = Call("GET", f"{USERS}?skip={rng.randrange(created + 2)}&limit={rng.randrange(12)}")
    patch = Call("PATCH", user, change)
    return rng.choice([create, create, patch, patch, Call("GET", user), Call("DELETE", user), page])


def test_both_answer_the_same(pair: Pair) -> None:
    statuses = {pair.check(call) for call in by_hand()}
    rng = random.Random(20260131)
    statuses |= {pair.check(at_random(rng, len(pair.ours.ids))) for _ in range(250)}
    pair.check(Call("GET", USERS + "?limit=1000"))
    print(f"{pair.count} pairs of requests, {len(pair.ours.ids)} users created, {len(pair.ours.seen)} left")
    assert pair.count >= 200
    assert statuses == {200, 201, 204, 404, 405, 409, 422}


_TOO_DEEP = 500 if sys.version_info >= (3, 14) else 400
"""The peer's answer: since Python 3.14, json parses what FastAPI then cannot describe."""

# Where the contract promises more than the peer ever kept: the peer's status, then ours.
STRICTER = [
    (Call("GET", USERS + "?skip=-1"), 500, 422),
    (Call("GET", USERS + f"?skip={2**63}"), 500, 422),
    (Call("GET", USERS + str(2**63)), 500, 404),
    (Call("DELETE", USERS + "9" * 400), 500, 404),
    (Call("POST", USERS, {"email": "nul@example.com", "name": "\0"}), 500, 422),
    (Call("POST", USERS, {"email": "surrogate@example.com", "name": "\ud800"}), 500, 422),
    (Call("POST", USERS, b'{"email": "nan@example.com", "name": NaN}'), 500, 422),
    (Call("POST", USERS, b"[" * 20_000 + b"]" * 20_000), _TOO_DEEP, 422),
    (Call("POST", USERS, b'{"email": "\xff@example.com"}'), 400, 422),
    (Call("POST", USERS, {"email": "large@example.com", "name": "x" * 70_000}), 422, 413),
    (Call("POST", USERS, {"email": "text@example.com"}, "text/plain"), 422, 415),
    (Call("POST", USERS), 422, 415),
    (Call("HEAD", USERS), 405, 200),
    (Call("HEAD", "/health"), 405, 200),
]


def test_ours_keeps_promises_that_the_peer_does_not(pair: Pair) -> None:
    statuses = [(call, pair.peer.send(call).status_code, pair.ours.send(call).status_code) for call, _, _ in STRICTER]
    assert statuses == STRICTER
    assert pair.ours.client.get(USERS).json() == []
