"""Workers that share connections evenly.

All workers accept from the same sockets, so one that starts, hangs or has died delays no connection. But the kernel
wakes all of them for each, and whichever runs first accepts it: a worker can be left with none. A socket of its own for
each worker (SO_REUSEPORT) would be no better: connections to a worker that hangs would wait for it, and chance alone
makes one of four workers have twice the connections of another in every fifth set of 64.

Here each worker has its number of connections in shared memory. One that is ahead of another lets it accept first.
"""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Collection
from multiprocessing.sharedctypes import SynchronizedArray
from socket import socket
from typing import Any

logger = logging.getLogger("api.sharing")

_PAUSE_SECONDS = 0.005
_BATCH_MAX = 8
_TURN_MAX = 64
_FRESH_SECONDS = 0.5
"""The age at which a count is ignored: its worker has died or hangs. A worker writes it ten times a second."""
_RETRY_SECONDS = 1.0


class Share:
    """The counts of all workers, as the worker in one slot reads and writes them."""

    def __init__(self, counts: "SynchronizedArray[int]", times: "SynchronizedArray[float]", slot: int) -> None:
        self._counts = counts
        self._times = times
        self._slot = slot

    def write(self, connections: int) -> None:
        """Publish this worker's number of connections."""
        self._counts[self._slot] = connections
        self._times[self._slot] = time.monotonic()  # one clock for all processes

    def is_ahead(self, connections: int) -> bool:
        """Return whether a worker that serves has clearly fewer connections."""
        self.write(connections)
        oldest = time.monotonic() - _FRESH_SECONDS
        pairs = zip(self._counts[:], self._times[:], strict=True)
        fewest = min((count for count, at in pairs if at > oldest), default=connections)
        # Where connections are short, small differences come and go, and pauses would cost more than they give.
        return connections > fewest + 3 + fewest // 8


def make_shares(workers: int) -> list[Share | None]:
    """Return the share of each slot; of None if there is no room for shared memory: workers then accept as they can."""
    context = multiprocessing.get_context("spawn")
    try:
        counts: Any = context.RawArray("q", workers)  # Without a lock: each slot has one writer.
        times: Any = context.RawArray("d", workers)
    except OSError as error:
        logger.warning("no shared memory (%s): the workers may have uneven numbers of connections", error)
        return [None] * workers
    return [Share(counts, times, slot) for slot in range(workers)]


class Listener:
    """Accepts connections from a socket, after workers that have fewer. It does not close the socket.

    A worker that is ahead pauses. What waits even then is too much for the others: it accepts one connection, and twice
    as many after each further pause, so a queue does not grow while workers are idle.
    """

    def __init__(
        self,
        sock: socket,
        protocol: Callable[[], asyncio.Protocol],
        share: Share,
        connections: Collection[Any],
        backlog: int,
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._share = share
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._next_batch = 1  # connections that it accepts after a pause, although it is ahead
        self._starting: dict[asyncio.Task[Any], asyncio.Protocol] = {}
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        # Several in one turn of the event loop: a turn takes long under load, and the next client waits until it ends.
        count = len(self._connections) + sum(each not in self._connections for each in self._starting.values())
        for more in range(_TURN_MAX):
            if self._share.is_ahead(count + more):
                self._pause(_PAUSE_SECONDS)
                return
            self._next_batch = 1
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept one connection. Returns False if there is none, or no room for it."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._next_batch = 1  # Another worker was first.
            return False
        except OSError as error:
            logger.error("cannot accept a connection (%s): check the limit on open files", error)  # noqa: TRY400
            self._pause(_RETRY_SECONDS)
            return False
        connection.setblocking(False)
        protocol = self._protocol()
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, connection))
        self._starting[task] = protocol
        task.add_done_callback(self._starting.pop)
        return True

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        for _ in range(self._next_batch):
            if not self._accept():
                return
        self._next_batch = min(2 * self._next_batch, _BATCH_MAX)

    def close(self) -> None:
        """Stop accepting connections."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())

    async def wait_closed(self) -> None:
        """Return at once: the connections are uvicorn's to wait for."""
