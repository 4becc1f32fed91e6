"""What every benchmark command shares: the tools that it needs, a database of its own, rounds with progress."""

import resource
import signal
import sys
from collections.abc import Callable

import click

from benchmarks.database import Database, new_database
from benchmarks.measure import Job, Measurement, run_jobs
from benchmarks.processes import StartError
from benchmarks.progress import Progress
from benchmarks.targets import describe
from benchmarks.wrk import WrkError, find_wrk


def run_with_database(measure: Callable[[Database], None], *, needs_wrk: bool = True) -> None:
    """Call a function with a fresh database; end the process with one message where something is missing or fails."""
    # A termination leaves as an exception does, so that every server that was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _allow_many_files()
    try:
        if needs_wrk:
            find_wrk()
    except WrkError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)
    try:
        with new_database() as database:
            measure(database)
    except (WrkError, StartError) as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("\nbenchmarks: interrupted, nothing was written", err=True)
        sys.exit(130)


def run_rounds(jobs: list[Job], database: Database, rounds: int, warm_up: int = 1) -> list[Measurement]:
    """Measure every job once in each round, and show it."""
    progress = Progress(len(jobs) * rounds)
    measurements = []
    for round_number in range(1, rounds + 1):
        upcoming = [describe(job) for job in jobs[1:]] + [""]
        progress.begin(describe(jobs[0]) if jobs else "")
        for job, following, measured in zip(
            jobs, upcoming, run_jobs(jobs, database, round_number, warm_up), strict=True
        ):
            measurements.append(measured)
            figures = f"{measured.requests_per_second:,.0f} req/s, p50 {measured.p50_ms:.2f} ms"
            progress.finish(f"{describe(job)}: {figures}", measured.warnings)
            progress.begin(following)
    progress.close()
    return measurements


def _allow_many_files() -> None:
    # Thousands of connections need as many descriptors, in wrk and in the servers, which inherit the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
