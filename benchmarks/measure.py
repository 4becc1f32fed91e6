"""One measurement: a load on a running system, and the CPU time of every process."""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.database import Database
from benchmarks.processes import cpu_seconds
from benchmarks.systems import ROOT, Server, System, serving
from benchmarks.workloads import Workload
from benchmarks.wrk import run_wrk

GENERATOR_LIMIT = 0.9
"""Above this share of a core the figure may be the limit of the load generator, not of the system."""


HELD = 0.95
"""A system holds a rate if it answers this share of it."""


@dataclass(frozen=True)
class Job:
    """The parameters of a measurement."""

    system: System
    workload: Workload
    workers: int = 2
    connections: int = 128
    distance_ms: float = 0.0  # round trip between the system and its database
    rows: int = 100_000
    seconds: int = 3

    def lasting(self, seconds: int) -> "Job":
        """Return the same job with another length."""
        return replace(self, seconds=seconds)

    @property
    def key(self) -> tuple[str, str, int, int, float, int]:
        """The parameters that identify the measurement over rounds."""
        return self.system.name, self.workload.name, self.workers, self.connections, self.distance_ms, self.rows


@dataclass(frozen=True)
class Measurement:
    """The result of one job in one round."""

    system: str
    workload: str
    workers: int
    connections: int
    distance_ms: float
    rows: int
    round: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    refused: int  # answers outside 2xx and 3xx
    socket_errors: int
    server_us: float  # CPU microseconds of the system, a request
    postgres_us: float  # CPU microseconds of PostgreSQL, a request
    generator_cores: float  # cores that wrk used
    proxy_cores: float  # cores that the delay proxy used; 0 without one

    @property
    def key(self) -> tuple[str, str, int, int, float, int]:
        """The key of its job."""
        return self.system, self.workload, self.workers, self.connections, self.distance_ms, self.rows

    @property
    def warnings(self) -> list[str]:
        """The reasons to doubt this figure."""
        found = []
        if self.generator_cores > GENERATOR_LIMIT:
            found.append(f"wrk used {self.generator_cores:.0%} of a core: its limit, not the system's")
        if self.proxy_cores > GENERATOR_LIMIT:
            found.append(f"the delay proxy used {self.proxy_cores:.0%} of a core: its limit, not the system's")
        if self.refused:
            found.append(f"{self.refused} of {self.requests} answers were neither 2xx nor 3xx")
        if self.socket_errors:
            found.append(f"{self.socket_errors} socket errors or time-outs")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the fields and the warnings."""
        figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**figures, "warnings": self.warnings}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Measurement":
        """Read what `as_json` wrote."""
        return cls(**{name: value for name, value in document.items() if name != "warnings"})


@dataclass(frozen=True)
class Point:
    """The result of a system at one rate, in an open loop."""

    system: str
    offered: int  # requests a second
    goodput: float  # answers 2xx a second
    p50_ms: float
    p99_ms: float
    p999_ms: float
    server_us: float  # CPU microseconds of the system, a request
    postgres_us: float  # CPU microseconds of PostgreSQL, a request
    generator_cores: float
    workers: int = 1

    @property
    def is_held(self) -> bool:
        """True if the system answered the offered rate."""
        return self.goodput >= HELD * self.offered


@contextmanager
def database_at(database: Database, distance_ms: float) -> Iterator[tuple[str, psutil.Process | None]]:
    """Yield the URL of the database `distance_ms` away, and the process of the delay proxy, if one is needed."""
    if not distance_ms:
        yield database.url, None
        return
    with delayed(database.socket, distance_ms) as (port, process):
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable", process


@contextmanager
def delayed(socket: Path, distance_ms: float) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the port of a delay proxy in front of a Unix socket, and its process."""
    command = [sys.executable, "-m", "benchmarks.delay", "--socket", str(socket)]
    with subprocess.Popen(
        [*command, "--round-trip", str(distance_ms)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as proxy:
        try:
            assert proxy.stdout is not None
            yield int(proxy.stdout.readline()), psutil.Process(proxy.pid)
        finally:
            proxy.terminate()


def run_jobs(jobs: Iterable[Job], database: Database, round_number: int, warm_up: int) -> Iterator[Measurement]:
    """Measure each job. Consecutive jobs with the same server share one process, up to the first that writes.

    A slow server has writes left when its clients are gone: they would reach the table of the next job.
    """
    pending = list(jobs)
    while pending:
        first = pending[0]
        group = [first]
        for job in pending[1:]:
            is_same = (job.system, job.workers, job.distance_ms) == (first.system, first.workers, first.distance_ms)
            if group[-1].workload.writes or not is_same:
                break
            group.append(job)
        pending = pending[len(group) :]
        database.prepare(first.rows, first.system.index)
        with (
            database_at(database, first.distance_ms) as (url, proxy),
            serving(first.system, first.workers, url) as server,
        ):
            for job in group:
                yield measure(job, server, database, proxy, round_number, warm_up)


def measure(
    job: Job, server: Server, database: Database, proxy: psutil.Process | None, round_number: int, warm_up: int
) -> Measurement:
    """Warm up, then measure one job on a running server."""
    database.prepare(job.rows, job.system.index)
    arguments = (job.rows, 1, 2 * round_number, job.workload.page_size)
    seconds = min(job.seconds, job.workload.max_seconds)
    first = 1
    if warm_up:
        load = run_wrk(server.url, job.workload.script, arguments, seconds=warm_up, connections=job.connections)
        # Start after the ids that the warm-up deleted or still had in flight.
        first += load.requests + 2 * job.connections
    arguments = (job.rows, first, 2 * round_number + 1, job.workload.page_size)
    before = cpu_seconds(server.process), database.cpu_seconds(), cpu_seconds(proxy) if proxy else 0.0
    load = run_wrk(server.url, job.workload.script, arguments, seconds=seconds, connections=job.connections)
    after = cpu_seconds(server.process), database.cpu_seconds(), cpu_seconds(proxy) if proxy else 0.0
    server_cpu, postgres_cpu, proxy_cpu = (end - start for start, end in zip(before, after, strict=True))
    if job.workload.writes:
        database.mark_dirty()
    requests = max(load.requests, 1)
    return Measurement(
        *job.key,
        round=round_number,
        requests_per_second=load.requests_per_second,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        requests=load.requests,
        refused=load.refused,
        socket_errors=load.socket_errors,
        server_us=server_cpu / requests * 1e6,
        postgres_us=postgres_cpu / requests * 1e6,
        generator_cores=load.generator_cores,
        proxy_cores=proxy_cpu / load.seconds if load.seconds else 0.0,
    )
