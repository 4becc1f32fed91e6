"""Graceful shutdown of one process: it drains without losing a request, within a time limit.

With several workers the supervisor gets SIGTERM first, and passes it on over a pipe (supervisor.py).
"""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType

import uvicorn

from api.server.sharing import Listener, Share
from api.service.probes import DRAINING

logger = logging.getLogger("api.lifecycle")

_CONNECTION_CLOSE = (b"connection", b"close")
_CLOSE_SECONDS = 2.0
"""The part of GRACE_SECONDS that is reserved for closing the pool."""


class Server(uvicorn.Server):
    """uvicorn's server, with a delay in which it drains before it closes.

    uvicorn closes its listening socket and every idle connection at once, and requests on their way to either are lost.
    Here a signal starts a delay of `drain_seconds` in which every request is served. Each response has
    `Connection: close`, so clients open another connection. A load balancer routes it elsewhere, since /ready is 503.
    Then uvicorn closes. Requests in flight have until `grace_seconds` after the signal.

    - SIGTERM does that. Without a supervisor so does SIGHUP, which would kill the process otherwise.
    - SIGINT (Ctrl-C) skips the delay. A second one does not wait for requests in flight.

    `parent` is a worker's end of the pipe to its supervisor. The worker reports by its `grace_seconds` that it serves,
    receives signals as bytes, and stops when the other end closes. SIGHUP from there means that a successor serves: the
    worker stops accepting connections at once, and /ready stays as it is, since the service continues.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_seconds: float,
        grace_seconds: float,
        parent: Connection | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._parent = parent
        self._share = share
        self._has_successor = False
        self._skips_delay = False
        self._draining_since: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that uvicorn handles, and those of the class."""
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
                if self._parent is None:
                    signal.signal(signal.SIGHUP, self.handle_exit)
                else:  # Its supervisor passes on what a terminal sends to every process.
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Record a signal. Unlike uvicorn, do not raise it again at the end: a graceful stop exits with 0."""
        if sig == signal.SIGINT:
            self.force_exit = self._skips_delay
            self._skips_delay = True
        elif self._parent is not None and not self.should_exit:
            self._has_successor = sig == signal.SIGHUP
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, and report it to the supervisor."""
        if self._share is None or sockets is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._listen(sockets, self._share)
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent.fileno(), self._receive_signal, self._parent)
            with suppress(OSError):  # It has exited already: the reader is about to notice.
                self._parent.send_bytes(b"%f" % self._grace_seconds)

    def _listen(self, sockets: list[socket.socket], share: Share) -> None:
        protocol = partial(
            self.config.http_protocol_class,  # type: ignore[call-arg] # as uvicorn calls it
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        connections = self.server_state.connections
        for sock in sockets:
            listener = Listener(sock, protocol, share, connections, self.config.backlog)
            self.servers.append(listener)  # type: ignore[arg-type] # uvicorn only closes them.

    def _receive_signal(self, parent: Connection) -> None:
        try:
            (sig,) = parent.recv_bytes()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(parent.fileno())
            if not self.should_exit:
                logger.warning("the supervisor is gone: this worker stops")
            sig = signal.SIGTERM
        self.handle_exit(sig, None)

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's periodic work, ten times a second. Returns True when it is time to close."""
        if self._share is not None and not self._has_successor:
            self._share.write(len(self.server_state.connections))
        if not await super().on_tick(counter):
            return False
        return self._skips_delay or time.monotonic() >= self._start_draining() + self._drain_seconds

    def _start_draining(self) -> float:
        """Start to drain, once. Returns the time at which draining started."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            # The second is in every response; once a second uvicorn makes it from the first.
            self.config.encoded_headers.append(_CONNECTION_CLOSE)
            self.server_state.default_headers.append(_CONNECTION_CLOSE)
            if self._has_successor:
                for server in self.servers:
                    server.close()
            else:
                self.lifespan.state[DRAINING] = True
                if not self._skips_delay:
                    logger.info("draining: requests are served for %g s more, and /ready is 503", self._drain_seconds)
        return self._draining_since

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close, within what is left of GRACE_SECONDS."""
        left = max(0.0, self._start_draining() + self._grace_seconds - time.monotonic())
        # uvicorn declares whole seconds, and hands them to asyncio, which takes fractions too.
        self.config.timeout_graceful_shutdown = max(0.0, left - _CLOSE_SECONDS)  # type: ignore[assignment]
        try:
            async with asyncio.timeout(left):
                await super().shutdown(sockets)
        except TimeoutError:
            logger.warning("GRACE_SECONDS is over: the connections to the database are cut off")
