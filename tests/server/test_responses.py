"""Responses on the wire: framing, invalid responses, and how long an idle connection is kept."""

import gc
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.http.response import START_WITH_BODY
from api.server.protocol import HTTPProtocol
from tests.support.serving import live, serve, settings_for
from tests.support.sockets import connected, exchange, read_all
from tests.support.waiting import wait_until

writes: list[bytes] = []
"""What the server gave to its sockets, each piece by one system call."""
waiting: list[str] = []
"""Messages received by applications that waited for the rest of a request."""


class _Transport:
    """A real transport that notes what is written to it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Noted(HTTPProtocol):
    """Keeps a connection for four seconds, looks at it often, and notes what it writes."""

    period = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = 4

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport))


ANSWERS: dict[str, tuple[int, list[tuple[bytes, bytes]], list[bytes]]] = {
    "/short": (200, [(b"content-length", b"5")], [b"Ada\r\n"]),
    "/pieces": (200, [(b"content-length", b"6")], [b"Ada", b"Bob"]),
    "/stream": (200, [], [b"Ada", b"", b"Bob"]),
    "/empty-stream": (200, [], [b""]),
    "/nothing": (204, [], [b""]),
    "/unchanged": (304, [(b"etag", b'"1"')], [b""]),
    "/last": (200, [(b"content-length", b"3"), (b"connection", b"close")], [b"Ada"]),
    "/broken": (200, [(b"content-length", b"3"), (b"x-said", b"a\r\nset-cookie: b")], [b"Ada"]),
    "/bare-return": (200, [(b"content-length", b"3"), (b"x-said", b"a\rset-cookie: b")], [b"Ada"]),
    "/patient": (200, [(b"content-length", b"3")], [b"Ada"]),
    "/too-long": (200, [(b"content-length", b"3")], [b"Ada L"]),
    "/too-short": (200, [(b"content-length", b"9")], [b"Ada"]),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["path"] == "/patient":
        await receive()
        waiting.append((await receive())["type"])
    if scope["path"].startswith("/whole"):
        assert START_WITH_BODY in scope["extensions"]
        status, headers, pieces = ANSWERS[scope["path"].removeprefix("/whole")]
        for _ in range(2 if scope["query_string"] == b"twice" else 1):
            await send({"type": "http.response.start", "status": status, "headers": headers, "body": pieces[0]})
        return
    status, headers, pieces = ANSWERS[scope["path"]]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for number, piece in enumerate(pieces, 1):
        await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})


@pytest.fixture(scope="module")
def module_address() -> Iterator[tuple[str, int]]:
    with serve(app, http=Noted) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield host, int(port)


@pytest.fixture
def address(module_address: tuple[str, int]) -> tuple[str, int]:
    writes.clear()
    return module_address


def get(address: tuple[str, int], path: str, method: str = "GET", version: str = "1.1") -> tuple[list[bytes], bytes]:
    """The lines of the answer's head without the date, and what follows it until the connection is closed."""
    fields = "connection: close\r\n" if version == "1.1" else ""
    answer = exchange(address, f"{method} {path} HTTP/{version}\r\nhost: x\r\n{fields}\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return [line for line in head.split(b"\r\n") if not line.startswith(b"date: ")], body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_is_one_system_call(address: tuple[str, int], version: str) -> None:
    head, body = get(address, "/short", version=version)
    assert head == [b"HTTP/1.1 200 OK", b"content-length: 5", b"connection: close"]
    assert body == b"Ada\r\n"
    assert len(writes) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/short", "/empty-stream", "/nothing", "/unchanged", "/broken", "/too-long", "/too-short"]
)
def test_a_start_with_body_is_the_same_answer(address: tuple[str, int], path: str, method: str) -> None:
    assert get(address, f"/whole{path}", method) == get(address, path, method)


