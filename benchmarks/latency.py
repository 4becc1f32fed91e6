"""The latency and CPU time of a GET at a given rate: `python -m benchmarks.latency --help`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from statistics import median
from typing import Any

import click
import uvloop

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import Point
from benchmarks.openloop import Phase, Summary, gets, run_phases, split, summarise_phase
from benchmarks.processes import cpu_seconds
from benchmarks.progress import Progress
from benchmarks.report import as_trial, keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, System, read_systems, serving
from benchmarks.tables import rates_table

ROWS = 100_000
RATES = (250, 500, 1000, 2000, 5000, 8000, 12_000, 16_000)
RUN_RATES = (1000, 5000)
"""Requests a second that people run: far below what saturates a worker."""
COMPARED = [SYSTEMS[n] for n in ("users_api", "users_api_unbatched", "starlette_textbook", "fastapi_sqlalchemy")]
_METHOD = (
    "PostgreSQL on the same machine. An open loop offers GETs of random users at a fixed rate. Every "
    "millisecond it sends the requests that are due, whether or not earlier ones were answered, so a stall cannot hide "
    "by delaying requests. Rates rise until a system answers less than 95 % of the offered rate. Each begins with a "
    "second of warm-up. CPU is user and system time of the whole process tree."
)


def render(points: Sequence[Point], titles: Mapping[str, str], machine: dict[str, Any], rounds: int) -> dict[str, str]:
    """Return latency.json, latency.md and the charts, by file name."""
    charts = draw(points, titles)
    markdown = "\n".join(
        [
            "# Latency and CPU by offered rate\n",
            f"{summarise(machine)}\n",
            f"{_workers(points)} each. {_METHOD} Medians of {rounds} rounds.\n",
            "![p99 latency by offered rate](latency.svg)\n",
            "![CPU of a GET by offered rate](latency-cpu.svg)\n",
            rates_table(points, titles) + "\n",
        ]
    )
    document = {"machine": machine, "method": _METHOD, "rounds": rounds, "points": [asdict(each) for each in points]}
    return {"latency.json": json.dumps(document, indent=1) + "\n", "latency.md": markdown, **charts}


def draw(points: Sequence[Point], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the charts of the points, by file name."""
    latency: dict[str, list[tuple[float, float]]] = {}
    cpu: dict[str, list[tuple[float, float]]] = {}
    for each in points:
        latency.setdefault(titles[each.system], []).append((each.offered, each.p99_ms))
        if each.is_held:
            cpu.setdefault(titles[each.system], []).append((each.offered, each.server_us))
    rate = Axis("offered rate, requests/s", "log")
    note = f"lower is better · a line ends where its system falls behind · {_workers(points).lower()}"
    return {
        "latency.svg": line_chart(
            "GET by id: p99 latency at the rate you run", note,
            Panel(rate, Axis("p99 latency, ms", "log"), latency, " ms"),
        ),
        "latency-cpu.svg": line_chart(
            "GET by id: server CPU at the rate you run", note, Panel(rate, Axis("CPU a request, µs", "log"), cpu, " µs")
        ),
    }  # fmt: skip


def _workers(points: Sequence[Point]) -> str:
    workers = points[0].workers if points else 1
    return "One worker" if workers == 1 else f"{workers} workers"


def _offer(url: str, rate: int, seconds: int) -> tuple[Summary, float]:
    """Offer one rate; return the result, and the cores that the generator used."""
    phase = Phase("measured", rate, seconds)
    cpu, clock = time.process_time(), time.perf_counter()
    trace = uvloop.run(run_phases(int(url.rpartition(":")[2]), [phase], gets(ROWS)))
    cores = (time.process_time() - cpu) / (time.perf_counter() - clock)
    return summarise_phase(phase, split(trace, [phase])[0]), cores


def measure_rates(
    system: System, database: Database, rates: Sequence[int], seconds: int, workers: int, progress: Progress
) -> list[Point]:
    """Measure one round of one system: a point for each rate up to the first that it does not hold."""
    points: list[Point] = []
    database.prepare(ROWS, system.index)
    with serving(system, workers, database.url) as server:
        for number, rate in enumerate(rates):
            progress.begin(f"{system.title}, {rate:,} requests a second")
            _offer(server.url, rate, 1)
            before = cpu_seconds(server.process), database.cpu_seconds()
            found, cores = _offer(server.url, rate, seconds)
            after = cpu_seconds(server.process), database.cpu_seconds()
            server_us, postgres_us = ((b - a) / (rate * seconds) * 1e6 for a, b in zip(before, after, strict=True))
            latency = found.p50_ms, found.p99_ms, found.p999_ms
            points.append(
                Point(system.name, rate, found.goodput, *latency, server_us, postgres_us, cores, workers=workers)
            )
            progress.finish(f"{system.title}, {rate:,}/s: {server_us:.0f} µs, p99 {found.p99_ms:.2f} ms", [])
            if not points[-1].is_held:
                for skipped in rates[number + 1 :]:
                    progress.finish(f"{system.title}, {skipped:,}/s: skipped, a lower rate was not held", [])
                break
    return points


def measure_systems(
    systems: Sequence[System], database: Database, rates: Sequence[int], seconds: int, workers: int, rounds: int
) -> list[Point]:
    """Measure the systems in turn, every second round in reverse order; return the medians."""
    progress = Progress(len(systems) * len(rates) * rounds)
    measured = [
        [
            p
            for each in systems[:: 1 - 2 * (n % 2)]
            for p in measure_rates(each, database, rates, seconds, workers, progress)
        ]
        for n in range(rounds)
    ]
    progress.close()
    return merge(measured, systems, rates)


def merge(rounds: Sequence[Sequence[Point]], systems: Sequence[System], rates: Sequence[int]) -> list[Point]:
    """Return the medians for each system and rate that more than half of the rounds have reached."""
    merged = []
    for system in systems:
        for rate in rates:
            found = [p for each in rounds for p in each if (p.system, p.offered) == (system.name, rate)]
            if 2 * len(found) > len(rounds):
                figures = zip(*(astuple(each)[2:-1] for each in found), strict=True)
                merged.append(Point(system.name, rate, *map(median, figures), workers=found[0].workers))
    return merged


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round, two rates, one second each: checks that it runs.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of rounds. Default 3.")
@click.option("--seconds", type=click.IntRange(1, 60), help="Length of one measurement. Default 3.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers of each system.")
@click.option("--rate", "rates", multiple=True, type=click.IntRange(10), help="Requests a second; repeatable.")
@click.option(
    "--system",
    "extra",
    multiple=True,
    metavar="NAME=DIRECTORY|COMMAND",
    callback=read_systems,
    help="Compare with this system only: see benchmarks.run --help; repeatable.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    workers: int,
    rates: tuple[int, ...],
    extra: list[System],
    output: Path | None,
) -> None:
    """Measure the latency and the CPU time of a GET by offered rate, for this service and others.

    Writes latency.json, latency.md and charts into benchmarks/results. With --quick, --rate, --system or --workers it
    writes only into the directory of --output.
    """
    systems = [SYSTEMS["users_api"], *extra] if extra else COMPARED
    is_whole = not (quick or rates or extra or workers > 1)
    chosen = rates or (RATES[:2] if quick else RATES)

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        times = rounds or (1 if quick else 3)
        points = measure_systems(systems, database, chosen, seconds or (1 if quick else 3), workers, times)
        files = render(points, {system.name: system.title for system in systems}, machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["latency.md"])
        click.echo(keep(files, output, is_whole))

    run_with_database(measure)


if __name__ == "__main__":
    main()
