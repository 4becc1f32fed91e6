"""Bounds of a connection: heads, trailers, pipelining, time. Over sockets, since HTTP clients never misbehave."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from api.server.progress import MIN_BYTES
from api.server.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, HTTPProtocol
from tests.support.serving import live, serve
from tests.support.simulated import simulate
from tests.support.sockets import connected, exchange, read_all
from tests.support.waiting import wait_until

GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


may_answer = threading.Event()
"""What /patient waits for."""
served: list[str] = []
"""The paths of the requests that reached the application."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path, the header fields and the body's length; /deaf answers without reading the body."""
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    served.append(scope["path"])
    if scope["path"] == "/patient":
        await asyncio.to_thread(may_answer.wait, 30)
    length, more = 0, scope["path"] not in ("/deaf", "/patient")
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    fields = [[name.decode(), value.decode("latin-1")[:20]] for name, value in scope["headers"]]
    body = orjson.dumps({"path": scope["path"], "fields": fields, "length": length})
    body += b" " * (2_000_000 if scope["path"] == "/large" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Impatient(HTTPProtocol):
    """Check the connections for timeouts every second, so that tests need not wait."""

    period = 1.0  # within which the first byte of each test's request has to come

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = 60  # None is closed because it was idle while others were waited for.


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serve(app) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield host, int(port)


@pytest.fixture(scope="module")
def impatient_address() -> Iterator[tuple[str, int]]:
    with serve(app, http=Impatient) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield host, int(port)


def answered(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert b"x-content-type-options: nosniff" in head
    found: dict[str, object] = orjson.loads(body)
    return found


def head(*fields: bytes, path: bytes = b"/1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([b"%s %s HTTP/1.1" % (method, path), b"host: x", b"connection: close", *fields, b"", b""])


def test_as_many_fields_as_allowed(address: tuple[str, int]) -> None:
    fields = [b"x-%d: 1" % number for number in range(MAX_HEADERS - 2)]
    assert answered(exchange(address, head(*fields))) == [200]
    answer = exchange(address, head(*fields, b"one: more"))
    assert answered(answer) == [431]
    assert problem(answer)["title"] == "Request Header Fields Too Large"


@pytest.mark.parametrize("where", ["one field", "many fields", "the path"])
def test_as_large_a_head_as_allowed(address: tuple[str, int], where: str) -> None:
    def of(size: int) -> bytes:
        if where == "one field":
            return head(b"x: " + b"y" * size)
        if where == "many fields":
            return head(*[b"x: " + b"y" * (size // 90)] * 90)
        return head(path=b"/" + b"y" * size)

    assert answered(exchange(address, of(MAX_HEAD_BYTES - 1000))) == [200]
    assert answered(exchange(address, of(MAX_HEAD_BYTES + 1000))) == [431]


def test_a_large_head_is_refused_behind_others_that_came_with_it(address: tuple[str, int]) -> None:
    """What came before it is answered, and it ends the connection."""
    sent = GET % 1 + head(b"x: " + b"y" * (MAX_HEAD_BYTES + 1000), path=b"/2")
    assert b'"path":"/1"' in (answer := exchange(address, sent))
    assert b'"path":"/2"' not in answer


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"GET /", id="a path without end"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\nx: ", id="a field without end"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="a name without end"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ", id="trailers"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;", id="a chunk's extension"),
    ],
)
def test_what_never_ends_is_refused(address: tuple[str, int], begun: bytes) -> None:
    with connected(address, begun) as connection:
        sent, much = 0, 1000 * MAX_HEAD_BYTES  # more than the buffers of both ends take while the server has not looked
        try:
            while sent < much:
                sent += connection.send(b"y" * 4096)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < much, "it took it all"


def test_a_head_without_end_is_told(address: tuple[str, int]) -> None:
    assert answered(exchange(address, b"GET / HTTP/1.1\r\nhost: x\r\nx: ", *[b"y" * 1024] * 33)) == [431]


def test_trailers_are_no_fields_of_the_head(address: tuple[str, int]) -> None:
    body = b"1\r\na\r\n0\r\nauthorization: Bearer x\r\nif-match: *\r\n\r\n"
    answer = exchange(address, head(b"transfer-encoding: chunked", method=b"POST") + body)
    fields = orjson.loads(answer.partition(b"\r\n\r\n")[2])["fields"]
    assert [name for name, _ in fields] == ["host", "connection", "transfer-encoding"]


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"]
)
def test_what_is_no_http_is_a_problem(address: tuple[str, int], sent: bytes) -> None:
    answer = exchange(address, sent)
    assert answered(answer) == [400]
    assert problem(answer)["status"] == 400


def test_what_is_no_http_waits_for_its_turn(address: tuple[str, int]) -> None:
    answer = exchange(address, GET % 1 + GET % 2 + b"nonsense\r\n\r\n")
    assert answered(answer) == [200, 200]
    assert b"connection: close" in answer


def test_pipelined_requests_are_answered_in_order_and_bounded(address: tuple[str, int]) -> None:
    """One is under way and MAX_PIPELINED queue; what is behind them is never answered, and the client is told."""
    answer = exchange(address, b"".join(GET % number for number in range(1000)))
    assert [int(part.partition(b'"')[0]) for part in answer.split(b'"path":"/')[1:]] == list(range(MAX_PIPELINED + 1))
    assert answer.count(b"connection: close") == 1
    assert b"connection: close" in answer.rpartition(b"HTTP/1.1")[2]


def test_as_many_pipelined_requests_as_allowed(address: tuple[str, int]) -> None:
    answer = exchange(address, b"".join(GET % number for number in range(MAX_PIPELINED)) + head(path=b"/last"))
    assert answered(answer) == [200] * (MAX_PIPELINED + 1)


def test_what_cannot_be_read_does_not_cost_the_answers_before_it(address: tuple[str, int]) -> None:
    """Its body does not go on as it should, and it is read while the one before it is answered."""
    broken = b"POST /2 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n"
    assert answered(exchange(address, GET % 1 + broken)) == [200]
    assert answered(exchange(address, broken)) == [400]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET http://x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"CONNECT /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 400),
    ],
)
def test_who_is_asked_and_in_which_protocol(address: tuple[str, int], sent: bytes, status: int) -> None:
    answer = exchange(address, sent)
    assert answered(answer) == [status]
    if status == 400:
        problem(answer)


CHUNKED = b"transfer-encoding: chunked"
BROKEN = {
    "another coding": head(b"transfer-encoding: identity", path=b"/deaf"),
    "two codings": head(b"transfer-encoding: gzip, chunked", path=b"/deaf") + b"0\r\n\r\n",
    "no chunk": head(CHUNKED, path=b"/deaf") + b"nonsense\r\n",
    "no trailer": head(CHUNKED, path=b"/deaf") + b"0\r\nnonsense\r\n\r\n",
    "too many trailers": head(CHUNKED, path=b"/deaf") + b"0\r\n" + b"x: %s\r\n" % (b"y" * 1000) * 40 + b"\r\n",
    "a large extension": head(CHUNKED, path=b"/deaf") + b"1;" + b"y" * 40_000 + b"\r\na\r\n0\r\n\r\n",
    "no host": b"GET /deaf HTTP/1.1\r\nhost: a b\r\n\r\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_request_that_is_refused_is_not_served(address: tuple[str, int], case: str) -> None:
    """Its head and what is wrong came at once."""
    served.clear()
    status = 501 if "coding" in case else 431 if "large" in case or "many" in case else 400
    answer = exchange(address, BROKEN[case])
    assert answered(answer) == [status]
    problem(answer)
    assert served == []


@pytest.mark.parametrize("rest", [b"nonsense\r\n", b"1;" + b"y" * 40_000])
def test_a_request_that_was_served_before_its_body_broke_has_its_own_answer(
    address: tuple[str, int], rest: bytes
) -> None:
    """No other answer follows, which would be taken for that to the next request."""
    with connected(address, b"POST /deaf HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n") as connection:
        answer = connection.recv(1 << 16)
        connection.sendall(rest)
        assert answered(answer + read_all(connection)) == [200]


@pytest.mark.parametrize(("path", "statuses"), [(b"/1", [400]), (b"/patient", [200])])
def test_a_body_that_breaks_is_told_to_who_reads_it(address: tuple[str, int], path: bytes, statuses: list[int]) -> None:
    """A request that never reads on has done what it was to do: its own answer says so, and ends the connection."""
    served.clear()
    may_answer.clear()
    begun = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n" % path
    with connected(address, begun) as connection:
        wait_until(lambda: served)
        connection.sendall(b"nonsense\r\n")
        exchange(address, head())  # The server has read what came before.
        may_answer.set()
        answer = read_all(connection)
    assert answered(answer) == statuses
    assert b"connection: close" in answer


def test_http_1_0_does_not_wait_for_a_100(address: tuple[str, int]) -> None:
    sent = b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\na"
    assert answered(exchange(address, sent)) == [200]


UPGRADE = b"POST /%d HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
SIZED = UPGRADE + b"content-length: 29\r\n\r\n" + b"DELETE /9 HTTP/1.1\r\nhost: x\r\n"[:29]
CHUNKED = UPGRADE + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1a\r\n" + b"GET /9 HTTP/1.1\r\nhost: x\r\n"[:26]
CHUNKED += b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("pieces", ["one", "head and body", "bytes"])
def test_an_upgrade_is_not_taken_up_and_its_body_is_read(address: tuple[str, int], pieces: str) -> None:
    """As curl --http2 sends it, and Java. What follows its head is no other protocol, and no other request."""
    sent = [SIZED % 1, SIZED % 2, CHUNKED % 3, GET % 4, head(b"upgrade: websocket", path=b"/5")]
    if pieces == "one":
        sent = [b"".join(sent)]
    elif pieces == "head and body":
        sent = [part for each in sent for part in each.partition(b"\r\n\r\n") if part]
    else:
        sent = [b"%c" % byte for byte in b"".join(sent)]
    answer = exchange(address, *sent)
    found = [orjson.loads(body.partition(b"\r\n\r\n")[2]) for body in answer.split(b"HTTP/1.1 200")[1:]]
    assert [(each["path"], each["length"]) for each in found] == [
        ("/1", 29),
        ("/2", 29),
        ("/3", 29),
        ("/4", 0),
        ("/5", 0),
    ]
    assert all(["upgrade", "h2c"] not in each["fields"] for each in found)


# What takes too long. Each ends when the server closes the connection; how soon is not asked.


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([b"GET"], [408], id="half a head"),
        pytest.param([GET % 1, b"GET / HTTP/1.1\r\nhost: x\r\nx: "], [200, 408], id="half a second head"),
        pytest.param([b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"], [], id="half a body"),
        pytest.param([b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"], [], id="no chunk"),
        pytest.param(
            [b"POST /deaf HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", b"half"], [200], id="a body nobody wants"
        ),
    ],
)
def test_a_client_that_does_not_go_on(
    impatient_address: tuple[str, int], sent: list[bytes], statuses: list[int]
) -> None:
    with connected(impatient_address) as connection:
        answer = b""
        for piece in sent:
            connection.sendall(piece)
            if piece.startswith((GET % 1, b"POST /deaf")):
                answer += connection.recv(1 << 16)
        assert answered(answer + read_all(connection)) == statuses


def test_a_client_that_sends_a_byte_now_and_then(impatient_address: tuple[str, int]) -> None:
    with connected(impatient_address, b"GET / HTTP/1.1\r\nhost: x\r\nx: ") as connection:
        connection.settimeout(0.05)
        for _ in range(600):
            try:
                if answer := connection.recv(1 << 16):
                    assert answered(answer) == [408]
                    break
                raise AssertionError("closed without a word")
            except TimeoutError:
                connection.sendall(b"y")
        else:
            raise AssertionError("it was waited for")


def test_a_client_that_does_not_read(impatient_address: tuple[str, int]) -> None:
    """Its answer fills the socket's buffers; after that nothing moves, and the connection is aborted."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(impatient_address)
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 8)
        # The end shows in that nothing can be sent any more, without reading.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            _send_for_ever(connection)


def _send_for_ever(connection: socket.socket, piece: bytes = b"x") -> None:
    while True:
        connection.sendall(piece)
        time.sleep(0.02)


def test_an_ordinary_client_is_not_disturbed(impatient_address: tuple[str, int]) -> None:
    """It comes back after many looks at its connection, in which it was idle, and is served."""
    with connected(impatient_address) as connection:
        connection.sendall(GET % 1)
        assert answered(connection.recv(1 << 16)) == [200]
        # Another connection's end says that more than one period has passed.
        assert answered(exchange(impatient_address, b"GET")) == [408]
        assert answered(exchange(impatient_address, b"GET")) == [408]
        connection.sendall(GET % 2)
        assert answered(connection.recv(1 << 16)) == [200]


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", id="a body"),
        pytest.param(b"POST /deaf HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", id="an answered body"),
    ],
)
def test_a_body_that_trickles(impatient_address: tuple[str, int], begun: bytes) -> None:
    with connected(impatient_address, begun) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        _send_for_ever(connection, b"x" * 100)


def test_the_rest_of_an_answered_body_has_one_period_however_fast_it_comes(impatient_address: tuple[str, int]) -> None:
    begun = b"POST /deaf HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
    with connected(impatient_address, begun) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        _send_for_ever(connection, b"x" * 65536)


def test_a_body_that_comes_fast_enough(impatient_address: tuple[str, int]) -> None:
    """Enough comes in each period, however long the whole takes."""
    size = 12 * MIN_BYTES  # several times as fast as it has to be, on a machine that others load
    sent = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size
    with connected(impatient_address, sent) as connection:
        for _ in range(60):
            time.sleep(0.04)
            connection.sendall(b"x" * (size // 60))
        answer = read_all(connection)
    assert answered(answer) == [200]
    assert b'"length":%d' % size in answer


def test_a_period_is_no_two() -> None:
    """From the last byte, whenever the connection is looked at."""

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app, log_config=None)
        config.load()
        ours, its = socket.socketpair()
        with ours:
            protocol = Impatient(config=config, server_state=ServerState(), app_state={})
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, its)
            await asyncio.sleep(0.1)
            began = loop.time()
            ours.sendall(b"GET")
            while not transport.is_closing():  # noqa: ASYNC110 - a transport has no event for it
                await asyncio.sleep(0.01)
            assert Impatient.period <= loop.time() - began < 1.3 * Impatient.period
            await asyncio.sleep(0)  # in which it closes
            assert answered(read_all(ours)) == [408]

    simulate(talk())


def test_a_connection_is_idle_once_the_rest_of_an_answered_body_has_come(impatient_address: tuple[str, int]) -> None:
    with connected(impatient_address, b"POST /deaf HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n") as connection:
        assert answered(connection.recv(1 << 16)) == [200]
        connection.sendall(b"x" * 9)
        time.sleep(1.5 * Impatient.period)
        connection.sendall(head())
        assert answered(read_all(connection)) == [200]


def test_a_refusal_before_a_body_that_was_not_asked_for_ends_the_connection(address: tuple[str, int]) -> None:
    """The client may send the body, or its next request (RFC 9110, section 10.1.1)."""
    sent = b"POST /deaf HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 33\r\n\r\n"
    answer = exchange(address, sent)
    assert answered(answer) == [200]
    assert b"connection: close" in answer


def test_a_trailer_that_ends_the_connection_does(address: tuple[str, int]) -> None:
    sent = b"POST /1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nconnection: close\r\n\r\n"
    answer = exchange(address, sent + GET % 2)
    assert answered(answer) == [200]
    assert b"connection: close" in answer
