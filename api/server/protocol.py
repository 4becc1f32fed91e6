"""uvicorn's HTTP protocol with limits on what a client can make the server hold, and less work for each request."""

import asyncio
import re
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools

from api.context import DISCONNECTED
from api.errors import Problem, to_response
from api.http.headers import SECURITY_HEADERS
from api.http.request import fields_of
from api.http.response import START_WITH_BODY
from api.server.cycle import Cycle, render_head
from api.server.head import check_framing, parse_target
from api.server.progress import TimedProtocol

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 64

_SLICE_BYTES = 2 * 1024  # at most as much is parsed before the bounds are checked, however much came at once
_SLASH, _FRAGMENT = b"/#"
_EXTENSIONS: dict[str, dict[str, Any]] = {START_WITH_BODY: {}}
_ENCODED_SLASH = re.compile("%(2[Ff])")


class HTTPProtocol(TimedProtocol):
    """HttpToolsProtocol with limits, a timer for slow clients (TimedProtocol), and a Cycle.

    Neither uvicorn nor llhttp, its parser, limits the size of a head, the number of its fields, or how many requests
    queue behind the one in flight. Both wait for ever for the rest of a request, or for a client to read. Here:

    - A head has at most MAX_HEAD_BYTES and MAX_HEADERS fields, else the response is 431. MAX_HEAD_BYTES also bounds
      trailers and chunk extensions, to within two slices. Trailers are not taken for fields of the head.
    - At most MAX_PIPELINED requests queue. Those behind them are not read, and the last response has
      `Connection: close`.
    - A request that cannot be parsed gets a problem as its response. If earlier requests are still in flight, the
      connection closes behind their responses instead. If a body cannot be parsed, the request gets the problem when
      it reads on; one that never does has its own response, since what it did is done.

    llhttp stops parsing behind a head with `Upgrade`, and uvicorn drops what follows, or reads it as the next request.
    Here such a request is served in HTTP/1.1 like any other, with its body (RFC 9110, section 7.8).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # No path is a WebSocket, whatever is installed.
        self._parsed = 0  # bytes received up to the last complete head or piece of a body
        self._framing: tuple[object, ...] = ()  # the version, Host and Transfer-Encoding that were found valid last
        self._is_closing = False  # input is ignored: the connection closes after the pending responses
        self._problem: Problem | None = None
        self._running: Cycle | None = None  # in flight, or the last that was: others queue behind it

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark the request in flight as disconnected."""
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
        if len(data) <= _SLICE_BYTES:
            self._feed(data)
        else:
            for start in range(0, len(data), _SLICE_BYTES):
                self._feed(data[start : start + _SLICE_BYTES])
                if self._is_closing:
                    return

    def _feed(self, data: bytes) -> None:
        self._received += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    data = b""
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._decline_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._refuse(self._problem or Problem(400, "This is no HTTP request"))
        if self._received - self._parsed > MAX_HEAD_BYTES and not self._is_closing:
            self._refuse(_too_large())

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
        # The head is measured only if enough bytes came since the last one for it to be too large.
        if len(self.headers) > MAX_HEADERS or (
            self._received - self._parsed > MAX_HEAD_BYTES - _SLICE_BYTES and self._head_bytes() > MAX_HEAD_BYTES
        ):
            self._reject(_too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are queued")
        self._parsed = self._received
        self._begin()
        self.headers = []  # The request has its own list; the fields that follow are trailers.

    def _begin(self) -> None:
        """Start the request, or queue it: uvicorn's on_headers_complete without the parts that we never use."""
        parser = self.parser
        scope: Any = self.scope
        version, method, target = parser.get_http_version(), parser.get_method(), self.url
        raw_path, _, query = target.partition(b"?")
        fields = fields_of(scope)
        framing = version, fields.get(b"host"), fields.get(b"transfer-encoding")
        try:
            # Most requests of a connection have the same fields as the one before.
            if framing != self._framing or len(fields) < len(self.headers):
                check_framing(version, self.headers)
                self._framing = framing
            if target[0] != _SLASH or _FRAGMENT in target:
                raw_path, query = parse_target(method, target)
        except Problem as problem:
            self._reject(problem)
        if version != "1.1":
            scope["http_version"] = version
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        scope["method"] = method.decode("ascii")
        scope["raw_path"] = raw_path
        path = raw_path.decode("ascii")
        # An encoded slash is a character of its segment, and separates none (RFC 3986, section 2.2).
        scope["path"] = unquote(_ENCODED_SLASH.sub(r"%25\1", path)) if "%" in path else path
        scope["query_string"] = query
        scope["extensions"] = _EXTENSIONS
        before = self.cycle
        self.cycle = Cycle(self, keep_alive=version != "1.0" and parser.should_keep_alive())
        if before is None or before.response_complete:
            self._start(self.cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start(self, cycle: Cycle) -> None:
        self._running = cycle
        cycle.task = self.loop.create_task(cycle.run_asgi(self.app))
        self.tasks.add(cycle.task)

    def on_response_complete(self) -> None:
        """Start the next request, or the keep-alive time. One timer for each response would cost 1.4 µs."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start(self.pipeline.pop()[0])  # type: ignore[arg-type] # every cycle is ours
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
        if not self.parser.should_upgrade():
            self.cycle.more_body = False
            self.cycle.message_event.set()
            if self.headers and not self.parser.should_keep_alive():
                self.cycle.keep_alive = False  # A trailer `Connection: close` makes llhttp ignore what follows.
            if self.cycle.response_complete:
                self._idle_since = self.loop.time()

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
        newest: Any = self.cycle
        if newest is None or (newest.response_complete and not newest.more_body):
            self.transport.write(self._render(problem))
            self.transport.close()
        elif newest.response_complete:
            self.transport.close()  # The invalid body belongs to a request that has its response.
        elif not newest.more_body:
            newest.keep_alive = False
        elif self.pipeline:
            # The invalid request is queued: it never starts, and the connection closes after the others.
            self.pipeline.popleft()
            newest.more_body = False
            self.timeout_keep_alive = 0
        elif newest.task is not None and _is_new(newest.task):
            newest.task.cancel()  # Head and invalid body came at once: the request never starts.
            self.tasks.discard(newest.task)
            newest.task = None
            self.transport.write(self._render(problem))
            self.transport.close()
        else:
            newest.break_off(self._render(problem))

    def _render(self, problem: Problem) -> bytes:
        response = to_response(problem)
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            *SECURITY_HEADERS,
            (b"connection", b"close"),
        ]
        return render_head(problem.status, headers) + response.body


def _is_new(task: asyncio.Task[None]) -> bool:
    return getcoroutinestate(task.get_coro()) == CORO_CREATED  # type: ignore[arg-type]


def _too_large() -> Problem:
    return Problem(431, f"The head of a request has at most {MAX_HEADERS} fields and {MAX_HEAD_BYTES} bytes")
