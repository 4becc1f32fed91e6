"""The latency of a GET at a given rate: `python -m benchmarks.latency --help`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import uvloop

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import GENERATOR_LIMIT
from benchmarks.openloop import Phase, Summary, gets, run_phases, split, summarise_phase
from benchmarks.progress import Progress
from benchmarks.report import as_trial, keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, System, serving
from benchmarks.tables import table

ROWS = 100_000
RATES = (250, 500, 1000, 2000, 4000, 8000, 12_000, 16_000)
COMPARED = [SYSTEMS[n] for n in ("users_api", "users_api_unbatched", "starlette_textbook", "fastapi_sqlalchemy")]
_HELD = 0.95
_METHOD = (
    "One worker each, PostgreSQL on the same machine. An open loop offers GETs of random users at a fixed rate. Every "
    "millisecond it sends the requests that are due, whether or not earlier ones were answered, so a stall cannot hide "
    "by delaying requests. Rates rise until a system answers less than 95 % of the offered rate. Each begins with a "
    "second of warm-up."
)


@dataclass(frozen=True)
class Point:
    """The result of a system at one rate: medians over the rounds."""

    system: str
    offered: int  # requests a second
    goodput: float  # answers 2xx a second
    p50_ms: float
    p99_ms: float
    generator_cores: float

    @property
    def is_held(self) -> bool:
        """True if the system answered the offered rate."""
        return self.goodput >= _HELD * self.offered


def render(points: Sequence[Point], titles: Mapping[str, str], machine: dict[str, Any], rounds: int) -> dict[str, str]:
    """Return latency.json, latency.md and the chart, by file name."""
    rows = [
        (titles[p.system] + ("" if p.generator_cores < GENERATOR_LIMIT else " (limit of the generator)"),
         f"{p.offered:,}", f"{p.goodput:,.0f}", f"{p.p50_ms:.2f}", f"{p.p99_ms:.2f}", "yes" if p.is_held else "no")
        for p in points
    ]  # fmt: skip
    markdown = "\n".join(
        [
            "# Latency by offered rate\n",
            f"{summarise(machine)}\n",
            f"{_METHOD} Medians of {rounds} rounds.\n",
            "![p99 latency by offered rate](latency.svg)\n",
            table(("system", "offered/s", "answered/s", "p50 ms", "p99 ms", "held"), rows) + "\n",
        ]
    )
    document = {"machine": machine, "method": _METHOD, "rounds": rounds, "points": [asdict(each) for each in points]}
    return {"latency.json": json.dumps(document, indent=1) + "\n", "latency.md": markdown, **draw(points, titles)}


def draw(points: Sequence[Point], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the chart of the points, by file name."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in points:
        lines.setdefault(titles[each.system], []).append((each.offered, each.p99_ms))
    chart = line_chart(
        "GET by id: p99 latency by offered rate",
        "lower is better · a line ends where its system falls behind · 1 worker",
        Panel(Axis("offered rate, requests/s", "log"), Axis("p99 latency, ms", "log"), lines, " ms"),
    )
    return {"latency.svg": chart}


def _offer(url: str, rate: int, seconds: int) -> tuple[Summary, float]:
    """Offer one rate; return the result after the warm-up, and the cores that the generator used."""
    phases = [Phase("warm-up", rate, 1), Phase("measured", rate, seconds)]
    cpu, clock = time.process_time(), time.perf_counter()
    trace = uvloop.run(run_phases(int(url.rpartition(":")[2]), phases, gets(ROWS)))
    cores = (time.process_time() - cpu) / (time.perf_counter() - clock)
    return summarise_phase(phases[1], split(trace, phases)[1]), cores


def _measure(system: System, database: Database, rates: Sequence[int], seconds: int, progress: Progress) -> list[Point]:
    """Measure one round of one system: a point for each rate up to the first that it does not hold."""
    points: list[Point] = []
    database.prepare(ROWS, system.index)
    with serving(system, 1, database.url) as server:
        for number, rate in enumerate(rates):
            progress.begin(f"{system.title}, {rate:,} requests a second")
            found, cores = _offer(server.url, rate, seconds)
            points.append(Point(system.name, rate, found.goodput, found.p50_ms, found.p99_ms, cores))
            progress.finish(f"{system.title}, {rate:,}/s: p99 {found.p99_ms:.2f} ms", [])
            if not points[-1].is_held:
                for skipped in rates[number + 1 :]:
                    progress.finish(f"{system.title}, {skipped:,}/s: skipped, a lower rate was not held", [])
                break
    return points


def merge(rounds: Sequence[Sequence[Point]], rates: Sequence[int]) -> list[Point]:
    """Return the medians for each system and rate that more than half of the rounds have reached."""
    merged = []
    for system in COMPARED:
        for rate in rates:
            found = [p for each in rounds for p in each if (p.system, p.offered) == (system.name, rate)]
            if 2 * len(found) > len(rounds):
                figures = ((p.goodput, p.p50_ms, p.p99_ms, p.generator_cores) for p in found)
                merged.append(Point(system.name, rate, *map(median, zip(*figures, strict=True))))
    return merged


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round, two rates, one second each: checks that it runs.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of rounds. Default 3.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(quick: bool, rounds: int | None, output: Path | None) -> None:
    """Measure the latency of a GET by offered rate, for this service and others.

    Writes latency.json, latency.md and a chart into benchmarks/results. With --quick it writes only into the directory
    of --output.
    """
    rates, seconds, times = (RATES[:2], 1, rounds or 1) if quick else (RATES, 3, rounds or 3)

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        progress = Progress(len(COMPARED) * len(rates) * times)
        measured = [
            [point for system in COMPARED for point in _measure(system, database, rates, seconds, progress)]
            for _ in range(times)
        ]
        progress.close()
        titles = {system.name: system.title for system in COMPARED}
        files = render(merge(measured, rates), titles, machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["latency.md"])
        click.echo(keep(files, output, not quick))

    run_with_database(measure)


if __name__ == "__main__":
    main()
