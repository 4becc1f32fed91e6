"""API keys: what each scope allows, and that no request reaches a user without one."""

import re
import socket
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import psutil
import pytest

from api.app import create_app, scopes_of
from api.auth.guard import Guard, caller
from api.auth.keys import make_api_key, parse_api_keys
from api.auth.loopback import is_loopback
from api.environment import SettingsError
from api.settings import AUTHENTICATION_MISSING, Settings
from tests.support import lacking
from tests.support.commands import run, served
from tests.support.database import execute
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users"
NOWHERE = "postgresql://ada:sesame@127.0.0.1:1/x"
READER, READER_ENTRY = make_api_key("reader", read_only=True)
WRITER, WRITER_ENTRY = make_api_key("writer", read_only=False)
OLD_WRITER, OLD_WRITER_ENTRY = make_api_key("writer", read_only=False)
API_KEYS = f"{READER_ENTRY}, {WRITER_ENTRY}\n{OLD_WRITER_ENTRY}"
SECRET = "secret.ada@example.com"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(postgres: str, template: str) -> Iterator[str]:
    """A database with one user, which no request may read or change without a key."""
    execute(postgres, f"create database guarded template {template}")
    url = postgres.replace("/postgres?", "/guarded?")
    execute(url, f"insert into users (email, name) values ('{SECRET}', 'Ada')")
    yield url
    execute(postgres, "drop database guarded with (force)")


@pytest.fixture(scope="module")
def client(guarded: str) -> Iterator[httpx.Client]:
    with serve(create_app(settings_for(guarded, api_keys=API_KEYS))) as url, httpx.Client(base_url=url) as client:
        yield client


def assert_refused(response: httpx.Response, status: int, kind: str, *challenge: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:problem:users-api:{kind}"
    asked = response.headers["www-authenticate"]
    assert asked.startswith('Bearer realm="users-api"')
    assert all(part in asked for part in challenge), asked
    assert ("error=" in asked) == bool(challenge)


# API keys


def test_a_reader_reads(client: httpx.Client) -> None:
    assert client.get(USERS, headers=bearer(READER)).json()[0]["email"] == SECRET
    assert client.get(f"{USERS}/1", headers=bearer(READER)).status_code == 200
    assert client.head(f"{USERS}/1", headers=bearer(READER)).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT", "OPTIONS", "TRACE", "PROPFIND"])
def test_a_reader_changes_nothing(client: httpx.Client, method: str) -> None:
    response = client.request(method, f"{USERS}/1", headers=bearer(READER), content=b"{}")
    assert_refused(response, 403, "insufficient-scope", 'error="insufficient_scope"', 'scope="users:write"')
    assert response.json()["detail"] == "These credentials lack the scope users:write"


@pytest.mark.parametrize("key", [WRITER, OLD_WRITER], ids=["the new key", "the old key of the same name"])
def test_a_writer_reads_and_writes(client: httpx.Client, key: str) -> None:
    created = client.post(USERS, json={"email": "new@example.com"}, headers=bearer(key))
    assert created.status_code == 201
    assert client.get(created.headers["location"], headers=bearer(key)).status_code == 200
    assert client.delete(created.headers["location"], headers=bearer(key)).status_code == 204


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_without_regard_to_case(client: httpx.Client, scheme: str) -> None:
    assert client.get(USERS, headers={"authorization": f"{scheme} {READER}"}).status_code == 200


def test_no_credentials(client: httpx.Client) -> None:
    assert_refused(client.get(USERS), 401, "unauthenticated")


@pytest.mark.parametrize("sent", ["", "Bearer", READER, f"Basic {READER}", f"Token {READER}", "Digest x"])
def test_no_bearer(client: httpx.Client, sent: str) -> None:
    assert_refused(client.get(USERS, headers={"authorization": sent}), 401, "unauthenticated")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(READER[:-1], id="truncated"),
        pytest.param(READER + "x", id="longer"),
        pytest.param(READER.swapcase(), id="another case"),
        pytest.param(READER_ENTRY.split(":")[1], id="the digest"),
        pytest.param(READER_ENTRY, id="the entry"),
        pytest.param(f" {READER}", id="a blank more"),
        pytest.param(f"{READER} {READER}", id="twice"),
        pytest.param(f"{READER},{WRITER}", id="two"),
        pytest.param(f'"{READER}"', id="quoted"),
        pytest.param("x" * 30_000, id="oversized"),
        pytest.param("é", id="not ASCII"),
        pytest.param("null", id="null"),
        pytest.param("a.b.c", id="like a token"),
    ],
)
def test_a_key_that_is_none(client: httpx.Client, key: str) -> None:
    headers = {b"authorization": b"Bearer " + key.encode()}
    response = client.get(USERS, headers=headers)
    assert_refused(response, 401, "invalid-token", 'error="invalid_token"', "error_description=")
    assert key not in response.text + str(response.headers)


