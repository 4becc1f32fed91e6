"""Bearer tokens: which are accepted, and how the issuer's keys are fetched. The issuer is a local HTTP server."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.app import create_app
from api.auth import guard as auth
from api.auth import tokens
from api.auth.keys import make_api_key
from api.errors import Problem
from tests.support import lacking
from tests.support.commands import on, served
from tests.support.database import locked, wait_until_waiting
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until

ISSUER, AUDIENCE = "https://issuer.example.com", "users-api"
USERS = "/api/v1/users"
NOWHERE = "postgresql://ada:sesame@127.0.0.1:1/x"
PRIVATE: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}
STRANGER = ed25519.Ed25519PrivateKey.generate()

INVALID = "The token is not valid"
NO_TOKEN = "The API key or token is not valid"
EXPIRED = "The token has expired"
EARLY = "The token is not valid yet"
OTHER_AUDIENCE = "The token is for another audience"
OTHER_ISSUER = "The token is of another issuer"
OTHER_TYPE = "The token is of another type than JWT and at+jwt"
LACKING = "The token lacks one of the claims exp, iss, aud, sub"
NOT_SIGNED = "The token is not signed with a key of the issuer"
NO_SUBJECT = "The token's sub is not 1 to 255 characters without control characters"


def jwk(private: Any, kid: str | None, algorithm: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**made, "alg": algorithm, **({"kid": kid} if kid else {}), **more}


def token(algorithm: str = "EdDSA", *, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A good token, but for what is given; a claim that is given as None is left out."""
    given: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "exp": int(time.time()) + 3600,
        "scope": "openid users:read users:write",
        **claims,
    }
    kept = {name: value for name, value in given.items() if value is not None}
    fields = {"kid": algorithm, **(headers or {})}
    if fields["kid"] is None:
        del fields["kid"]
    return jwt.encode(kept, key or PRIVATE[algorithm], algorithm, headers=fields)


@dataclass
class Issuer:
    """What the JWKS host answers with, and how often it was asked."""

    url: str
    keys: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None
    asked: int = 0
    may_answer: threading.Event = field(default_factory=threading.Event)
    drips: str = ""  # of its head or its body, when it is asked, a byte now and then, until the test ends
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def issuing() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked += 1
            if drips := made.drips:
                self.send_response(200)
                if drips == "body":
                    self.end_headers()
                else:
                    self.flush_headers()
                with suppress(OSError):  # The client has disconnected.
                    while not made.ended.wait(0.02):
                        self.wfile.write(b" ")
                return
            made.may_answer.wait(30)
            self.send_response(made.status)
            if made.status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            body = json.dumps({"keys": made.keys}).encode() if made.body is None else made.body
            with suppress(OSError):  # The client has disconnected.
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Issuer(f"http://127.0.0.1:{server.server_address[1]}/jwks.json")
        made.keys = [jwk(private, algorithm, algorithm) for algorithm, private in PRIVATE.items()]
        made.may_answer.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.may_answer.set()
            made.ended.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


@pytest.fixture(autouse=True)
def _fetches_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits until an unknown key may be asked for again, but the one that says how often that may be."""
    monkeypatch.setattr(tokens, "_MIN_AGE_SECONDS", 0)


@contextmanager
def serving(issuer: Issuer, **settings: object) -> Iterator[httpx.Client]:
    configured = settings_for(
        NOWHERE,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_jwks_url=issuer.url,
        acquire_timeout_seconds=1,
        **settings,
    )
    with serve(create_app(configured)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a server that has its issuer's keys. It has no database: an accepted token leads to a 404."""
    with issuing() as issuer, serving(issuer) as client:
        yield client


def ask(client: httpx.Client, credentials: str, method: str = "GET") -> httpx.Response:
    return client.request(method, f"{USERS}/0", headers={b"authorization": b"Bearer " + credentials.encode()})


def assert_good(response: httpx.Response) -> None:
    assert response.status_code == 404, response.text
    assert response.json()["detail"] == "User not found"


