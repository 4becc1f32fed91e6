"""Random fault injections under load; no write may be lost or invented: `python -m benchmarks.torture --help`."""

import asyncio
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import click
import psutil
import uvloop

from api.database import migrations
from api.neon.url import parse_url
from benchmarks.chaos import Chaos
from benchmarks.database import Database, execute
from benchmarks.findings import Findings, render
from benchmarks.machine import describe_machine
from benchmarks.processes import StartError
from benchmarks.progress import Progress
from benchmarks.report import keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, System, serving
from tests.support import rig as neon_rig
from tests.support.history import check
from tests.support.workload import USERS_LEFT, Workload, final_reads

WHOLE_MINUTES = 5
WORKERS = 2
ADDRESSES = 24
# The checker searches an order for the operations on each address, so an address is retired before its history is long.
ADDRESS_LIFETIME = 150
# Short, so that stalled statements end soon and a run has room for many fault injections.
SHORT = {"ACQUIRE_TIMEOUT_SECONDS": "2", "STATEMENT_TIMEOUT_SECONDS": "1"}
_METHOD = (
    f"`users-api serve --workers {WORKERS}` with {', '.join(f'{name}={value}' for name, value in SHORT.items())} runs "
    "behind PgBouncer in transaction mode and a proxy that injects faults, on PostgreSQL with durable commits, "
    f"{1000 * neon_rig.DISTANCE_SECONDS:g} ms away. Now and then everything is down for up to 30 s. Clients "
    f"in a closed loop work on {ADDRESSES} addresses at a time. A history is correct if the operations on each address "
    "and the final rows fit one order (linearizability); a write of unknown outcome happened once or never. "
    "Refused operations certainly had no effect. The longest stall counts with or without an answer."
)
# An error in the service's log (api/telemetry/logs.py), except the end of a worker that this run has killed.
_ERROR = re.compile(r'^\{(?!.* with exit code -9").*"level": "(?:error|critical)".*$', re.MULTILINE)
BUGS = ("acknowledges_before_commit", "sends_again")
"""Factories of planted.py."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(0.05, 600), help="Length of the run.")
@click.option("--clients", default=32, show_default=True, type=click.IntRange(1, 1000), help="Concurrent clients.")
@click.option(
    "--rate", default=7.0, show_default=True, type=click.FloatRange(0.1, 100), help="Maximum fault injections a second."
)
@click.option("--only", default="", help="Only fault injections whose name contains this, such as answer or SIGKILL.")
@click.option(
    "--plant", type=click.Choice(BUGS), help="Serve the application with this planted bug, which the run must find."
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(minutes: float, clients: int, rate: float, only: str, plant: str | None, output: Path | None) -> None:
    """Inject faults at random while clients create, patch, delete and read; check that no write is lost.

    The service runs as `users-api serve --workers 2` behind PgBouncer and a proxy that injects faults. Workers and
    PostgreSQL's processes are killed too, and now and then everything is down for up to 30 s. Each operation is
    recorded at its client. Afterwards the history, including the final rows, must be linearizable. Every acknowledged
    write is there and no refused one is. A write of unknown outcome happened once or never, and every read fits.

    Ctrl-C ends a run early and checks the operations so far. Exit code 1: there are violations, answers 500, or a
    recovery that took 2 s. A million operations take about 1 GiB of memory. Writes torture.json, torture.md and a chart
    into benchmarks/results. A run that is interrupted, shorter than the default or limited by --only writes only into
    the directory of --output.

    \b
    Examples:
      python -m benchmarks.torture --minutes 1
      python -m benchmarks.torture --minutes 0.2 --only answer --rate 20 --plant sends_again
    """
    program = neon_rig.find()
    if program is None:
        click.echo(f"benchmarks: no PgBouncer >= 1.21: run {neon_rig.SCRIPT}, which finds or fetches one", err=True)
        sys.exit(2)
    system = (_with_bug(plant) if plant else SYSTEMS["users_api"]).with_environment("torture", "torture", **SHORT)

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        findings = torture(database, program, system, 60 * minutes, clients, rate, only)
        files = render(findings, machine, _METHOD)
        click.echo(files["torture.md"])
        is_interrupted = findings.seconds < 59 * minutes
        click.echo(keep(files, output, minutes >= WHOLE_MINUTES and not (is_interrupted or only or plant)))
        if not findings.is_good:
            sys.exit(1)

    run_with_database(measure, needs_wrk=False)


def _with_bug(name: str) -> System:
    """Return the system that serves the application with a bug, configured like `users-api serve`."""
    options = (
        f"--factory benchmarks.planted:{name} --host 127.0.0.1 --port {{port}} --workers {{workers}} --lifespan on "
        "--loop uvloop --http api.server.protocol:HTTPProtocol --no-access-log --log-level warning"
    )
    # `users-api serve` needs no authentication on the loopback address either.
    return System(name, name, (sys.executable, "-m", "uvicorn", *options.split()), {"AUTH": "off"})


def torture(
    database: Database, pgbouncer: Path, system: System, seconds: float, clients: int, rate: float, only: str = ""
) -> Findings:
    """Run the clients and the fault injections for `seconds` or until Ctrl-C; return the findings.

    Raises processes.StartError if the server ends, click.UsageError if no fault injection has `only` in its name.
    """
    with neon_rig.running(database.url, pgbouncer) as rig:
        execute(database.url, f"create database neondb owner {neon_rig.ROLE}")
        neon = rig.database(database.url.replace("/postgres?", "/neondb?"))
        migrations.migrate(parse_url(neon.direct), report=lambda line: None)
        with serving(system, WORKERS, neon.pooled, "/health") as server:
            try:
                chaos = Chaos(rig, neon, server.process, database.postmaster, only)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            rig.distance = rig.latency = neon_rig.DISTANCE_SECONDS
            workload = Workload(server.url, ADDRESS_LIFETIME, ADDRESSES)
            recorder = workload.recorder
            start = recorder.clock()
            uvloop.run(_run(workload, chaos, server.process, seconds, clients, rate))
            seconds = recorder.clock() - start
            if not _lives(server.process):
                raise StartError(f"the server ended:\n{server.log.read_text()[-2000:]}")
            injections = chaos.counts
            rig.reset()
            errors = _ERROR.findall(server.log.read_text())
    # The server and every connection to the database have ended, so no more write can take effect.
    history = recorder.operations
    injections["client hangs up"] = sum(operation.problem == "hung up" for operation in history)
    click.echo(f"checking {len(history):,} operations ...", err=True)
    violations = check(history + final_reads(execute(neon.superuser, USERS_LEFT), history, recorder.clock()))
    return Findings(start, seconds, history, injections, violations, recorder.slowest, errors, chaos.outages)


async def _run(
    workload: Workload, chaos: Chaos, server: psutil.Process, seconds: float, clients: int, rate: float
) -> None:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()

    def interrupt() -> None:
        # Before the line is written: its reader may press Ctrl-C again at once.
        loop.remove_signal_handler(signal.SIGINT)
        click.echo("\ninterrupted; press Ctrl-C again to exit without a result", err=True)
        end.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    async with asyncio.TaskGroup() as group:
        group.create_task(workload.run(lambda: not end.is_set(), clients))
        group.create_task(chaos.run(rate, end))
        ticks = min(60, max(1, round(seconds)))
        progress = Progress(ticks)
        for _ in range(ticks):
            with suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), seconds / ticks)
            if end.is_set() or not _lives(server):
                break
            done = f"{len(workload.recorder.operations):,} operations, {sum(chaos.counts.values()):,} fault injections"
            progress.finish(done, [])
            progress.begin(done)
        end.set()
    progress.close()


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


if __name__ == "__main__":
    main()