@pytest.mark.parametrize("second", [READER, "nonsense"])
def test_two_authorization_headers(client: httpx.Client, second: str) -> None:
    sent = [("authorization", f"Bearer {READER}"), ("authorization", f"Bearer {second}")]
    assert_refused(client.get(USERS, headers=sent), 400, "invalid-request", 'error="invalid_request"')


def test_what_is_open(client: httpx.Client) -> None:
    for path in ("/", "/health", "/ready", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200
        assert client.get(path, headers=bearer("nonsense")).status_code == 200
        assert client.post(path).status_code == 405


def test_what_nobody_serves_is_not_told_without_a_key(client: httpx.Client) -> None:
    assert client.get("/nothing").status_code == 401
    assert client.get("/nothing", headers=bearer(READER)).status_code == 404
    assert client.put(USERS).status_code == 401
    assert client.put(USERS, headers=bearer(WRITER)).status_code == 405


def test_the_body_is_not_read_before(client: httpx.Client) -> None:
    """The client announces a body and waits to be asked for it: the refusal comes instead."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        sent = "POST /api/v1/users HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        connection.sendall(sent.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


async def test_the_handler_learns_who_asks() -> None:
    names: list[str] = []

    async def app(scope: object, receive: object, send: object) -> None:
        names.append(caller(scope))  # type: ignore[arg-type]

    guard = Guard(app, keys=parse_api_keys(API_KEYS), tokens=None, scopes=scopes_of(), open_paths=["/open"])
    headers = [(b"authorization", f"Bearer {WRITER}".encode())]
    for path in ("/x", "/open"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        await guard(scope, None, None)  # type: ignore[arg-type]
    assert names == ["key:writer", ""]
    assert caller({}) == ""


# Making keys


def test_a_key_is_long_random_and_known_by_its_digest() -> None:
    keys = {make_api_key("x", read_only=True)[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch("users_[A-Za-z0-9_-]{43}", key) for key in keys)  # 256 bits
    (parsed,) = parse_api_keys(READER_ENTRY)
    assert (parsed.name, parsed.scopes) == ("key:reader", frozenset({"read"}))
    assert READER not in READER_ENTRY


WRONG_ENTRIES = [
    "x",
    f"reader:{READER}:read",
    READER_ENTRY.removesuffix(":read"),
    READER_ENTRY.replace(":read", ":all"),
    READER_ENTRY.replace(":read", ":"),
    READER_ENTRY.replace(":read", "0:read"),
    READER_ENTRY.replace(":read", ":read:read"),
    READER_ENTRY[:-6] + READER_ENTRY[-5:],
    READER_ENTRY.upper(),
    READER_ENTRY.replace("reader", "re/ader"),
    READER_ENTRY.replace("reader", ""),
    READER_ENTRY.replace("reader", "x" * 65),
]


@pytest.mark.parametrize("entry", [*WRONG_ENTRIES, WRITER_ENTRY, WRITER_ENTRY.replace("writer", "x")])
def test_an_entry_that_is_wrong_or_repeated_is_named_by_its_number(entry: str) -> None:
    for text in (f"{WRITER_ENTRY},{entry}", f"{WRITER_ENTRY}\n, {entry} ,{OLD_WRITER_ENTRY}"):
        with pytest.raises(ValueError, match=r"^entry 2 ") as refused:
            parse_api_keys(text)
        assert READER not in str(refused.value)
        assert READER_ENTRY.split(":")[1] not in str(refused.value)


@pytest.mark.parametrize("text", ["", " ", ",", " ,\n"])
def test_a_list_without_an_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r"^there is no entry"):
        parse_api_keys(text)


@pytest.mark.parametrize("name", ["x", "x" * 64, "A-Z_a.z-09"])
@pytest.mark.parametrize(("read_only", "roles"), [(True, {"read"}), (False, {"read", "write"})])
def test_a_key_that_is_made_is_read_as_it_was_made(name: str, read_only: bool, roles: set[str]) -> None:
    key, entry = make_api_key(name, read_only=read_only)
    (parsed,) = parse_api_keys(entry)
    assert (parsed.name, parsed.scopes, parsed.digest) == (
        f"key:{name}",
        frozenset(roles),
        sha256(key.encode()).digest(),
    )


def test_the_command_makes_a_key_that_works(guarded: str) -> None:
    shown = run("key", "reporting", "--read-only")
    assert (shown.returncode, shown.stderr) == (0, "")
    key, entry = (line.split()[-1] for line in shown.stdout.splitlines())
    with serve(create_app(settings_for(guarded, api_keys=entry))) as url:
        assert httpx.get(url + USERS, headers=bearer(key)).status_code == 200
        assert httpx.delete(f"{url}{USERS}/1", headers=bearer(key)).status_code == 403


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a:b", "x" * 65, "ä", "a\n"])
def test_a_name_that_would_break_the_list(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits, dots, hyphens"):
        make_api_key(name, read_only=True)


def test_the_command_refuses_such_a_name() -> None:
    ended = run("key", "a:b")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "letters, digits, dots, hyphens" in ended.stderr


# With nothing to check a caller with


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7"])
def test_another_address_is_refused(host: str) -> None:
    """And before anything is started."""
    existed = Path(tempfile.gettempdir(), ".data").exists()  # where `run` runs
    ended = run("serve", "--host", host)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"users-api: --host {host}")
    assert ended.stderr.endswith(AUTHENTICATION_MISSING + "\n")
    assert Path(tempfile.gettempdir(), ".data").exists() == existed


def test_another_server_is_refused(guarded: str) -> None:
    with pytest.raises(SettingsError, match="AUTH=off"):
        create_app(Settings(database_url=guarded, direct_url=guarded))


def test_authentication_can_be_turned_off_in_so_many_words(guarded: str, tmp_path: Path) -> None:
    says = "AUTH=off: anybody who reaches http://0.0.0.0:"
    with served("--host", "0.0.0.0", cwd=tmp_path, says=says, DATABASE_URL=guarded, DIRECT_URL=guarded, AUTH="off") as (
        url,
        _,
    ):
        assert httpx.get(url + USERS).status_code == 200


def test_workers_ask_for_keys_too(guarded: str, tmp_path: Path) -> None:
    arguments = ("--workers", "2", "--host", "0.0.0.0")
    with served(*arguments, cwd=tmp_path, DATABASE_URL=guarded, DIRECT_URL=guarded, API_KEYS=API_KEYS) as (url, _):
        for _ in range(10):
            assert httpx.get(url + USERS).status_code == 401
            assert httpx.get(url + USERS, headers=bearer(READER)).status_code == 200


# Without a key


def own_address() -> str:
    """An address of this machine that others can reach."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not is_loopback(address.address):
                return str(address.address)
    lacking("this machine has no address but its loopback's")


def request(line: str, *fields: str, body: str = "") -> bytes:
    """A request as it is given, and the end of the connection."""
    head = [line, "connection: close", *fields, *([f"content-length: {len(body)}"] if body else []), "", body]
    return "\r\n".join(head).encode("latin-1")


PATHS = [
    "/api/v1/users",
    "/api/v1/users/",
    "/api/v1/users/1",
    "/api/v1/users/1/",
    "//api/v1/users",
    "/api//v1/users",
    "/api/v1//users/1",
    "/api/v1/users//1",
    "/./api/v1/users",
    "/health/../api/v1/users",
    "/docs/../api/v1/users",
    "/docs/..%2fapi/v1/users",
    "/docs%2f..%2fapi%2fv1%2fusers",
    "/openapi.json/../api/v1/users/1",
    "/api/v1/./users/1",
    "/API/V1/USERS",
    "/api/v1/Users/1",
    "/%61pi/v1/users",
    "/api/v1/users%2f1",
    "/api%2fv1%2fusers",
    "/%2e/api/v1/users",
    "/%2fapi/v1/users",
    "/api/v1/users%00",
    "/api/v1/users%0a",
    "/api/v1/users/1%0d%0a",
    "/health%0a",
    "/health%00/api/v1/users",
    "/health;/api/v1/users",
    "/health?/api/v1/users",
    "/health#/api/v1/users",
    "/api/v1/users;jsessionid=1",
    "/api/v1/users/1;x",
    "/api/v1/users?limit=1",
    "/api/v1/users?email=secret.ada%40example.com",
    "/api/v1/users?after=0&limit=1000",
    f"/api/v1/users?api_key={WRITER_ENTRY.split(':')[1]}",
    "/api/v1/users?access_token=x",
    "/api/v1/users?path=/health",
    "/api/v1/users/1?/health",
    "\\api\\v1\\users",
    "/api\\v1\\users",
    "/api/v1/users/%31",
    "/api/v1/users/01",
    "/api/v1/users/1%20",
    "/%c0%af/api/v1/users",
    "/api/v1/users/export",
    "/api/v1/users/import",
    "http://localhost/api/v1/users",
    "http://127.0.0.1/api/v1/users/1",
    "http://x@127.0.0.1/api/v1/users",
    "HTTP://LOCALHOST/api/v1/users",
    "http://localhost/health/../api/v1/users",
    "localhost/api/v1/users",
    "api/v1/users",
    "*",
]
METHODS = ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "POST", "PROPFIND", "PURGE", "QUERY"]
FIELDS = [
    ["authorization:"],
    ["authorization: "],
    ["authorization: Bearer"],
    ["authorization: Bearer "],
    ["authorization: Bearer null"],
    ["authorization: Bearer undefined"],
    ["authorization: Basic Og=="],
    ["authorization: Basic YWRtaW46YWRtaW4="],
    [f"authorization: Bearer {WRITER_ENTRY}"],
    [f"authorization: Bearer {WRITER_ENTRY.split(':')[1]}"],
    ["authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwic2NvcGUiOiJ1c2VyczpyZWFkIn0."],
    ["authorization: Bearer *"],
    ["authorization: Bearer ' or 1=1 --"],
    ["authorization: Bearer \x00"],
    ["authorization: Bearer \xff\xfe"],
    ["authorization: Bearer " + "x" * 8000],
    ["authorization: Bearer a", "authorization: Bearer b"],
    ["Authorization : Bearer x"],
    ["AUTHORIZATION: bearer x"],
    ["proxy-authorization: Bearer x"],
    ["x-api-key: x"],
    ["api-key: x"],
    ["cookie: session=x; access_token=x"],
    ["x-forwarded-for: 127.0.0.1"],
    ["x-real-ip: 127.0.0.1"],
    ["forwarded: for=127.0.0.1;host=localhost;proto=https"],
    ["x-original-url: /health"],
    ["x-rewrite-url: /health"],
    ["x-forwarded-prefix: /health"],
    ["x-forwarded-host: localhost"],
    ["x-http-method-override: GET"],
    ["x-forwarded-user: admin", "remote-user: admin"],
    ["host: localhost"],
    ["host: localhost", "host: example.com"],
    ["connection: authorization, close"],
    ["upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13", "sec-websocket-key: eHh4eA=="],
    ["upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABkAAQAAP__"],
    ["origin: https://evil.example", "access-control-request-method: GET"],
    ["origin: null"],
    ["range: bytes=0-"],
    ["if-none-match: *"],
    ["accept: text/html"],
    ["transfer-encoding: chunked"],
    ["content-length: 0", "transfer-encoding: chunked"],
    ["x-folded: a\r\n authorization: Bearer x"],
    ["caller: key:writer", "scope: users:read"],
]  # fmt: skip
RAW = [
    b"GET /api/v1/users\r\n\r\n",
    b"GET /api/v1/users HTTP/0.9\r\n\r\n",
    b"GET /api/v1/users HTTP/1.0\r\n\r\n",
    b"GET /api/v1/users HTTP/2.0\r\n\r\n",
    b"get /api/v1/users HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET  /api/v1/users HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET\t/api/v1/users\tHTTP/1.1\r\nhost: x\r\n\r\n",
    b"\r\n\r\nGET /api/v1/users HTTP/1.1\r\nconnection: close\r\n\r\n",
    b"GET /api/v1/users HTTP/1.1\nconnection: close\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /api/v1/users HTTP/1.1\r\nconnection: close\r\n\r\n",
    b"POST /health HTTP/1.1\r\ncontent-length: 44\r\n\r\nGET /api/v1/users HTTP/1.1\r\nhost: x\r\n\r\n1234"
    b"GET /api/v1/users HTTP/1.1\r\nconnection: close\r\n\r\n",
    b"POST /health HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nauthorization: Bearer x\r\n\r\n"
    b"GET /api/v1/users HTTP/1.1\r\nconnection: close\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /api/v1/users HTTP/1.1\r\nconnection: close\r\n\r\n",
]
PATCHING = request("PATCH /api/v1/users/1 HTTP/1.1", "content-type: application/json", body='{"name": "Eve"}')
ATTEMPTS = [
    *[request(f"GET {path} HTTP/1.1", "host: x") for path in PATHS],
    *[request(f"{method} {path} HTTP/1.1", "host: x") for method in METHODS for path in (USERS, f"{USERS}/1")],
    *[request(f"GET {path} HTTP/1.1", *fields) for fields in FIELDS for path in (USERS, f"{USERS}/1")],
    *[request(f"DELETE {USERS}/1 HTTP/1.1", *fields) for fields in FIELDS],
    *RAW,
    PATCHING,
    request("POST /api/v1/users HTTP/1.1", "content-type: application/json", body='{"email": "eve@example.com"}'),
    request("POST /api/v1/users?_method=GET HTTP/1.1", "content-type: application/json", body="{}"),
]  # fmt: skip


def test_nobody_gets_at_a_user_without_a_key(guarded: str) -> None:
    assert len(ATTEMPTS) >= 60
    address = own_address()
    app = create_app(settings_for(guarded, api_keys=API_KEYS))
    before = execute(guarded, "select * from users")
    with serve(app, host="0.0.0.0") as url:
        port = int(url.rpartition(":")[2])
        # Against a server that does answer there, and has a user to give away.
        found = httpx.get(f"http://{address}:{port}{USERS}", headers=bearer(READER))
        assert SECRET in found.text
        for attempt in ATTEMPTS:
            answer = send(address, port, attempt)
            assert SECRET.encode() not in answer, attempt
            assert b"created_at" not in answer, attempt
            statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
            if b"/health" not in attempt.partition(b"\r\n")[0]:
                assert all(400 <= status < 500 for status in statuses), (attempt, answer)
    assert execute(guarded, "select * from users") == before


def send(address: str, port: int, sent: bytes) -> bytes:
    with socket.create_connection((address, port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
        return bytes(received)
