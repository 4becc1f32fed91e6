"""uvicorn's HTTP protocol with limits on what a client can make the server hold, and less work for each request."""

import asyncio
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools

from api.context import DISCONNECTED
from api.errors import Problem, to_response
from api.http.headers import SECURITY_HEADERS
from api.server.cycle import CountingProtocol, Cycle, render_head
from api.server.internals import RequestResponseCycle

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 64
PERIOD_SECONDS = 30.0
MIN_BYTES = 1024


class HTTPProtocol(CountingProtocol):
    """HttpToolsProtocol with limits, one timer for a connection instead of one for each request, and a Cycle.

    Neither uvicorn nor llhttp, its parser, limits the size of a head, the number of its fields, or how many requests
    queue behind the one in flight. Both wait for ever for the rest of a request, or for a client to read. Here:

    - A head has at most MAX_HEAD_BYTES and MAX_HEADERS fields, else the response is 431. MAX_HEAD_BYTES also bounds
      trailers and chunk extensions. Trailers are not taken for fields of the head.
    - At most MAX_PIPELINED requests queue. Those behind them are not read, and the last response has
      `Connection: close`.
    - In every `period` (seconds) at least MIN_BYTES of a request must arrive; the first byte of a connection within
      one. Then the client must read at least some of the response. Otherwise the connection is closed. Between
      requests uvicorn's keep-alive timeout applies instead; it is at least `period`.
    - A request that cannot be parsed gets a problem as its response. If earlier requests are still in flight, the
      connection closes behind their responses instead.

    llhttp stops parsing behind a head with `Upgrade`, and uvicorn drops what follows, or reads it as the next request.
    Here such a request is served in HTTP/1.1 like any other, with its body (RFC 9110, section 7.8).
    """

    period = PERIOD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # No path is a WebSocket, whatever is installed.
        self._received = 0  # bytes
        self._parsed = 0  # of those, up to the last complete head or piece of a body
        self._latest = 0  # bytes of the last call
        self._is_closing = False  # input is ignored: the connection closes after the pending responses
        self._problem: Problem | None = None
        self._progress: tuple[Any, int, int] = (None, 0, 0)  # request, bytes received and sent at the last check
        self._running: RequestResponseCycle | None = None  # in flight, or the last that was: others queue behind it
        self._idle_since: float | None = None  # when the last response was complete, None once more bytes came
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer of a new connection."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.period, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and mark the request in flight as disconnected."""
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None and not self._running.response_complete:
            # uvicorn marks only the newest request, which is another one if requests queue.
            self._running.disconnected = True
            self._running.scope["state"][DISCONNECTED] = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse a head that is too large."""
        if self._is_closing:
            return
        self._idle_since = None
        self._latest = len(data)
        self._received += self._latest
        self._feed(data)
        if self._received - self._parsed > MAX_HEAD_BYTES and not self._is_closing:
            self._refuse(_too_large())

    def _feed(self, data: bytes) -> None:
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    data = b""
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._decline_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._refuse(self._problem or Problem(400, "This is no HTTP request"))

    def _decline_upgrade(self) -> bytes:
        """Return the head of the last request without its Upgrade, for a new parser, which then reads the body."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join([*lines, b"", b""])

    def on_headers_complete(self) -> None:
        """Accept the request, unless its head is too large or too many are queued."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._reject(Problem(400, "This server is no proxy"))
            return  # _feed parses the head again.
        # The head is measured only if enough bytes came, at once or since the last head, for it to be too large.
        if len(self.headers) > MAX_HEADERS or (
            (self._latest > MAX_HEAD_BYTES or self._received - self._parsed > MAX_HEAD_BYTES)
            and self._head_bytes() > MAX_HEAD_BYTES
        ):
            self._reject(_too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are queued")
        self._parsed = self._received
        self._begin()
        self.headers = []  # The request has its own list; the fields that follow are trailers.

    def _begin(self) -> None:
        """Start the request, or queue it: uvicorn's on_headers_complete without the parts that we never use."""
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                self._reject(Problem(400, "This server speaks HTTP/1.1"))
            scope["http_version"] = version
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        # RFC 9112, section 3.2. A proxy in front may have chosen a different one of several.
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._reject(Problem(400, "A request has one Host field"))
        scope["method"] = parser.get_method().decode("ascii")
        url = httptools.parse_url(self.url)
        scope["raw_path"] = raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Cycle(self, keep_alive=version != "1.0" and parser.should_keep_alive())
        if before is None or before.response_complete:
            self._running = self.cycle
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_response_complete(self) -> None:
        """Start the next request, or the keep-alive time. One timer for each response would cost 1.4 µs."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
        elif not self.timeout_keep_alive:
            self.transport.close()
        else:
            self._idle_since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """Receive a piece of a body."""
        self._parsed = self._received
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body: uvicorn's method without the parts that we never use."""
        if not self.parser.should_upgrade() and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def shutdown(self) -> None:
        """Close the connection when it is idle. A head that has begun to arrive is still served; uvicorn drops it."""
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):
            super().shutdown()
        else:
            self.timeout_keep_alive = 0

    def _reject(self, problem: Problem) -> NoReturn:
        """Stop the parser; _feed then refuses the request with `problem`. Raises ValueError."""
        self._problem = problem
        raise ValueError(problem.detail)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, problem: Problem) -> None:
        """Ignore further input, send the pending responses, and close the connection."""
        self._is_closing = True
        newest = self.cycle
        if newest is not None and not newest.response_complete:
            if not newest.more_body:
                newest.keep_alive = False
                return
            if self.pipeline:
                # The invalid request is queued: it never starts, and the connection closes after the others.
                self.pipeline.popleft()
                newest.more_body = False
                self.timeout_keep_alive = 0
                return
            if newest.response_started:
                self.transport.close()  # It is too late for another response.
                return
        response = to_response(problem)
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            *SECURITY_HEADERS,
            (b"connection", b"close"),
        ]
        self.transport.write(render_head(problem.status, headers) + response.body)
        self.transport.close()

    def _check_progress(self) -> None:
        """Close the connection if the client has sent or read too little since the last check."""
        cycle = self.cycle
        # The server waits for input: no handler runs and the connection is not idle, or a handler waits for a body.
        waiting = self._idle_since is None and (
            cycle is None or cycle.response_complete or (cycle.more_body and not self.flow.read_paused)
        )
        unsent = self.transport.get_write_buffer_size()
        sent = self.written - unsent
        request, received_before, sent_before = self._progress
        # Many clients read nothing before they have sent their whole body, while an import responds already.
        sends = cycle is not None and cycle.more_body and self._received - received_before >= MIN_BYTES
        if unsent and sent == sent_before and not sends:
            self.transport.abort()
        elif waiting and request is self.scope and self._received - received_before < MIN_BYTES:
            if self.scope is None or (cycle is not None and cycle.scope is self.scope):
                self.transport.close()
            else:
                self._refuse(Problem(408, "The request did not come in time"))
        self._progress = (self.scope if waiting else self, self._received, sent)
        rest = self.period
        if self._idle_since is not None:
            rest = min(rest, self._idle_since + self.timeout_keep_alive - self.loop.time())
            if rest <= 0:
                self.transport.close()
                rest = self.period
        self._timer = self.loop.call_later(rest, self._check_progress)


def _too_large() -> Problem:
    return Problem(431, f"The head of a request has at most {MAX_HEADERS} fields and {MAX_HEAD_BYTES} bytes")
