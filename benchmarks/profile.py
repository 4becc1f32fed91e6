"""The CPU time of one GET by layer: `python -m benchmarks.profile --help`."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import uvloop

from benchmarks.charts import Bar, bar_chart
from benchmarks.database import Database
from benchmarks.latency import ROWS, RUN_RATES, measure_systems
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import Job, Measurement, Point
from benchmarks.openloop import Phase, gets, run_phases
from benchmarks.report import as_trial, keep
from benchmarks.session import run_rounds, run_with_database
from benchmarks.systems import SYSTEMS, System, serving
from benchmarks.tables import table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS

_METHOD = (
    "Stacks of growing height serve the same GET by the same command, one worker, 64 connections under wrk. The cost "
    "of a layer is the CPU time a request that its stack uses more than the one below. CPU is user and system time of "
    "the process, so it includes the kernel's share of every system call. Rows marked 'no PostgreSQL' answer "
    "statements without it; a batch then gathers for 1 ms. Batching is worth its cost, since the requests of a batch "
    "share a statement: compare the service with the handler at one statement a request. uvicorn runs with this "
    "service's HTTP protocol; the rows of the stock protocol count from the same stack under it, so a positive figure "
    "is the gain of ours. A microsecond or two is noise. The last columns are the same stacks at a fixed rate, in an "
    "open loop: there every request pays alone for what a busy worker shares among many, such as waking up."
)
_CALLS_METHOD = (
    "Counted by `strace -c -f` on the service at 200 GETs a second, in an open loop: at that rate no two of them meet. "
    "A wake-up is a voluntary context switch, counted by the kernel at 1,000 a second."
)
_COMMAND = (sys.executable, "-m", "benchmarks.stacks")


def _stack(name: str, *options: str) -> System:
    command = (*_COMMAND, name, *options, "--port", "{port}")
    return System(f"stack_{name}{'_stock' if options else ''}", name, command, {"LOG_LEVEL": "warning"})


# A row's title, the stack that it is measured on, and the stack that its difference counts from.
LAYERS: tuple[tuple[str, System, str | None], ...] = (
    ("uvicorn: a bare ASGI callable", _stack("constant"), None),
    ("+ Starlette: routing, request, response", _stack("starlette"), "stack_constant"),
    ("+ handler: id, headers, body, no PostgreSQL", _stack("handler"), "stack_starlette"),
    ("+ batching: no PostgreSQL", _stack("batching"), "stack_handler"),
    ("+ asyncpg: one statement a batch, the service", SYSTEMS["users_api"], "stack_batching"),
    ("handler + asyncpg, one statement a request", SYSTEMS["users_api_unbatched"], "stack_handler"),
    ("uvicorn's stock protocol: a bare ASGI callable", _stack("constant", "--stock"), "stack_constant"),
    ("uvicorn's stock protocol: the service", _stack("service", "--stock"), "users_api"),
)
_DRAWN = LAYERS[:5]
_LONE_RATE = 200


@dataclass(frozen=True)
class Calls:
    """The system calls of a single GET, and how often it wakes the server up."""

    system_calls: dict[str, float]
    wake_ups: float


def render(
    results: Mapping[str, Measurement],
    at_rates: Sequence[Point],
    calls: Calls | None,
    machine: Mapping[str, Any],
    rounds: int,
) -> dict[str, str]:
    """Return profile.json, profile.md and the chart, by file name."""
    lone = {(each.system, each.offered): each.server_us for each in at_rates if each.is_held}
    rows = [
        (title, f"{_added(results, system, below):.1f}", f"{results[system.name].server_us:.1f}",
         f"{results[system.name].requests_per_second:,.0f}",
         *(_lone(lone, system.name, below, rate) for rate in RUN_RATES[::-1]))
        for title, system, below in LAYERS
    ]  # fmt: skip
    rows += [
        (f"PostgreSQL, {SYSTEMS[name].title}", f"{results[name].postgres_us:.1f}", "", "", *_postgres(at_rates, name))
        for name in ("users_api", "users_api_unbatched")
    ]
    head = ("layer", "adds µs", "server µs", "req/s", *(f"adds µs, all µs at {rate:,}/s" for rate in RUN_RATES[::-1]))
    markdown = [
        "# CPU time of one GET by layer\n",
        f"{summarise(machine)}\n",
        f"{_METHOD} Medians of {rounds} rounds.\n",
        table(head, rows) + "\n",
        "![CPU time of each layer](profile.svg)\n",
    ]
    if calls:
        found = [*calls.system_calls.items(), ("wake-ups", calls.wake_ups)]
        counted = [(name, f"{times:.2f}") for name, times in found if times >= 0.05]
        markdown += ["## System calls of a single GET\n", f"{_CALLS_METHOD}\n"]
        markdown += [table(("system call", "a request"), counted) + "\n"]
    document = {
        "machine": machine,
        "method": _METHOD,
        "medians": [each.as_json() for each in results.values()],
        "at_rates": [asdict(each) for each in at_rates],
        "calls": asdict(calls) if calls else None,
    }
    text = json.dumps(document, indent=1) + "\n"
    return {"profile.json": text, "profile.md": "\n".join(markdown), **draw(results)}


def _lone(lone: Mapping[tuple[str, int], float], name: str, below: str | None, rate: int) -> str:
    if (name, rate) not in lone or (below and (below, rate) not in lone):
        return ""
    whole = lone[name, rate]
    return f"{whole - (lone[below, rate] if below else 0.0):.0f}, {whole:.0f}"


def _postgres(at_rates: Sequence[Point], name: str) -> list[str]:
    found = {each.offered: each.postgres_us for each in at_rates if each.system == name and each.is_held}
    return [f"{found[rate]:.0f}" if rate in found else "" for rate in RUN_RATES[::-1]]


def draw(results: Mapping[str, Measurement]) -> dict[str, str]:
    """Return the chart of the layers up to the whole service, by file name."""
    postgres = results["users_api"].postgres_us
    added = {title.partition(":")[0]: _added(results, system, below) for title, system, below in _DRAWN}
    bars = [Bar(title, max(each, 0.0), f"{each:.1f} µs", True) for title, each in added.items()]
    bars.append(Bar("PostgreSQL", postgres, f"{postgres:.1f} µs"))
    total = results["users_api"].server_us + postgres
    note = "shorter is better · each layer's own share · 1 worker, 64 connections"
    return {"profile.svg": bar_chart(f"One GET: {total:.0f} µs of CPU", note, "CPU a request, µs", bars)}


def _added(results: Mapping[str, Measurement], system: System, below: str | None) -> float:
    """Return the CPU time a request, in µs, that a stack uses more than the one below it."""
    return results[system.name].server_us - (results[below].server_us if below else 0.0)


def count_calls(database: Database, seconds: int) -> Calls | None:
    """Count the system calls of a single GET; None without strace."""
    if (strace := shutil.which("strace")) is None:
        return None
    database.prepare(ROWS)
    with serving(SYSTEMS["users_api"], 1, database.url) as server:
        port = int(server.url.rpartition(":")[2])

        def offer(rate: int) -> int:
            return len(uvloop.run(run_phases(port, [Phase("", rate, seconds)], gets(ROWS))).outcomes)

        offer(RUN_RATES[0])
        before = server.process.num_ctx_switches().voluntary
        requests = offer(RUN_RATES[0])
        wake_ups = (server.process.num_ctx_switches().voluntary - before) / requests
        command = [strace, "-c", "-f", "-U", "name,calls", "-p", str(server.process.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            tracer.stderr.readline()  # "attached"
            requests = offer(_LONE_RATE)
            tracer.terminate()
            lines = tracer.stderr.read().splitlines()
    counted = {
        line.split()[0]: int(line.split()[1]) / requests for line in lines if re.fullmatch(r"[a-z_0-9]+ +\d+", line)
    }
    counted.pop("total", None)
    return Calls(counted, wake_ups)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of one second: checks that it runs. The figures are noise.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of times that each stack is measured. Default 5.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(quick: bool, rounds: int | None, output: Path | None) -> None:
    """Measure the CPU time that each layer, from uvicorn to PostgreSQL, adds to one GET.

    Writes profile.json, profile.md and a chart into benchmarks/results. With --quick it writes only into the directory
    of --output.
    """
    times = rounds or (1 if quick else 5)
    job = Job(SYSTEMS["users_api"], WORKLOADS["get"], workers=1, connections=64, seconds=1 if quick else 3)

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        measurements: Sequence[Measurement] = run_rounds(
            [replace(job, system=system) for _, system, _ in LAYERS], database, times
        )
        results = {each.system: each for each in medians(measurements).values()}
        stacks = [system for _, system, _ in LAYERS]
        at_rates = measure_systems(stacks, database, RUN_RATES, job.seconds, 1, times)
        files = render(results, at_rates, count_calls(database, job.seconds), machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["profile.md"])
        click.echo(keep(files, output, not quick))

    run_with_database(measure)


if __name__ == "__main__":
    main()
