"""How a process ends: nobody's request is lost, and it does not take for ever."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import FrameType

import uvicorn

from api.service.probes import DRAINING

logger = logging.getLogger("api.lifecycle")

_CONNECTION_CLOSE = (b"connection", b"close")
_CLOSE_SECONDS = 2.0
"""What is kept of the grace for closing the pool."""


class Server(uvicorn.Server):
    """uvicorn's server, which lets go of its clients before it closes.

    uvicorn closes its listening socket and every idle connection at once, and what is on its way to either is lost.
    Here a signal begins a delay of `drain_seconds` in which everything is served as ever, but each answer says
    `Connection: close`, so that clients come back on another connection: behind a balancer that one leads elsewhere,
    since /ready says no. Then uvicorn closes; what is under way has until `grace_seconds` after the signal.

    - SIGTERM does that, and without a supervisor SIGHUP, which would end the process otherwise.
    - SIGINT (Ctrl-C) leaves out the delay. A second one does not wait for what is under way.

    `parent` is a worker's end of the pipe to its supervisor. The worker says there that it serves, by its
    `grace_seconds`, hears signals from there as bytes, and stops when the other end is closed. SIGHUP from there says
    that a successor serves: the worker accepts no more connections at once, and /ready is left alone, since the service
    as a whole goes on.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_seconds: float,
        grace_seconds: float,
        parent: Connection | None = None,
    ) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._parent = parent
        self._succeeded = False
        self._hurried = False
        self._draining_since: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to the signals that end a process, as uvicorn does."""
        with super().capture_signals():
            if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
                if self._parent is None:
                    signal.signal(signal.SIGHUP, self.handle_exit)
                else:  # as its supervisor started it, which passes on what a terminal sends to each process
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. uvicorn raises it once more at its end; a graceful stop is a success, and exits as one."""
        if sig == signal.SIGINT:
            self.force_exit = self._hurried
            self._hurried = True
        elif self._parent is not None and not self.should_exit:
            self._succeeded = sig == signal.SIGHUP
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell the supervisor."""
        await super().startup(sockets)
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent.fileno(), self._listen_to, self._parent)
            with suppress(OSError):  # It is gone already, which is heard in a moment.
                self._parent.send_bytes(b"%f" % self._grace_seconds)

    def _listen_to(self, parent: Connection) -> None:
        try:
            (sig,) = parent.recv_bytes()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(parent.fileno())
            if not self.should_exit:
                logger.warning("the supervisor is gone: this worker stops")
            sig = signal.SIGTERM
        self.handle_exit(sig, None)

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does ten times a second; True when it is time to close."""
        if not await super().on_tick(counter):
            return False
        return self._hurried or time.monotonic() >= self._drain() + self._drain_seconds

    def _drain(self) -> float:
        """Begin to drain, if that has not been done; the time at which it was."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()
            # Both go into every answer; once a second uvicorn makes the second from the first.
            self.config.encoded_headers.append(_CONNECTION_CLOSE)
            self.server_state.default_headers.append(_CONNECTION_CLOSE)
            if self._succeeded:
                for server in self.servers:
                    server.close()
            else:
                self.lifespan.state[DRAINING] = True
                if not self._hurried:
                    logger.info("everything is served on for %g s, while /ready says no", self._drain_seconds)
        return self._draining_since

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close, within what is left of the grace."""
        left = max(0.0, self._drain() + self._grace_seconds - time.monotonic())
        # Declared as whole seconds, and handed to asyncio as it is.
        self.config.timeout_graceful_shutdown = max(0.0, left - _CLOSE_SECONDS)  # type: ignore[assignment]
        try:
            async with asyncio.timeout(left):
                await super().shutdown(sockets)
        except TimeoutError:
            logger.warning("GRACE_SECONDS are over: connections to the database are cut off")
