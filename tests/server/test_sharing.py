"""How workers share connections: evenly, and without waiting for one that cannot accept."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import heap
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest

from api.server.sharing import Listener, Share, make_shares
from tests.support.commands import USERS_API, Served, workers
from tests.support.simulated import simulate
from tests.support.waiting import wait_until

INTO_THE_LOG = ["sh", "-c", 'exec "$0" "$@" 2> log', USERS_API]
REQUEST = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@contextmanager
def four_workers(start: Callable[..., Served], log: Path) -> Iterator[tuple[int, "set[int]", Callable[[], set[int]]]]:
    with start("--workers", "4", program=INTO_THE_LOG) as (url, process):
        wait_until(lambda: log.read_text().count("Application startup complete") >= 4)
        yield int(url.rpartition(":")[2]), workers(process), lambda: workers(process)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def is_answered(connection: socket.socket) -> bool:
    try:
        connection.sendall(REQUEST)
        return connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def open_kept(port: int, number: int, stack: ExitStack) -> list[socket.socket]:
    kept = [stack.enter_context(connect(port)) for _ in range(number)]
    assert all(map(is_answered, kept))
    return kept


def connections_of(worker: int, port: int) -> int:
    found = psutil.Process(worker).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in found)


def test_a_worker_that_is_ahead_lets_those_that_serve_accept() -> None:
    first, second = make_shares(2)
    assert first is not None
    assert second is not None
    assert not second.is_ahead(100)  # The first does not serve.
    first.write(0)
    assert not second.is_ahead(3)
    assert second.is_ahead(4)
    first.write(80)
    assert not second.is_ahead(93)
    assert second.is_ahead(94)


class Worker:
    """A worker that listens, over simulated time: how many connections it accepts when."""

    def __init__(self, listening: socket.socket, share: Share) -> None:
        self.connections: set[asyncio.Protocol] = set()
        self.accepted: dict[float, int] = {}
        self.listener = Listener(listening, self._protocol, share, self.connections, 2048)

    def _protocol(self) -> asyncio.Protocol:
        now = asyncio.get_running_loop().time()
        self.accepted[now] = self.accepted.get(now, 0) + 1
        return Connection(self.connections)


class Connection(asyncio.Protocol):
    def __init__(self, connections: set[asyncio.Protocol]) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.add(self)
        asyncio.get_running_loop().call_later(60, transport.abort)  # type: ignore[attr-defined]


@contextmanager
def waiting_connections(number: int) -> Iterator[socket.socket]:
    """Return a socket on which so many connections wait to be accepted."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=number))
        for _ in range(number):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        yield listening


def test_connections_that_wait_are_accepted_in_one_turn_of_the_loop_64_at_most() -> None:
    """A turn takes long under load: with one in each, the last of a thousand clients waited for seconds."""

    async def accept(listening: socket.socket) -> None:
        share, _ = make_shares(2)
        assert share
        await asyncio.sleep(1)  # The other worker does not serve.
        worker, numbers = Worker(listening, share), []
        for _ in range(4):
            await asyncio.sleep(0)
            numbers.append(sum(worker.accepted.values()))
        worker.listener.close()
        assert [number for number in numbers if number] == [64, 100, 100]
        await asyncio.sleep(100)

    with waiting_connections(100) as listening:
        simulate(accept(listening))


def accepted_beside(number: int, *, seconds: float) -> dict[float, int]:
    """Return how many of 200 connections that wait a worker accepts when, in some seconds, beside one that has some."""

    async def accept(listening: socket.socket) -> dict[float, int]:
        share, other = make_shares(2)
        assert share
        assert other
        other.write(number)
        worker = Worker(listening, share)
        await asyncio.sleep(seconds)
        worker.listener.close()
        await asyncio.sleep(100)
        return worker.accepted

    with waiting_connections(200) as listening:
        return simulate(accept(listening))


def test_a_worker_that_is_ahead_accepts_ever_more_of_what_waits() -> None:
    accepted = accepted_beside(0, seconds=0.0275)
    assert list(accepted.values()) == [4, 1, 2, 4, 8, 8]
    assert list(accepted) == pytest.approx([0, 0.005, 0.010, 0.015, 0.020, 0.025], abs=1e-6)


def test_a_worker_counts_what_it_has_accepted_in_the_turns_before() -> None:
    assert sum(accepted_beside(160, seconds=0.001).values()) == 160 + 3 + 160 // 8 + 1


def test_without_shared_memory_nothing_is_shared() -> None:
    with patch.object(heap, "Arena", side_effect=OSError(28, "No space left on device")):
        assert make_shares(2000) == [None] * 2000


@pytest.mark.long
@pytest.mark.parametrize("number", [64, 256])
def test_connections_are_even(start: Callable[..., Served], directory: Path, number: int) -> None:
    with four_workers(start, directory / "log") as (port, pids, _), ExitStack() as stack:
        for _ in range(number // 8):
            open_kept(port, 8, stack)
        counts = sorted(connections_of(worker, port) for worker in pids)
        assert sum(counts) == number
        assert counts[-1] <= 2 * counts[0], counts


@pytest.mark.long
def test_a_killed_worker_costs_only_its_own_connections(start: Callable[..., Served], directory: Path) -> None:
    with four_workers(start, directory / "log") as (port, before, now), ExitStack() as stack:
        kept = open_kept(port, 64, stack)
        killed = min(before)
        lost = connections_of(killed, port)
        psutil.Process(killed).kill()
        assert sum(map(is_answered, kept)) == 64 - lost
        open_kept(port, lost, stack)  # by the others: its successor has not started
        wait_until(lambda: len(now()) == 4)
        wait_until(lambda: (directory / "log").read_text().count("Application startup complete") >= 5)
        for _ in range(12):
            open_kept(port, 8, stack)
        counts = sorted(connections_of(worker, port) for worker in now())
        assert sum(counts) == 160
        assert counts[-1] <= 2 * counts[0], counts


@pytest.mark.long
def test_no_connection_waits_for_a_worker_that_hangs(start: Callable[..., Served], directory: Path) -> None:
    with four_workers(start, directory / "log") as (port, pids, _), ExitStack() as stack:
        hanging = psutil.Process(min(pids))
        hanging.suspend()  # with fewer connections than the others have soon
        try:
            open_kept(port, 64, stack)
        finally:
            hanging.resume()


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_a_connection_waits_until_there_are_files_for_it(start: Callable[..., Served], directory: Path) -> None:
    log = directory / "log"
    with four_workers(start, log) as (port, pids, _), ExitStack() as stack:
        limits = {worker: psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE) for worker in pids}
        for worker, (_, hard) in limits.items():
            psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE, (3, hard))
        waiting = stack.enter_context(connect(port))
        wait_until(lambda: "cannot accept a connection (" in log.read_text())
        for worker, limit in limits.items():
            psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE, limit)
        assert is_answered(waiting)
