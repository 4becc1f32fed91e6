"""The growth of throughput with instances behind a balancer: `python -m benchmarks.growth --help`."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import psutil

from benchmarks import cgroups
from benchmarks.balancer import MISSING, balanced, find_haproxy
from benchmarks.database import Database, execute
from benchmarks.machine import describe_machine
from benchmarks.measure import database_at
from benchmarks.processes import cpu_seconds
from benchmarks.progress import Progress
from benchmarks.report import as_trial, keep
from benchmarks.session import run_with_database
from benchmarks.straightness import CHOSEN, CONNECTIONS, CORES, DISTANCE_MS, ROWS, Point, merge, render
from benchmarks.systems import SYSTEMS, serving
from benchmarks.workloads import Workload
from benchmarks.wrk import run_wrk

COUNTS = (1, 2, 3, 4, 6, 8)
_CLIENTS = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


def measure_counts(
    database: Database, groups: cgroups.Cgroups, haproxy: str, counts: Sequence[int], round_number: int, seconds: int
) -> Iterator[Point]:
    """Measure each workload with each number of instances. Raises processes.StartError."""
    for count in counts:
        database.prepare(ROWS)
        with ExitStack() as stack:
            url, proxy = stack.enter_context(database_at(database, DISTANCE_MS))
            assert proxy is not None
            servers = [stack.enter_context(serving(SYSTEMS["users_api"], 1, url)) for _ in range(count)]
            for server in servers:  # once they have started, which takes a second of CPU
                stack.enter_context(groups.held(server.process, CORES))
            balancer = stack.enter_context(balanced(haproxy, servers))
            processes = [balancer.process, proxy, database.postmaster, *(server.process for server in servers)]
            for workload in CHOSEN:
                yield _measure(database, workload, balancer.url, processes, round_number, seconds)


def _measure(
    database: Database,
    workload: Workload,
    url: str,
    processes: Sequence[psutil.Process],
    round_number: int,
    seconds: int,
) -> Point:
    """Warm up, then measure. The processes are HAProxy, the delay proxy, PostgreSQL, and the instances."""
    count = len(processes) - 3
    connections = CONNECTIONS * count
    database.prepare(ROWS)
    warm = run_wrk(url, workload.script, (ROWS, 1, 2 * round_number, 100), seconds=1, connections=connections)
    # Start after the ids that the warm-up deleted or still had in flight.
    arguments = (ROWS, 1 + warm.requests + 2 * connections, 2 * round_number + 1, 100)
    before = [cpu_seconds(each) for each in processes]
    began, busy = time.monotonic(), _busy_seconds()
    load = run_wrk(url, workload.script, arguments, seconds=seconds, connections=connections)
    busy_cores = (_busy_seconds() - busy) / (time.monotonic() - began)
    used = [cpu_seconds(each) - start for each, start in zip(processes, before, strict=True)]
    balancer, proxy, postgres, instances = *used[:3], sum(used[3:])
    in_postgres = execute(database.url, _CLIENTS)[0][0]
    assert isinstance(in_postgres, int)
    if workload.writes:
        database.mark_dirty()
    requests = max(load.requests, 1)
    return Point(
        workload.name,
        count,
        requests_per_second=load.requests_per_second,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        errors=load.refused + load.socket_errors,
        connections=connections,
        postgres_connections=in_postgres,
        server_us=instances / requests * 1e6,
        postgres_us=postgres / requests * 1e6,
        balancer_us=balancer / requests * 1e6,
        bytes=load.bytes_read / requests,
        instance_cores=instances / count / load.seconds,
        postgres_cores=postgres / load.seconds,
        balancer_cores=balancer / load.seconds,
        generator_cores=load.generator_cores,
        proxy_cores=proxy / load.seconds,
        busy_cores=busy_cores,
    )


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # A virtual machine does not get the time that its host steals, so that counts as busy too.
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of one second, with up to two instances: checks that it runs.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of times that each measurement is made. Default 3.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(quick: bool, rounds: int | None, output: Path | None) -> None:
    """Measure requests a second of 1 to 8 instances behind HAProxy, each held to a fifth of a core.

    Takes about five minutes. It needs HAProxy, and root on Linux for the control groups. Writes growth.json, growth.md
    and a chart into benchmarks/results. With --quick it writes only into the directory of --output.
    """
    haproxy = find_haproxy()
    if haproxy is None:
        click.echo(f"benchmarks: {MISSING}", err=True)
        sys.exit(2)
    try:
        groups = cgroups.find()
    except cgroups.CgroupError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)
    times, counts, seconds = rounds or (1 if quick else 3), COUNTS[:2] if quick else COUNTS, 1 if quick else 2

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        progress, found = Progress(times * len(counts) * len(CHOSEN)), list[Point]()
        for number in range(1, times + 1):
            # Every second round runs backwards, so that a machine that slows down bends no line.
            ordered = counts if number % 2 else counts[::-1]
            for point in measure_counts(database, groups, haproxy, ordered, number, seconds):
                found.append(point)
                what = f"{point.workload}, {point.instances} instances: {point.requests_per_second:,.0f} req/s"
                progress.finish(what, point.warnings)
        progress.close()
        files = render(merge(found), machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["growth.md"])
        click.echo(keep(files, output, is_whole=not quick))

    run_with_database(measure)


if __name__ == "__main__":
    main()
