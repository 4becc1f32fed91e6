"""Where the microseconds of one GET go: `python -m benchmarks.profile --help`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import Job, Measurement
from benchmarks.report import keep
from benchmarks.session import run_rounds, run_with_database
from benchmarks.svg import Bar, bar_chart
from benchmarks.systems import SYSTEMS, System
from benchmarks.tables import table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS

_METHOD = (
    "Stacks of growing height serve the same GET by the same command, one worker, 64 connections under wrk; a layer "
    "costs what its stack uses more CPU than the one below, a request. CPU is user and system time of the process, so "
    "the kernel's share of every system call is in it. Where the table says so, statements are answered without "
    "PostgreSQL; a batch then gathers for 1 ms. Batching is worth its own cost: it shares a statement among the "
    "requests of a batch, which the last two rows of the server show. A microsecond or two is noise."
)
_COMMAND = (sys.executable, "-m", "benchmarks.stacks")


def _stack(name: str) -> System:
    command = (*_COMMAND, name, "--port", "{port}")
    return System(f"stack_{name}", name, command, {"LOG_LEVEL": "warning"})


# What a row is called, and which stack it is measured on; each adds to the one before, except where `above` says so.
LAYERS: tuple[tuple[str, System, str | None], ...] = (
    ("uvicorn: a bare ASGI callable", _stack("constant"), None),
    ("+ Starlette: routing, request, response", _stack("starlette"), "stack_constant"),
    ("+ handler: id, headers, body, no PostgreSQL", _stack("handler"), "stack_starlette"),
    ("+ batching: no PostgreSQL", _stack("batching"), "stack_handler"),
    ("+ asyncpg: one statement a batch, the service", SYSTEMS["users_api"], "stack_batching"),
    ("handler + asyncpg, one statement a request", SYSTEMS["users_api_unbatched"], "stack_handler"),
)


def render(results: Mapping[str, Measurement], machine: Mapping[str, Any], rounds: int) -> dict[str, str]:
    """Return profile.json, profile.md and the chart, by file name."""
    rows, bars = [], []
    for title, system, below in LAYERS:
        measured = results[system.name]
        added = measured.server_us - (results[below].server_us if below else 0.0)
        rows.append((title, f"{added:.1f}", f"{measured.server_us:.1f}", f"{measured.requests_per_second:,.0f}"))
        if system.name != "users_api_unbatched":
            bars.append(Bar(title.partition(":")[0], max(added, 0.0), f"{added:.1f} µs"))
    rows += [
        (f"PostgreSQL, {SYSTEMS[name].title}", f"{results[name].postgres_us:.1f}", "", "")
        for name in ("users_api", "users_api_unbatched")
    ]
    postgres = results["users_api"].postgres_us
    bars.append(Bar("PostgreSQL", postgres, f"{postgres:.1f} µs"))
    total = results["users_api"].server_us + postgres
    chart = bar_chart(f"One GET: {total:.0f} µs of CPU", "what each layer adds · shorter is better", bars)
    markdown = "\n".join(
        [
            "# Where one GET's microseconds go\n",
            f"{summarise(machine)}\n",
            f"{_METHOD} Medians of {rounds} rounds.\n",
            table(("layer", "adds µs", "server µs", "req/s"), rows) + "\n",
            "![what each layer adds](profile.svg)\n",
        ]
    )
    document = {"machine": machine, "method": _METHOD, "medians": [each.as_json() for each in results.values()]}
    return {"profile.json": json.dumps(document, indent=1) + "\n", "profile.md": markdown, "profile.svg": chart}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of one second: does it run? The figures are noise.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Times that every stack is measured. Default 5.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Where results go; see above.")
def main(quick: bool, rounds: int | None, output: Path | None) -> None:
    """Show what each layer, from uvicorn to PostgreSQL, adds to the CPU time of one GET.

    Writes profile.json, profile.md and a chart into benchmarks/results, with --quick where --output says so alone.
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
        click.echo(files["profile.md"])
        click.echo(keep(files, output, not quick))

    run_with_database(measure)


if __name__ == "__main__":
    main()