def assert_refused(response: httpx.Response, reason: str) -> None:
    assert response.status_code == 401, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:problem:users-api:invalid-token"
    assert response.json()["detail"] == reason
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


# What is believed


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_a_token_of_the_issuer(client: httpx.Client, algorithm: str) -> None:
    assert_good(ask(client, token(algorithm)))
    assert_good(ask(client, token(algorithm), "DELETE"))


@pytest.mark.parametrize(
    ("claims", "times"),
    [
        pytest.param({"aud": ["others", AUDIENCE]}, {}, id="several audiences"),
        pytest.param({}, {"exp": 1000.5}, id="a fraction of a second"),
        pytest.param({}, {"exp": -5}, id="a clock a little behind"),
        pytest.param({}, {"nbf": 5}, id="a clock a little ahead"),
        pytest.param({"jti": "x", "x": {}}, {"iat": 0, "nbf": -60}, id="more claims"),
        pytest.param({"exp": 10**400}, {}, id="a time beyond a float"),
        pytest.param({"sub": "\U0001f98a" * 255}, {}, id="a long subject"),
        pytest.param({"sub": " ~\xa0\ud7ff\ue000"}, {}, id="characters next to those that are refused"),
    ],
)
def test_variants_of_a_good_token(client: httpx.Client, claims: dict[str, Any], times: dict[str, Any]) -> None:
    """`times` are seconds from now, when the test runs."""
    now = int(time.time())
    assert_good(ask(client, token(**claims, **{name: now + seconds for name, seconds in times.items()})))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/JWT", None])
def test_the_types_of_a_token(client: httpx.Client, typ: str | None) -> None:
    """RFC 7519, section 5.1, and RFC 9068, section 2.1."""
    sent = token(headers={"typ": typ}, jti=f"{typ}")
    assert ("typ" in json.loads(base64.urlsafe_b64decode(sent.partition(".")[0] + "=="))) == (typ is not None)
    assert_good(ask(client, sent))


@pytest.mark.parametrize(
    ("scope", "reads", "writes"),
    [
        ("users:read", True, False),
        ("users:write", False, True),
        ("openid users:write users:read", True, True),
        ("", False, False),
        ("users:readers Users:Read users", False, False),
        (None, False, False),
        (["users:read", "users:write"], False, False),
        (5, False, False),
    ],
)
def test_scopes(client: httpx.Client, scope: Any, reads: bool, writes: bool) -> None:
    for method, may, needed in (("GET", reads, "users:read"), ("DELETE", writes, "users:write")):
        response = ask(client, token(scope=scope), method)
        if may:
            assert_good(response)
        else:
            assert response.status_code == 403
            assert response.json()["detail"] == f"These credentials lack the scope {needed}"
            assert f'error="insufficient_scope", scope="{needed}"' in response.headers["www-authenticate"]


# What is not


def segment(value: Any) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).decode().strip("=")
    )


CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": 4e9, "scope": "users:read users:write"}
PEM = PRIVATE["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RAW = PRIVATE["EdDSA"].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def hs256(secret: bytes, kid: str) -> str:
    """A token signed by HMAC with what is public: the attack on libraries that take the algorithm from the token."""
    signed = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{segment(CLAIMS)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def unsigned(**header: Any) -> str:
    return f"{segment(header)}.{segment(CLAIMS)}."


GOOD = token()
NOW = int(time.time())
WRONG = {
    "alg none": (unsigned(alg="none", kid="EdDSA"), INVALID),
    "alg None": (unsigned(alg="None", kid="EdDSA"), INVALID),
    "alg missing": (unsigned(kid="EdDSA"), INVALID),
    "alg null": (unsigned(alg=None, kid="EdDSA"), INVALID),
    "alg a list": (unsigned(alg=["EdDSA"], kid="EdDSA"), INVALID),
    "alg none, no kid": (unsigned(alg="none"), NOT_SIGNED),
    "no signature": (GOOD.rpartition(".")[0] + ".", INVALID),
    "HS256 with the public key": (hs256(PEM, "RS256"), INVALID),
    "HS256 with the public key, stripped": (hs256(PEM.strip(), "RS256"), INVALID),
    "HS256 with the raw public key": (hs256(RAW, "EdDSA"), INVALID),
    "HS256 with nothing": (hs256(b"", "EdDSA"), INVALID),
    "RS512": (token("RS512", key=PRIVATE["RS256"], headers={"kid": "RS256"}), INVALID),
    "PS256": (token("PS256", key=PRIVATE["RS256"], headers={"kid": "RS256"}), INVALID),
    "another algorithm than the key's": (token("ES256", headers={"kid": "RS256"}), INVALID),
    "expired": (token(exp=NOW - 3600), EXPIRED),
    "expired long ago": (token(exp=0), EXPIRED),
    "not yet valid": (token(nbf=NOW + 3600), EARLY),
    "made in the future": (token(iat=NOW + 3600), EARLY),
    "wrong audience": (token(aud="others"), OTHER_AUDIENCE),
    "an audience that begins alike": (token(aud=AUDIENCE + "-2"), OTHER_AUDIENCE),
    "no audience in the list": (token(aud=[]), LACKING),
    "wrong issuer": (token(iss="https://evil.example"), OTHER_ISSUER),
    "exp beyond a float": (token(exp=float("inf")), INVALID),
    "nbf beyond a float": (token(nbf=float("inf")), INVALID),
    "iat no number": (token(iat=float("nan")), INVALID),
    "sub of 4,500 characters": (token(sub="x" * 4500), NO_SUBJECT),
    "sub of 256 characters": (token(sub="x" * 256), NO_SUBJECT),
    "sub with a NUL": (token(sub="a\0b"), NO_SUBJECT),
    "sub with a line feed": (token(sub="ada\n"), NO_SUBJECT),
    "sub with a unit separator": (token(sub="a\x1f"), NO_SUBJECT),
    "sub with a delete": (token(sub="\x7fa"), NO_SUBJECT),
    "sub with the last control character": (token(sub="a\x9f"), NO_SUBJECT),
    "sub with a lone surrogate": (token(sub="\ud800"), NO_SUBJECT),
    "sub empty": (token(sub=""), NO_SUBJECT),
    "typ of a security event": (token(headers={"typ": "secevent+jwt"}), OTHER_TYPE),
    "typ of a proof": (token(headers={"typ": "dpop+jwt"}), OTHER_TYPE),
    "typ with a blank": (token(headers={"typ": "JWT "}), OTHER_TYPE),
    "typ a number": (f"{segment({'alg': 'EdDSA', 'kid': 'EdDSA', 'typ': 1})}.{segment(CLAIMS)}.x", INVALID),
    "an issuer that begins alike": (token(iss=ISSUER + ".evil.example"), OTHER_ISSUER),
    "without exp": (token(exp=None), LACKING),
    "without iss": (token(iss=None), LACKING),
    "without aud": (token(aud=None), LACKING),
    "without sub": (token(sub=None), LACKING),
    "exp a word": (token(exp="tomorrow"), INVALID),
    "sub a number": (token(sub=5), INVALID),
    "a stranger's key under our kid": (token(key=STRANGER), INVALID),
    "no kid": (token(headers={"kid": None}), NOT_SIGNED),
    "kid a path": (token(headers={"kid": "../../../../dev/null"}), NOT_SIGNED),
    "kid SQL": (token(headers={"kid": "x' union select 'key' --"}), NOT_SIGNED),
    "kid a URL": (token(headers={"kid": "http://127.0.0.1:1/jwks.json"}), NOT_SIGNED),
    "kid empty": (token(headers={"kid": ""}), NOT_SIGNED),
    "kid with a NUL": (token(headers={"kid": "EdDSA\0"}), NOT_SIGNED),
    "kid a number": (f"{segment({'alg': 'EdDSA', 'kid': 1})}.{segment(CLAIMS)}.{segment(b'x' * 64)}", INVALID),
    "kid a list": (
        f"{segment({'alg': 'EdDSA', 'kid': ['EdDSA']})}.{segment(CLAIMS)}.{segment(b'x' * 64)}",
        INVALID,
    ),
    "a key of its own": (
        token(key=STRANGER, headers={"kid": "mine", "jwk": jwk(STRANGER, "mine", "EdDSA")}),
        NOT_SIGNED,
    ),
    "a key at its own URL": (token(key=STRANGER, headers={"kid": "EdDSA", "jku": "http://127.0.0.1:1/"}), INVALID),
    "a critical header that nobody knows": (token(headers={"crit": ["x"], "x": 1}), INVALID),
    "a detached payload": (unsigned(alg="EdDSA", kid="EdDSA", b64=False, crit=["b64"]), INVALID),
    "truncated": (GOOD[:-1], INVALID),
    "half": (GOOD[: len(GOOD) // 2], NO_TOKEN),
    "two parts": (GOOD.rpartition(".")[0], NO_TOKEN),
    "four parts": (GOOD + ".x", NO_TOKEN),
    "five parts, as encrypted": (GOOD + ".x.y", NO_TOKEN),
    "dots": ("..", INVALID),
    "another payload": (".".join([GOOD.split(".")[0], segment(CLAIMS), GOOD.split(".")[2]]), INVALID),
    "another header": (".".join([segment({"alg": "EdDSA", "kid": "EdDSA"}), *GOOD.split(".")[1:]]), INVALID),
    "a line feed in base64": (GOOD.replace(".", "%0A.", 1), INVALID),
    "wrong padding": (GOOD + "=", INVALID),
    "header no JSON": (f"{segment(b'x')}.{segment(CLAIMS)}.{segment(b'x')}", INVALID),
    "header a list": (f"{segment([1])}.{segment(CLAIMS)}.{segment(b'x')}", INVALID),
    "header too deep": (f"{segment(b'[' * 3000)}.{segment(CLAIMS)}.{segment(b'x')}", INVALID),
    "payload no object": (jwt.api_jws.encode(b"[1]", PRIVATE["EdDSA"], "EdDSA", {"kid": "EdDSA"}), INVALID),
    "not ASCII": (GOOD + "é", NO_TOKEN),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_believed(client: httpx.Client, case: str) -> None:
    sent, reason = WRONG[case]
    response = ask(client, sent)
    assert_refused(response, reason)
    assert sent not in response.text + str(response.headers)


def token_of(length: int) -> str:
    """A good token of so many bytes: two places are filled, since no single one makes every length."""
    missing = (length - len(token(padding="", headers={"x": ""}))) * 3 // 4
    made = (token(padding="x" * (missing + n), headers={"x": "x" * m}) for n in range(-4, 2) for m in range(3))
    return next(each for each in made if len(each) == length)


def test_a_token_has_8_kib_at_most(client: httpx.Client) -> None:
    assert_good(ask(client, token_of(8192)))
    assert_refused(ask(client, token_of(8193)), INVALID)


def test_the_clock_of_the_issuer_may_differ_by_30_seconds(client: httpx.Client) -> None:
    cases = [("exp", -29, None), ("exp", -30, EXPIRED), *((each, 30, None) for each in ("nbf", "iat"))]
    cases += [(each, 31, EARLY) for each in ("nbf", "iat")]
    while True:
        now = int(time.time())
        sent: list[dict[str, Any]] = [{claim: now + seconds} for claim, seconds, _ in cases]
        answers = [ask(client, token(**claims)) for claims in sent]
        if int(time.time()) == now:  # Whole seconds count: all of it has happened in one.
            break
    for answer, (_, _, reason) in zip(answers, cases, strict=True):
        if reason:
            assert_refused(answer, reason)
        else:
            assert_good(answer)


def test_a_good_token_expires_while_it_is_remembered(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = token(exp=int(time.time()) + 100)
    assert_good(ask(client, sent))
    later = time.monotonic() + 200
    monkeypatch.setattr(auth, "monotonic", lambda: later)
    # PyJWT's clock is the real one: that it is asked again shows in that the token is remembered no more.
    monkeypatch.setattr(tokens, "_LEEWAY_SECONDS", -200)
    assert_refused(ask(client, sent), EXPIRED)


@pytest.mark.slow
def test_a_clock_that_jumps(issuer: Issuer, directory: Path, database: str) -> None:
    """Tokens alone are judged by the clock of the machine. Timeouts are not, and rows have that of PostgreSQL."""
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
    if library is None:
        lacking("no clock that can be set: apt-get install faketime")
    clock = directory / "clock"
    key, entry = make_api_key("x", read_only=False)
    variables = {
        **{"API_KEYS": entry, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_JWKS_URL": issuer.url},
        **{"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"},
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def jump(offset: str) -> None:
        (directory / "next").write_text(offset)
        (directory / "next").replace(clock)

    def fresh() -> str:
        now = int(time.time())
        return token(iat=now, exp=now + 600, jti=f"{time.monotonic()}")

    jump("+0")
    with (
        served(cwd=directory, **on(database), **variables) as (url, _),  # type: ignore[arg-type]
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        for number, (offset, reason) in enumerate([("+1d", EXPIRED), ("-1d", EARLY)]):
            assert_good(ask(client, fresh()))
            with locked(database):
                waiting = threads.submit(client.get, f"{USERS}/999")
                wait_until_waiting(database, 1)
                jump(offset)
                assert_refused(ask(client, fresh()), reason)
            assert waiting.result().status_code == 404
            created = client.post(USERS, json={"email": f"{number}@example.com"})
            assert created.status_code == 201
            assert abs(datetime.fromisoformat(created.json()["created_at"]).timestamp() - time.time()) < 3600
            assert client.get("/ready").status_code == 200
            jump("+0")
            assert_good(ask(client, fresh()))


def test_tokens_beside_keys(issuer: Issuer) -> None:
    key, entry = make_api_key("x", read_only=True)
    with serving(issuer, api_keys=entry) as client:
        assert_good(ask(client, key))
        assert_good(ask(client, token()))
        assert_refused(ask(client, key + "x"), NO_TOKEN)


# Where the keys come from


def test_the_keys_are_fetched_once(issuer: Issuer) -> None:
    with serving(issuer) as client:
        for algorithm in PRIVATE:
            assert_good(ask(client, token(algorithm)))
        assert issuer.asked == 1


def test_a_rotated_key(issuer: Issuer) -> None:
    """A new key is learnt when a token names it; the old one is believed until it is seen to be gone."""
    with serving(issuer) as client:
        assert_good(ask(client, token()))
        issuer.keys = [jwk(STRANGER, "new", "EdDSA")]
        assert_good(ask(client, token(sub="somebody else")))
        assert_good(ask(client, token(key=STRANGER, headers={"kid": "new"})))
        assert_refused(ask(client, token(sub="a third")), NOT_SIGNED)


def test_a_withdrawn_key_is_noticed(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_AGE_SECONDS", 0.01)
    monkeypatch.setattr(auth, "_CACHE_SECONDS", -1)
    with serving(issuer) as client:
        assert_good(ask(client, token()))
        issuer.keys = [jwk(STRANGER, "new", "EdDSA")]
        asked = issuer.asked
        while issuer.asked < asked + 2:  # the first of them may have been answered with the old keys
            assert client.get("/health").status_code == 200
        assert_refused(ask(client, token(sub="last")), NOT_SIGNED)


def test_unknown_keys_are_asked_for_at_a_bounded_rate(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MIN_AGE_SECONDS", 3600)
    with serving(issuer) as client:
        assert_good(ask(client, token()))
        for number in range(50):
            assert_refused(ask(client, token(headers={"kid": f"{number}"})), NOT_SIGNED)
        assert issuer.asked == 1


async def test_many_at_once_wait_for_one_fetch(issuer: Issuer) -> None:
    keys = tokens.SigningKeys(issuer.url)
    found = await asyncio.gather(*(keys.find("EdDSA") for _ in range(100)))
    assert all(found)
    assert issuer.asked == 1


async def test_who_goes_away_does_not_end_the_fetch_of_the_others(issuer: Issuer) -> None:
    issuer.may_answer.clear()
    keys = tokens.SigningKeys(issuer.url)
    first, second = (asyncio.create_task(keys.find("EdDSA")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    issuer.may_answer.set()
    assert await second is not None


def test_nobody_else_waits_for_the_issuer(issuer: Issuer) -> None:
    """While a token waits for its key, those whose keys are known are answered."""
    key, entry = make_api_key("x", read_only=True)
    issuer.may_answer.clear()
    with serving(issuer, api_keys=entry) as client:
        waiting = threading.Thread(target=ask, args=(client, token()))
        waiting.start()
        assert_good(ask(client, key))
        assert client.get("/health").status_code == 200
        assert waiting.is_alive()
        issuer.may_answer.set()
        waiting.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(503, None, id="down"),
        pytest.param(302, None, id="elsewhere"),
        pytest.param(200, b"", id="nothing"),
        pytest.param(200, b"<html>", id="no JSON"),
        pytest.param(200, b"[1]", id="no object"),
        pytest.param(200, b'{"keys": 5}', id="no list"),
        pytest.param(200, b'{"keys": []}', id="no keys"),
        pytest.param(200, b"[" * 100_000, id="too deep"),
        pytest.param(200, b"x" * 1_000_000, id="too long"),
    ],
)
def test_the_issuer_is_down_at_the_start_and_comes_back(
    issuer: Issuer, status: int, body: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.status, issuer.body = status, body
    with serving(issuer) as client:
        response = ask(client, token())
        assert response.status_code == 503
        assert response.json()["type"] == "urn:problem:users-api:keys-unavailable"
        assert response.headers["retry-after"]
        assert "JWT_JWKS_URL: the keys cannot be fetched, the 0 known keys are kept" in caplog.text
        issuer.status, issuer.body = 200, None
        assert_good(ask(client, token()))


@pytest.mark.parametrize("drips", ["", "head", "body"])
def test_an_issuer_that_does_not_end_its_answer(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, drips: str) -> None:
    """A waiting request learns in time that its token cannot be verified."""
    monkeypatch.setattr(tokens, "_FETCH_SECONDS", 0.1)
    issuer.drips = drips
    issuer.may_answer.clear()
    with serving(issuer) as client:
        assert ask(client, token()).status_code == 503


def test_an_issuer_that_did_not_end_its_answer_is_asked_again(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abandoned fetch ends as well, though the host goes on sending."""
    monkeypatch.setattr(tokens, "_FETCH_SECONDS", 0.1)
    issuer.drips = "body"
    with serving(issuer) as client:
        assert ask(client, token()).status_code == 503
        issuer.drips = ""
        while (response := ask(client, token())).status_code == 503:
            pass
        assert_good(response)


def test_only_one_thread_waits_for_an_issuer_that_does_not_answer(issuer: Issuer) -> None:
    """Even if that fetch is abandoned: otherwise threads would accumulate."""
    issuer.may_answer.clear()
    keys = tokens.SigningKeys(issuer.url)

    async def give_up() -> None:
        finding = asyncio.create_task(keys.find("EdDSA"))
        await asyncio.to_thread(wait_until, lambda: issuer.asked)
        finding.cancel()

    asyncio.run(give_up())  # whose end ends the fetch, but not its thread
    with pytest.raises(Problem):
        asyncio.run(keys.find("EdDSA"))
    assert issuer.asked == 1


def test_an_issuer_that_does_not_end_its_answer_does_not_hold_up_the_end(issuer: Issuer, directory: Path) -> None:
    """The thread that reads it is abandoned, and still runs when the server stops."""
    issuer.drips = "head"
    variables = {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_JWKS_URL": issuer.url}
    with served(cwd=directory, **on(NOWHERE), **variables) as (_, process):  # type: ignore[arg-type]
        wait_until(lambda: issuer.asked)
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_the_issuer_goes_down_later(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are kept, however old; a token under a key that is not among them cannot be judged."""
    monkeypatch.setattr(tokens, "_MAX_AGE_SECONDS", 0.01)
    monkeypatch.setattr(auth, "_CACHE_SECONDS", -1)
    with serving(issuer) as client:
        assert_good(ask(client, token()))
        issuer.status = 500
        asked = issuer.asked
        while issuer.asked < asked + 3:
            assert_good(ask(client, token()))
        assert ask(client, token(headers={"kid": "unknown"})).status_code == 503
        assert_good(ask(client, token()))


def test_keys_of_several_types_with_one_kid(issuer: Issuer) -> None:
    """RFC 7517, section 4.5. Which comes last makes no difference, nor a key that is not for us."""
    for algorithms in (["RS256", "ES256", "EdDSA"], ["EdDSA", "ES256", "RS256"]):
        issuer.keys = [jwk(PRIVATE[algorithm], "one", algorithm) for algorithm in algorithms]
        issuer.keys += [jwk(STRANGER, "one", "EdDSA", use="enc")]
        for each in issuer.keys[::2]:
            del each["alg"]
        with serving(issuer) as client:
            for algorithm in algorithms:
                assert_good(ask(client, token(algorithm, headers={"kid": "one"})))
                assert_refused(ask(client, token(algorithm, headers={"kid": algorithm})), NOT_SIGNED)
            assert_refused(ask(client, token(key=STRANGER, headers={"kid": "one"})), INVALID)
            assert_refused(ask(client, hs256(PEM, "one")), INVALID)


def test_a_key_of_another_type_is_added_under_a_known_kid(issuer: Issuer) -> None:
    issuer.keys = [jwk(PRIVATE["RS256"], "one", "RS256")]
    with serving(issuer) as client:
        assert_good(ask(client, token("RS256", headers={"kid": "one"})))
        issuer.keys += [jwk(PRIVATE["ES256"], "one", "ES256")]
        assert_good(ask(client, token("ES256", headers={"kid": "one"})))


SUBJECTS = {
    "a" * 4500: 401,
    "a\0": 401,
    "\ud800": 401,
    "\udfff\ud800": 401,
    "": 401,
    "\U0001f98a" * 255: 201,
    "a'é": 201,
}


def test_a_creation_of_any_subject_with_a_key(issuer: Issuer, database: str) -> None:
    """The name of the caller is stored beside its Idempotency-Key."""
    settings = settings_for(database, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.url)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        for number, (subject, status) in enumerate(SUBJECTS.items()):
            headers = {"authorization": f"Bearer {token(sub=subject)}", "idempotency-key": "k" * 255}
            for _ in range(2):
                response = client.post(USERS, json={"email": f"{number}@example.com"}, headers=headers)
                assert response.status_code == status, (subject[:5], response.text)


def test_keys_that_are_not_for_us_are_left_out(issuer: Issuer) -> None:
    """A key for encryption, a shared secret, an algorithm or a curve that is not ours, an RSA key that is too short."""
    secret = b"x" * 64
    short = rsa.generate_private_key(65537, 1024)
    issuer.keys = [
        {"kty": "oct", "kid": "secret", "alg": "HS256", "k": segment(secret)},
        {"kty": "oct", "kid": "disguised", "alg": "RS256", "k": segment(secret)},
        jwk(PRIVATE["RS256"], "encryption", "RS256", use="enc"),
        jwk(PRIVATE["RS256"], "PS256", "PS256"),
        jwk(short, "short", "RS256"),
        jwk(PRIVATE["ES256"], None, "ES256"),
        {"kid": "nonsense"},
        jwk(PRIVATE["EdDSA"], "EdDSA", "EdDSA", use="sig"),
    ]
    with serving(issuer) as client:
        assert_good(ask(client, token()))
        assert_refused(ask(client, hs256(secret, "secret")), NOT_SIGNED)
        assert_refused(ask(client, hs256(secret, "disguised")), NOT_SIGNED)
        assert_refused(ask(client, token("RS256", headers={"kid": "encryption"})), NOT_SIGNED)
        assert_refused(ask(client, token("PS256", key=PRIVATE["RS256"])), NOT_SIGNED)
        with pytest.warns(jwt.InsecureKeyLengthWarning):
            signed = token("RS256", key=short, headers={"kid": "short"})
        assert_refused(ask(client, signed), INVALID)
