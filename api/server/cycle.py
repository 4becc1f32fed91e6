"""A request and its response: uvicorn's cycle, with one system call for a response instead of two."""

import asyncio
from collections.abc import Sequence
from typing import Any

from api.server.internals import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_BODILESS = frozenset({204, 304})  # RFC 9110, sections 15.3.5 and 15.4.5


class CountingProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a count of the bytes that its cycles have written."""

    written = 0


class Cycle(RequestResponseCycle):
    """RequestResponseCycle that joins head and body, and checks a head as a whole.

    uvicorn writes head and body apart, and uvloop sends each write at once: two system calls, a fifth of the cost of a
    small request. uvicorn also searches each header's name and value by a regular expression, which costs more than all
    the rest of writing a head. Here the names are ours, in lower case as ASGI requires. Of values only line breaks are
    refused: they would let a client add a header of its own.
    """

    # What every request begins with is on the class: uvicorn's __init__ takes twice as long.
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    _head = b""
    """Held back, to be written with the start of the body."""
    _is_stream = False
    """The body has an unknown length."""
    _refusal = b""
    """The response to a request whose body is invalid."""
    task: asyncio.Task[None] | None = None
    """Runs this request: None before that and afterwards."""

    def __init__(self, protocol: CountingProtocol, *, keep_alive: bool) -> None:
        self._protocol = protocol
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.default_headers = protocol.server_state.default_headers
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.message_event = asyncio.Event()
        self.keep_alive = keep_alive
        self.body = bytearray()

    async def run_asgi(self, app: Any) -> None:
        """Run the application. If it fails before its response starts, that is a 500, else the connection ends."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                self.logger.error("The application returned before its response was complete")
                await self._fail()
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            await self._fail()
        finally:
            # A callback of the task, as uvicorn has it, would cost the event loop one more turn.
            self._protocol.tasks.discard(self.task)
            # The task's context leads back here. Only the garbage collector would find the two, in a pause of many ms.
            self.task = None

    async def _fail(self) -> None:
        if self.response_started:
            self.transport.close()
        else:
            await self.send_500_response()

    def break_off(self, refusal: bytes) -> None:
        """End the body, which is invalid from here on, and the connection after the response.

        The response is `refusal` if the application reads on. If it does not, it has processed the request.
        """
        self._refusal = refusal
        self.keep_alive = False
        self.message_event.set()

    async def receive(self) -> Any:
        """Wait for a piece of the body, or the end of the request (ASGI)."""
        message = await super().receive()
        if self._refusal and message.get("more_body"):
            self.disconnected = True
            if not self.response_started:
                self.transport.write(self._refusal)
            self.transport.close()
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Any) -> None:
        """Send a part of the response (ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html).

        Raises RuntimeError if the application breaks that protocol, or its own Content-Length.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self.response_started:
            if self.waiting_for_100_continue:
                # The client may send the body all the same, or its next request instead (RFC 9110, section 10.1.1).
                self.waiting_for_100_continue = self.keep_alive = False
            self._send_head(message["status"], [*self.default_headers, *message.get("headers", ())])
            self.response_started = True
            if "body" in message:  # START_WITH_BODY
                self._send_body(message["body"], False)
        else:
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}")

    def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        fields = dict(headers)
        length = fields.get(b"content-length")
        self._is_stream = length is None and status not in _BODILESS and self.scope["method"] != "HEAD"
        # HTTP/1.0 has no chunked encoding: there the end of the connection ends the body.
        self.chunked_encoding = is_chunked = self._is_stream and self.scope["http_version"] == "1.1"
        if fields.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        if is_chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        self._head = render_head(status, headers)
        self.expected_content_length = int(length or 0) if self.scope["method"] != "HEAD" else 0
        if self._is_stream:  # Its first chunk may come much later.
            self._write(b"")

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if not self.response_started or self.response_complete:
            raise RuntimeError("A body before its head, or after its end")
        if self.chunked_encoding:
            chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            self._write(chunk if more_body else chunk + b"0\r\n\r\n")
        elif self.scope["method"] == "HEAD":
            self._write(b"")
        else:
            self.expected_content_length -= len(body)
            is_wrong = self.expected_content_length < 0 or (self.expected_content_length and not more_body)
            if is_wrong and not self._is_stream:
                raise RuntimeError("The body is not as long as its Content-Length")
            self._write(body)
        if not more_body:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self._protocol.on_response_complete()

    def _write(self, data: bytes) -> None:
        if data := self._head + data:
            self._head = b""
            self._protocol.written += len(data)
            self.transport.write(data)


def render_head(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head of a response. Raises RuntimeError if a header contains a line break."""
    text = b"\r\n".join([b": ".join(header) for header in headers])
    if text.count(b"\n") != len(headers) - 1 or text.count(b"\r") != len(headers) - 1:
        raise RuntimeError("A line break in a header")
    return b"%s%s\r\n\r\n" % (STATUS_LINE[status], text)
