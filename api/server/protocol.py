"""uvicorn's HTTP protocol with limits on what a client can make it hold, and less to do for a request."""

import asyncio
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.errors import Problem, to_response
from api.http.headers import SECURITY_HEADERS
from api.server.cycle import CountingProtocol, Cycle, render_head

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 64
PERIOD_SECONDS = 30.0
MIN_BYTES = 1024


class HTTPProtocol(CountingProtocol):
    """HttpToolsProtocol with limits, one timer for a connection where it sets one for each request, and a Cycle.

    Neither uvicorn nor llhttp, its parser, limits the size of a head, the number of its fields, or how many requests
    queue behind the one under way; and they wait for ever for the rest of a request, or for a client to read. Here:

    - A head, and what else is no body (trailers, chunk extensions), has at most MAX_HEAD_BYTES, a head at most
      MAX_HEADERS fields: 431. Trailers are not taken for fields of the head.
    - At most MAX_PIPELINED requests queue. What comes behind them is not read; the last answer says
      `Connection: close`.
    - In every `period` (seconds) at least MIN_BYTES of a request come, a connection's first byte within one, and then
      at least something of an answer is taken. Else the connection ends. Between requests uvicorn's keep-alive time
      counts instead, which is not below `period`.
    - A request that cannot be read is answered by a problem, or, where others before it still wait for their answers,
      by the end of the connection behind those.

    llhttp leaves to whoever upgrades what follows a head with `Upgrade`, and uvicorn drops it, or reads it as the next
    request. Here such a request is served as any other, with its body, in HTTP/1.1 (RFC 9110, section 7.8).
    """

    period = PERIOD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # No path is a WebSocket, whatever is installed.
        self._received = 0  # bytes, in all
        self._read = 0  # those received that came until the last head or piece of a body was complete
        self._deaf = False  # nothing more is read: the connection ends after the answers that are due
        self._refusal: Problem | None = None
        self._chunk = 0  # those that came last
        self._seen: tuple[Any, int, int] = (None, 0, 0)  # request, bytes received and sent when last looked at
        self._running: RequestResponseCycle | None = None  # the one that is answered, or was: others wait behind it
        self._idle_since: float | None = None  # when the last answer was complete, None once more has come
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to look at a new connection."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.period, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells the newest request alone, which is not this one where others queue.
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse what does not end."""
        if self._deaf:
            return
        self._idle_since = None
        self._chunk = len(data)
        self._received += self._chunk
        self._feed(data)
        if self._received - self._read > MAX_HEAD_BYTES and not self._deaf:
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
            self._refuse(self._refusal or Problem(400, "This is no HTTP request"))

    def _decline_upgrade(self) -> bytes:
        """The head of the last request without its Upgrade, for a new parser, which then reads the body."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join([*lines, b"", b""])

    def on_headers_complete(self) -> None:
        """Take the request, unless its head is too large or too many are queued."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._give_up(Problem(400, "This server is no proxy"))
            return  # It comes once more: see _feed.
        # The head is measured only where so much came, at once or since the one before, that it may be too large.
        if len(self.headers) > MAX_HEADERS or (
            (self._chunk > MAX_HEAD_BYTES or self._received - self._read > MAX_HEAD_BYTES)
            and self._head_bytes() > MAX_HEAD_BYTES
        ):
            self._give_up(_too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are queued")
        self._read = self._received
        self._begin()
        self.headers = []  # The request has its own; what is still to come are trailers.

    def _begin(self) -> None:
        """Begin with the request, behind those before it: uvicorn's on_headers_complete without what we never use."""
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                self._give_up(Problem(400, "This server speaks HTTP/1.1"))
            scope["http_version"] = version
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        # RFC 9112, section 3.2: whoever is in front of us may have taken another one.
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._give_up(Problem(400, "A request has one Host field"))
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
        """Begin with the next request, or let the keep-alive time count. A timer for each answer would cost 1.4 µs."""
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
        """Note that the request goes on."""
        self._read = self._received
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that all of the request has come: uvicorn's without what we never use."""
        if not self.parser.should_upgrade() and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def shutdown(self) -> None:
        """End the connection: as uvicorn does, but behind a request whose head has begun to come, which it forgets."""
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):
            super().shutdown()
        else:
            self.timeout_keep_alive = 0

    def _give_up(self, problem: Problem) -> NoReturn:
        """Have the parser stop, and the client told why. Raises ValueError."""
        self._refusal = problem
        raise ValueError(problem.detail)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, problem: Problem) -> None:
        """Read nothing more, answer what is due, and end the connection."""
        self._deaf = True
        newest = self.cycle
        if newest is not None and not newest.response_complete:
            if not newest.more_body:
                newest.keep_alive = False
                return
            if self.pipeline:
                # The request at fault waits behind others: it never begins, and the connection ends behind those.
                self.pipeline.popleft()
                newest.more_body = False
                self.timeout_keep_alive = 0
                return
            if newest.response_started:
                self.transport.close()  # There is no place for an answer any more.
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

    def _look(self) -> None:
        """End the connection if the client has hardly moved since the last look."""
        cycle = self.cycle
        # We wait for the client where no handler runs and no keep-alive time either, or where a handler wants a body.
        waiting = self._idle_since is None and (
            cycle is None or cycle.response_complete or (cycle.more_body and not self.flow.read_paused)
        )
        unsent = self.transport.get_write_buffer_size()
        sent = self.written - unsent
        request, received_before, sent_before = self._seen
        # Many clients read nothing before they have sent their whole body: an import answers meanwhile.
        sends = cycle is not None and cycle.more_body and self._received - received_before >= MIN_BYTES
        if unsent and sent == sent_before and not sends:
            self.transport.abort()
        elif waiting and request is self.scope and self._received - received_before < MIN_BYTES:
            if self.scope is None or (cycle is not None and cycle.scope is self.scope):
                self.transport.close()
            else:
                self._refuse(Problem(408, "The request did not come in time"))
        self._seen = (self.scope if waiting else self, self._received, sent)
        rest = self.period
        if self._idle_since is not None:
            rest = min(rest, self._idle_since + self.timeout_keep_alive - self.loop.time())
            if rest <= 0:
                self.transport.close()
                rest = self.period
        self._timer = self.loop.call_later(rest, self._look)


def _too_large() -> Problem:
    return Problem(431, f"The head of a request has at most {MAX_HEADERS} fields and {MAX_HEAD_BYTES} bytes")
