"""Imports and exports over HTTP and by command, and searches, each with its cost: the measurements of bulk.py."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlencode
from urllib.request import urlopen

import click
import psutil

from benchmarks.database import Database
from benchmarks.processes import cpu_seconds
from benchmarks.systems import ROOT, Server

MEMORY_TARGET_MB = 50.0
SEARCH_TARGET_MS = 3.0
MEDIA_TYPES = {"ndjson": "application/x-ndjson", "csv": "text/csv"}

_USERS = "/api/v1/users"


@dataclass(frozen=True)
class Transfer:
    """One import or export. CPU is in microseconds a user; `postgres_us` is PostgreSQL's."""

    what: str
    users: int
    seconds: float
    memory_mb: float
    process_us: float
    postgres_us: float
    target: int | None = None  # users a second

    @property
    def rate(self) -> float:
        """Users a second."""
        return self.users / self.seconds

    @property
    def verdict(self) -> str:
        """The verdict on rate and memory."""
        if self.memory_mb >= MEMORY_TARGET_MB:
            return f"NOT met: memory grows by {self.memory_mb:.0f} MB"
        return "" if self.target is None else "met" if self.rate >= self.target else "NOT met"


@dataclass(frozen=True)
class Latency:
    """The latency of one kind of search."""

    what: str
    p50_ms: float
    p99_ms: float

    @property
    def verdict(self) -> str:
        """The verdict on the median."""
        return "met" if self.p50_ms < SEARCH_TARGET_MS else "NOT met"


class BulkBenchmark:
    """Transfers and searches on one server and database; results collect in `transfers` and `latencies`."""

    def __init__(self, database: Database, server: Server) -> None:
        self.transfers: list[Transfer] = []
        self.latencies: list[Latency] = []
        self._database = database
        self._server = server
        self._port = int(server.url.rpartition(":")[2])

    def import_over_http(self, what: str, file: Path, users: int, query: str = "", target: int | None = None) -> None:
        """Import a file of `users` users, all of which the summary must account for."""
        with self._measured(what, users, target, self._server.process):
            answer = _request(self._port, "POST", f"{_USERS}/import{query}", file)
        summary = json.loads(answer[answer.rindex(b'{"summary"') :].splitlines()[0])["summary"]
        counted = sum(summary[name] for name in ("created", "updated", "skipped", "refused"))
        _expect(what, summary["complete"] and counted, users)

    def export_over_http(self, what: str, users: int, query: str = "", target: int | None = None) -> None:
        """Export all users."""
        with self._measured(what, users, target, self._server.process):
            answer = _request(self._port, "GET", f"{_USERS}/export{query}", counted=b"@example.com")
        _expect(what, int(answer), users)

    def command(
        self, what: str, arguments: Sequence[str], users: int, target: int | None = None, held_mb: float = 0.0
    ) -> float:
        """Run `users-api` and return its peak memory in MB; `held_mb`, its peak for a few users, is no growth."""
        environment = {"DATABASE_URL": self._database.url, "DIRECT_URL": self._database.url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "api", *arguments]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            with self._measured(what, users, target, psutil.Process(process.pid), held_mb) as peak:
                errors = process.stderr.read()
            _expect(f"{what}: {errors.decode()}", process.wait(), 0)
        return peak[0]

    def times(self) -> tuple[datetime, datetime]:
        """Return the times at which the first and the last user were created."""
        orders = (urlencode({"order": order, "limit": 1}) for order in ("created_at", "-created_at"))
        pages = [json.loads(urlopen(f"{self._server.url}{_USERS}?{order}").read()) for order in orders]
        first, last = (datetime.fromisoformat(page[0]["created_at"]) for page in pages)
        return first, last

    def search(self, what: str, queries: Sequence[dict[str, str]]) -> None:
        """Request pages one after the other and note the latencies."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        milliseconds = []
        for query in queries:
            path = f"{_USERS}?{urlencode(query)}"
            start = time.perf_counter()
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            milliseconds.append((time.perf_counter() - start) * 1000)
            _expect(path, response.status, 200)
        connection.close()
        percentiles = quantiles(milliseconds, n=100)
        self.latencies.append(Latency(what, percentiles[49], percentiles[98]))
        click.echo(f"{what}: p50 {percentiles[49]:.2f} ms", err=True)

    @contextmanager
    def _measured(
        self, what: str, users: int, target: int | None, process: psutil.Process, held_mb: float | None = None
    ) -> Iterator[list[float]]:
        peak = [_memory_mb(process)]
        held = peak[0] if held_mb is None else held_mb
        cpu = [0.0]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                with suppress(psutil.NoSuchProcess):
                    peak[0] = max(peak[0], _memory_mb(process))
                    cpu[0] = cpu_seconds(process)

        watcher = threading.Thread(target=watch)
        before = cpu_seconds(process), self._database.cpu_seconds()
        watcher.start()
        start = time.perf_counter()
        try:
            yield peak
            seconds = time.perf_counter() - start
        finally:
            ended.set()
            watcher.join()
        used = cpu[0] - before[0], self._database.cpu_seconds() - before[1]
        process_us, postgres_us = (each / users * 1e6 for each in used)
        self.transfers.append(Transfer(what, users, seconds, max(peak[0] - held, 0.0), process_us, postgres_us, target))
        click.echo(f"{what}: {users / seconds:,.0f} users/s", err=True)


def _request(port: int, method: str, path: str, file: Path | None = None, counted: bytes = b"") -> bytes:
    """Send a request with the body of a file and return the end of the response, or the number of `counted` in it."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    if file is not None:
        media_type = MEDIA_TYPES[file.suffix[1:]]
        head += f"content-type: {media_type}\r\ncontent-length: {file.stat().st_size}\r\n"
    answer: list[bytes] = []
    found = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:

        def read() -> None:
            nonlocal found
            rest = b""
            while data := connection.recv(1 << 20):
                if counted:
                    found += (rest + data).count(counted)
                    rest = (rest + data)[-len(counted) + 1 :]
                else:
                    answer[:] = [*answer[-3:], data]  # the summary is at the end

        reader = threading.Thread(target=read)
        reader.start()
        connection.sendall(f"{head}\r\n".encode())
        if file is not None:
            with file.open("rb") as body:
                connection.sendfile(body)
        reader.join()
    return b"%d" % found if counted else b"".join(answer)


def _memory_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise click.ClickException(f"{what}: {found} instead of {expected}")
