"""The guard alone, on a clock of its own: credentials, and the tokens that it remembers. Over HTTP: test_guard.py."""

from typing import Any, cast

import pytest

from api.app import scopes_of
from api.auth import guard as auth
from api.auth.guard import Guard, caller
from api.auth.keys import make_api_key, parse_api_keys
from api.auth.tokens import Tokens

KEY, ENTRY = make_api_key("x", read_only=False)
READER, READER_ENTRY = make_api_key("reader", read_only=True)
USERS = "/api/v1/users"
SECONDS = 60.0
REMEMBERED = 10_000


class Stand:
    """A guard whose issuer verifies every token, and counts them."""

    def __init__(self) -> None:
        self.now = 500.0
        self.set_back = 0.0
        self.lifetime = 3600
        self.scope: Any = "users:read"
        self.verified = 0
        self.reached = 0
        self._guard = Guard(
            self._app,
            keys=parse_api_keys(f"{ENTRY},{READER_ENTRY}"),
            tokens=cast(Tokens, self),
            scopes=scopes_of(),
            open_paths=["/open"],
        )

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now - self.set_back

    async def read(self, token: str) -> dict[str, Any]:
        """As Tokens does."""
        self.verified += 1
        return {"sub": token, "scope": self.scope, "exp": self.time() + self.lifetime}

    async def ask(self, credentials: str | bytes) -> str:
        """Send credentials as they should be."""
        sent = credentials.encode() if isinstance(credentials, str) else credentials
        return await self.send([b"Bearer " + sent])

    async def send(self, fields: list[bytes], method: str = "GET", path: str = USERS, **more: str) -> str:
        """Return the name of the caller, or the status of the refusal."""
        headers = [(b"authorization", field) for field in fields]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, **more}
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        reached = self.reached
        await self._guard(scope, None, send)  # type: ignore[arg-type]
        assert (self.reached == reached) == bool(messages)
        return str(messages[0]["status"]) if messages else caller(scope)

    async def pass_on(self, scope: dict[str, str]) -> None:
        await self._guard(scope, None, None)  # type: ignore[arg-type]

    async def _app(self, *_: object) -> None:
        self.reached += 1


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setattr(auth, "monotonic", stand.monotonic)
    monkeypatch.setattr(auth, "time", stand.time)
    return stand


SENT = f"Bearer {KEY}".encode()


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ([SENT], "key:x"),
        ([b"bEARER " + KEY.encode()], "key:x"),
        ([], "401"),
        ([KEY.encode()], "401"),
        ([b"Bearer"], "401"),
        ([b"Bearer "], "401"),
        ([b"Basic " + KEY.encode()], "401"),
        ([SENT, SENT], "400"),
        ([SENT, b"Basic x"], "400"),
        ([b"x"] * 3, "400"),
    ],
)
async def test_one_field_with_a_key(stand: Stand, fields: list[bytes], answer: str) -> None:
    assert await stand.send(fields) == answer
    assert await stand.send(fields, path="/open") == ""
    assert await stand.send(fields, path="/prefix/open", root_path="/prefix") == ""
    assert await stand.send(fields, path="/prefix/open") == answer


@pytest.mark.parametrize(("method", "reads"), [("GET", True), ("HEAD", True), ("POST", False), ("DELETE", False)])
async def test_a_request_needs_the_scope_of_its_method(stand: Stand, method: str, reads: bool) -> None:
    assert await stand.send([SENT], method) == "key:x"
    assert await stand.send([f"Bearer {READER}".encode()], method) == ("key:reader" if reads else "403")
    stand.scope = "users:read"
    assert await stand.send([b"Bearer a.b.r"], method) == ("token:a.b.r" if reads else "403")
    stand.scope = "users:write openid"
    assert await stand.send([b"Bearer a.b.w"], method) == ("403" if reads else "token:a.b.w")
    for stand.scope in (None, 5, ["users:read", "users:write"], ""):
        assert await stand.send([f"Bearer a.b.{stand.scope}".encode()], method) == "403"


async def test_what_is_no_request_is_passed_on(stand: Stand) -> None:
    await stand.pass_on({"type": "lifespan"})
    assert stand.reached == 1


async def test_a_token_is_verified_again_after_a_minute(stand: Stand) -> None:
    for expected in (1, 2):
        assert await stand.ask("a.b.c") == "token:a.b.c"
        stand.now += SECONDS - 0.001
        assert await stand.ask("a.b.c") == "token:a.b.c"
        assert stand.verified == expected
        stand.now += 0.001


async def test_a_token_is_verified_again_once_it_has_expired(stand: Stand) -> None:
    stand.lifetime = 20
    await stand.ask("a.b.c")
    stand.now += 19.999
    await stand.ask("a.b.c")
    assert stand.verified == 1
    stand.now += 0.001
    await stand.ask("a.b.c")
    assert stand.verified == 2


async def test_a_clock_that_is_set_back_does_not_prolong_what_is_remembered(stand: Stand) -> None:
    await stand.ask("a.b.c")
    stand.set_back = 86_400.0
    stand.now += SECONDS
    await stand.ask("a.b.c")
    assert stand.verified == 2


async def test_the_tokens_that_are_remembered_are_bounded(stand: Stand) -> None:
    """Beyond the bound all are forgotten. Keys are not."""
    for number in range(REMEMBERED):
        await stand.ask(f"a.b.{number}")
    for number in (0, 1, REMEMBERED - 1):
        await stand.ask(f"a.b.{number}")
    assert stand.verified == REMEMBERED
    assert await stand.ask("a.b.new") == "token:a.b.new"
    assert await stand.ask("a.b.new") == "token:a.b.new"
    assert stand.verified == REMEMBERED + 1
    await stand.ask("a.b.1")
    assert stand.verified == REMEMBERED + 2
    assert await stand.ask(KEY) == "key:x"


@pytest.mark.parametrize("sent", ["a", "a.b", "a.b.c.d", "...", "a.b.\u00e9", b"a.b.\xff", KEY + "x"])
async def test_no_key_is_looked_up_for_what_cannot_be_a_token(stand: Stand, sent: str | bytes) -> None:
    assert await stand.ask(sent) == "401"
    assert not stand.verified


async def test_a_key_does_not_expire(stand: Stand) -> None:
    stand.now += 1e12
    assert await stand.ask(KEY) == "key:x"
    assert not stand.verified
