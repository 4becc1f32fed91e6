"""Nothing lost, nothing invented, whatever fails meanwhile: `python -m benchmarks.torture --help`."""

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
# A history is searched for an order for each address: what makes it long or leaves it open ends its use.
ADDRESS_LIFETIME = 150
# Short, so that what stalls is given up soon and the run sees many faults.
SHORT = {"ACQUIRE_TIMEOUT_SECONDS": "2", "STATEMENT_TIMEOUT_SECONDS": "1"}
_METHOD = (
    f"`users-api serve --workers {WORKERS}` with {', '.join(f'{name}={value}' for name, value in SHORT.items())} runs "
    "behind PgBouncer in transaction mode and a proxy that injects faults, on PostgreSQL with durable commits. Clients "
    f"in a closed loop work on {ADDRESSES} addresses at a time. A history is right if each address's operations, the "
    "rows that are left included, fit one order (linearizability); a write of unknown outcome happened once or never. "
    "Refused is what was certainly without effect. The longest stall counts whether or not an answer came."
)
# A line of the service's log (api/telemetry/logs.py), but for that about a worker whose end was ours.
_ERROR = re.compile(r'^\{(?!.* with exit code -9").*"level": "(?:error|critical)".*$', re.MULTILINE)
BUGS = ("acknowledges_before_commit", "sends_again")
"""Factories of planted.py."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(0.05, 600), help="Length of the run.")
@click.option("--clients", default=32, show_default=True, type=click.IntRange(1, 1000), help="Clients at once.")
@click.option(
    "--rate", default=7.0, show_default=True, type=click.FloatRange(0.1, 100), help="Faults a second at most."
)
@click.option("--only", default="", help="Only the faults with this in their name, such as answer or SIGKILL.")
@click.option("--plant", type=click.Choice(BUGS), help="Serve the application with this bug: it must be found.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Where results go; see above.")
def main(minutes: float, clients: int, rate: float, only: str, plant: str | None, output: Path | None) -> None:
    """Let everything fail at random while clients create, patch, delete and read, and check that nothing is lost.

    The service runs as `users-api serve --workers 2` behind PgBouncer and a proxy that injects faults; workers and
    PostgreSQL's own processes are killed, too. Each operation is recorded at its client. Afterwards the history must be
    linearizable, the rows that are left included: every write that was acknowledged is there, every one that was
    refused is not, every one whose outcome is unknown is one or the other, and every read is explained.

    Ctrl-C ends a run early, and checks what was done. Exit code 1: something was violated. A million operations take
    about 1 GiB of memory. Writes torture.json, torture.md and a chart into benchmarks/results; a run that is shorter
    than the default or interrupted, or that leaves faults out, writes only where --output says so.

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
    """The system that serves the application with a bug, set up as `users-api serve` does it."""
    options = (
        f"--factory benchmarks.planted:{name} --host 127.0.0.1 --port {{port}} --workers {{workers}} --lifespan on "
        "--loop uvloop --http api.server.protocol:HTTPProtocol --no-access-log --log-level warning"
    )
    # On the loopback address `users-api serve` asks nobody who they are, either.
    return System(name, name, (sys.executable, "-m", "uvicorn", *options.split()), {"AUTH": "off"})


def torture(
    database: Database, pgbouncer: Path, system: System, seconds: float, clients: int, rate: float, only: str = ""
) -> Findings:
    """Run the clients and the faults for so long, or until Ctrl-C, and return what they came to.

    Raises processes.StartError where the server ends, click.UsageError where no fault has `only` in its name.
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
            workload = Workload(server.url, ADDRESS_LIFETIME, ADDRESSES)
            recorder = workload.recorder
            start = recorder.clock()
            uvloop.run(_run(workload, chaos, server.process, seconds, clients, rate))
            seconds = recorder.clock() - start
            if not _lives(server.process):
                raise StartError(f"the server ended:\n{server.log.read_text()[-2000:]}")
            faults = chaos.counts
            rig.reset()
            errors = _ERROR.findall(server.log.read_text())
    # The server has ended, and every way to the database is gone: what could still happen has happened.
    history = recorder.operations
    faults["client hangs up"] = sum(operation.problem == "hung up" for operation in history)
    click.echo(f"checking {len(history):,} operations ...", err=True)
    violations = check(history + final_reads(execute(neon.superuser, USERS_LEFT), history, recorder.clock()))
    return Findings(start, seconds, history, faults, violations, recorder.slowest, errors)


async def _run(
    workload: Workload, chaos: Chaos, server: psutil.Process, seconds: float, clients: int, rate: float
) -> None:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()

    def interrupt() -> None:
        click.echo("\ninterrupted; once more ends without a result", err=True)
        end.set()
        loop.remove_signal_handler(signal.SIGINT)

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
            done = f"{len(workload.recorder.operations):,} operations, {sum(chaos.counts.values()):,} faults"
            progress.finish(done, [])
            progress.begin(done)
        end.set()
    progress.close()


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


if __name__ == "__main__":
    main()
