"""Child processes: started in a process group of their own, measured as a tree, always stopped."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

_KEPT_PORTS = 64
"""More than anything here uses at a time."""


class StartError(Exception):
    """A process did not start; the message ends with its output."""


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds, user and system, of a process, its living descendants, and its children that ended."""
    while True:
        before = process.cpu_times()
        total = 0.0
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        own = process.cpu_times()
        # Otherwise a child has ended meanwhile, and would count twice or not at all.
        if (own.children_user, own.children_system) == (before.children_user, before.children_system):
            return float(total + own.user + own.system + own.children_user + own.children_system)


_kept: deque[socket.socket] = deque()


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing listens on.

    On Linux it is kept for whom it is given to: a socket stays bound to it, beside which only those can listen that
    name the port. The system would give it to the next one that asks for any, before a server has started.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    _kept.append(sock)
    while len(_kept) > (_KEPT_PORTS if sys.platform == "linux" else 0):
        _kept.popleft().close()
    return port


@contextmanager
def running(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: IO[bytes]
) -> Iterator[psutil.Process]:
    """Run a command with both outputs in `log`; at the end stop it and every process that it started."""
    with subprocess.Popen(
        command, env=dict(environment), cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield psutil.Process(process.pid)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    finally:
        # Kill the rest of the group, such as workers of a server that died, also if Ctrl-C interrupts the wait.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_serves(process: psutil.Process, port: int, path: str, log: Path, seconds: float = 30.0) -> None:
    """Wait until GET `path` answers 200. Raises StartError if the process ends or the time runs out."""
    deadline = time.monotonic() + seconds
    answer = "no answer"
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise StartError(f"the server ended at start:\n{_tail(log)}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            response = connection.getresponse()
            answer = f"{response.status} {response.read(500).decode(errors='replace')}"
            connection.close()
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    raise StartError(f"the server does not serve GET {path} after {seconds:.0f} s ({answer}):\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
