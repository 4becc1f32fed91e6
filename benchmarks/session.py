"""The parts that all benchmark commands share: required tools, a database, rounds with progress."""

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
    """Call a function with a fresh database; if something is missing or fails, exit with one message."""
    # SIGTERM becomes an exception, so that every server that was started is stopped.
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
    """Measure every job once in each round and show the progress."""
    progress = Progress(len(jobs) * rounds)
    measurements = []
    for round_number in range(1, rounds + 1):
        # Every second round runs backwards, so that no system always comes first on a machine that slows down.
        ordered = jobs if round_number % 2 else jobs[::-1]
        upcoming = [describe(job) for job in ordered[1:]] + [""]
        progress.begin(describe(ordered[0]) if ordered else "")
        for job, following, measured in zip(
            ordered, upcoming, run_jobs(ordered, database, round_number, warm_up), strict=True
        ):
            measurements.append(measured)
            figures = f"{measured.requests_per_second:,.0f} req/s, p50 {measured.p50_ms:.2f} ms"
            progress.finish(f"{describe(job)}: {figures}", measured.warnings)
            progress.begin(following)
    progress.close()
    return measurements


def _allow_many_files() -> None:
    # Thousands of connections need as many file descriptors, in wrk and in the servers, which inherit the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
