"""The CPU time of one GET by layer: `python -m benchmarks.profile --help`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.charts import Bar, bar_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import Job, Measurement
from benchmarks.report import as_trial, keep
from benchmarks.session import run_rounds, run_with_database
from benchmarks.systems import SYSTEMS, System
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
    "is the gain of ours. A microsecond or two is noise."
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


def render(results: Mapping[str, Measurement], machine: Mapping[str, Any], rounds: int) -> dict[str, str]:
    """Return profile.json, profile.md and the chart, by file name."""
    rows = [
        (title, f"{_added(results, system, below):.1f}", f"{results[system.name].server_us:.1f}",
         f"{results[system.name].requests_per_second:,.0f}")
        for title, system, below in LAYERS
    ]  # fmt: skip
    rows += [
        (f"PostgreSQL, {SYSTEMS[name].title}", f"{results[name].postgres_us:.1f}", "", "")
        for name in ("users_api", "users_api_unbatched")
    ]
    markdown = "\n".join(
        [
            "# CPU time of one GET by layer\n",
            f"{summarise(machine)}\n",
            f"{_METHOD} Medians of {rounds} rounds.\n",
            table(("layer", "adds µs", "server µs", "req/s"), rows) + "\n",
            "![CPU time of each layer](profile.svg)\n",
        ]
    )
    document = {"machine": machine, "method": _METHOD, "medians": [each.as_json() for each in results.values()]}
    return {"profile.json": json.dumps(document, indent=1) + "\n", "profile.md": markdown, **draw(results)}


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
        files = render(results, machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["profile.md"])
        click.echo(keep(files, output, not quick))

    run_with_database(measure)


if __name__ == "__main__":
    main()