def test_a_second_start_with_body_changes_nothing(address: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    assert get(address, "/whole/short?twice") == get(address, "/short")
    assert "Unexpected ASGI message 'http.response.start'" in caplog.text


def test_an_answer_in_pieces(address: tuple[str, int]) -> None:
    assert get(address, "/pieces")[1] == b"AdaBob"
    assert [write[-3:] for write in writes] == [b"Ada", b"Bob"]


@pytest.mark.parametrize("path", ["/stream", "/empty-stream"])
def test_http_1_0_knows_no_chunks(address: tuple[str, int], path: str) -> None:
    """RFC 9112, section 6.1: there a body without a length ends with the connection."""
    head, body = get(address, path, version="1.0")
    assert head == [b"HTTP/1.1 200 OK", b"connection: close"]
    assert body == (b"AdaBob" if path == "/stream" else b"")


def test_the_head_of_a_stream_does_not_wait_for_its_body(address: tuple[str, int]) -> None:
    head, body = get(address, "/stream")
    assert head[-1] == b"transfer-encoding: chunked"
    assert body == b"3\r\nAda\r\n3\r\nBob\r\n0\r\n\r\n"
    assert [write[:3] for write in writes] == [b"HTT", b"3\r\n", b"3\r\n"]
    assert get(address, "/empty-stream")[1] == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "method", "last"),
    [
        ("/nothing", "GET", b"HTTP/1.1 204 No Content"),
        ("/unchanged", "GET", b'etag: "1"'),
        ("/short", "HEAD", b"content-length: 5"),
        ("/pieces", "HEAD", b"content-length: 6"),
        ("/stream", "HEAD", b"HTTP/1.1 200 OK"),
    ],
)
def test_an_answer_without_a_body(address: tuple[str, int], path: str, method: str, last: bytes) -> None:
    """RFC 9112, section 6.3: nothing follows the head, whatever it says of a length."""
    head, body = get(address, path, method)
    assert head[-2:] == [last, b"connection: close"]
    assert body == b""
    assert len(writes) == 1


def test_the_application_may_end_the_connection(address: tuple[str, int]) -> None:
    answer = exchange(address, b"GET /last HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.count(b"connection: close") == 1


@pytest.mark.parametrize("path", ["/broken", "/bare-return"])
def test_a_header_never_becomes_two(address: tuple[str, int], path: str) -> None:
    head, _ = get(address, path)
    assert head[0] == b"HTTP/1.1 500 Internal Server Error"
    assert not any(b"set-cookie" in line for line in head)


@pytest.mark.parametrize("path", ["/too-long", "/too-short"])
def test_a_body_of_another_length_ends_the_connection(address: tuple[str, int], path: str) -> None:
    """What follows would be taken for the rest of it, or the rest of it for what follows."""
    assert exchange(address, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() * 2).count(b"HTTP/1.1") <= 1


def test_a_connection_is_kept_for_a_while(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        for _ in range(3):
            connection.sendall(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(1000).endswith(b"Ada\r\n")
            time.sleep(1.5 * Noted.period)  # Longer than one that has sent nothing yet is given.
        assert read_all(connection) == b""


def test_nothing_is_left_of_a_client_that_goes(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n")
    assert get(address, "/short")[1] == b"Ada\r\n"


def test_a_client_that_goes_is_gone_for_the_request_that_is_answered_too(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn tells the newest alone, which waits behind it here; the other then fails to write, and says so."""
    with connected(address, b"GET /patient HTTP/1.1\r\nhost: x\r\n\r\n" * 3):
        pass
    wait_until(lambda: waiting == ["http.disconnect"])
    assert get(address, "/short")[1] == b"Ada\r\n"
    assert caplog.text == ""


def test_a_request_leaves_nothing_to_the_garbage_collector(database: str) -> None:
    """It runs seldom in a server, and then takes many milliseconds if each request has left it something."""
    get = b"GET /api/v1/users/1 HTTP/1.1\r\nhost: x\r\n\r\n"
    with serve(create_app(settings_for(database))) as url:
        host, port = url.removeprefix("http://").split(":")
        with connected((host, int(port))) as connection:

            def ask(times: int) -> None:
                for _ in range(times):
                    connection.sendall(get)
                    assert connection.recv(10_000).startswith(b"HTTP/1.1 404 ")

            def left(times: int) -> int:
                gc.collect()
                gc.disable()
                try:
                    ask(times)
                    return gc.collect()
                finally:
                    gc.enable()

            ask(10)
            # The least of three: what ends in this process meanwhile, such as another test's server, leaves some too.
            assert min(left(50) for _ in range(3)) < 50
