"""The growth of this service's costs: `python -m benchmarks.scaling --help`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import Job, Measurement
from benchmarks.plan import FAR_CONNECTIONS
from benchmarks.report import METHOD, as_trial, keep
from benchmarks.session import run_rounds, run_with_database
from benchmarks.systems import SYSTEMS
from benchmarks.tables import table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS, list_workload

_OURS = SYSTEMS["users_api"]
# Thousands of clients in a closed loop exceed the default queue; here their cost is measured, not load shedding.
_DEEP_QUEUE = _OURS.with_environment(
    "deep_queue", "users-api, deep queue", BATCH_MAX_WAITING="10000", REQUESTS_MAX_UNDER_WAY="10000"
)


@dataclass(frozen=True)
class Point:
    """One point of an experiment: its x, its line, and the job that measures it."""

    x: float
    line: str
    job: Job


@dataclass(frozen=True)
class Experiment:
    """One parameter that grows while all others stay the same."""

    name: str
    title: str
    x_title: str
    y_title: str
    note: str
    y: Callable[[Measurement], float]
    points: Sequence[Point]

    @property
    def chart_name(self) -> str:
        """The file name of its chart."""
        return f"scaling-{self.name}.svg"


def experiments(rows: Sequence[int]) -> list[Experiment]:
    """Return the experiments; `rows` are the sizes of the table."""
    get, listing, create = (WORKLOADS[name] for name in ("get", "list", "create"))
    return [
        Experiment(
            "connections",
            "Keep-alive connections",
            "connections",
            "server CPU a GET, µs",
            "lower is better · 2 workers, BATCH_MAX_WAITING=REQUESTS_MAX_UNDER_WAY=10000",
            lambda m: m.server_us,
            [Point(n, "GET by id", Job(_DEEP_QUEUE, get, connections=n, seconds=6)) for n in (64, 256, 1024, 4096)],
        ),
        Experiment(
            "workers",
            "Workers",
            "workers",
            "requests/s",
            "higher is better · 64 connections for each worker",
            lambda m: m.requests_per_second,
            [
                Point(n, workload.title, Job(_OURS, workload, workers=n, connections=64 * n))
                for n in (1, 2)
                for workload in (get, listing, create)
            ],
        ),
        Experiment(
            "rows",
            "Rows in the table",
            "rows",
            "PostgreSQL CPU a request, µs",
            "lower is better · 2 workers, 128 connections",
            lambda m: m.postgres_us,
            [Point(n, workload.title, Job(_OURS, workload, rows=n)) for n in rows for workload in (get, listing)],
        ),
        Experiment(
            "page",
            "Page size of the list",
            "users in a page",
            "users/s",
            "higher is better · 2 workers, 128 connections",
            lambda m: m.requests_per_second * float(m.workload.partition("-")[2]),
            [Point(n, "list", Job(_OURS, list_workload(n))) for n in (1, 10, 100, 1000)],
        ),
        Experiment(
            "in-flight",
            "Statements in flight, by distance to the database",
            "BATCH_IN_FLIGHT",
            "GET requests/s",
            f"higher is better · 1 worker, {FAR_CONNECTIONS} connections",
            lambda m: m.requests_per_second,
            [
                Point(
                    in_flight,
                    f"{distance:g} ms away",
                    Job(
                        _OURS.with_environment(
                            f"in_flight_{in_flight}", f"{in_flight} in flight", BATCH_IN_FLIGHT=str(in_flight)
                        ),
                        get,
                        workers=1,
                        connections=FAR_CONNECTIONS,
                        distance_ms=distance,
                    ),
                )
                for distance in (0.0, 1.0, 10.0)
                for in_flight in (1, 2, 3, 4, 6, 8)
            ],
        ),
    ]


def render(
    made: Sequence[Experiment], measurements: Sequence[Measurement], machine: dict[str, Any], rounds: int
) -> dict[str, str]:
    """Return scaling.json, scaling.md and a chart for each experiment, by file name."""
    results = medians(measurements)
    document = {"machine": machine, "method": METHOD, "measurements": [each.as_json() for each in measurements]}
    parts = ["# Scaling\n", f"{summarise(machine)}\n", f"{METHOD} {rounds} rounds.\n"]
    for experiment in made:
        rows = [_row(point, results[point.job.key]) for point in experiment.points]
        head = (experiment.x_title, "line", "req/s", "p50 ms", "p99 ms", "server µs", "PostgreSQL µs", "errors")
        picture = f"![{experiment.title}]({experiment.chart_name})\n"
        parts += [f"## {experiment.title}\n", picture, table(head, rows) + "\n"]
    text = json.dumps(document, indent=1) + "\n"
    return {"scaling.json": text, "scaling.md": "\n".join(parts), **draw(made, measurements)}


def draw(made: Sequence[Experiment], measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return a chart for each experiment, by file name."""
    results = medians(measurements)
    charts = {}
    for each in made:
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in each.points:
            lines.setdefault(point.line, []).append((point.x, each.y(results[point.job.key])))
        places = sorted({point.x for point in each.points})
        x = Axis(each.x_title, "log" if places[-1] > 10 * places[0] else "linear", places)
        charts[each.chart_name] = line_chart(each.title, each.note, Panel(x, Axis(each.y_title), lines))
    return charts


def _row(point: Point, found: Measurement) -> tuple[str, ...]:
    figures = (found.p50_ms, found.p99_ms)
    rest = (found.server_us, found.postgres_us)
    return (
        f"{point.x:,g}" if point.x < 1000 else f"{point.x:,.0f}",
        point.line,
        f"{found.requests_per_second:,.0f}",
        *(f"{figure:.2f}" for figure in figures),
        *(f"{figure:,.0f}" for figure in rest),
        f"{found.refused + found.socket_errors:,}",
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of one second: checks that everything runs.")
@click.option("--huge", is_flag=True, help="Also with 10,000,000 rows, which take minutes and 8 GB of disk to seed.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="connections, workers, rows, page or in-flight; repeatable."
)
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of times that each measurement is made. Default 3.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(quick: bool, huge: bool, only: tuple[str, ...], rounds: int | None, output: Path | None) -> None:
    """Measure the growth of this service's costs.

    The costs depend on keep-alive connections, workers, rows of the table, page size, and statements in flight by
    distance to the database. Takes about ten minutes. Writes scaling.json, scaling.md and SVG charts into
    benchmarks/results. With --quick or --only it writes only into the directory of --output.
    """
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    made = [each for each in experiments((*sizes, 10_000_000) if huge else sizes) if not only or each.name in only]
    if not made:
        raise click.BadParameter(f"no such experiment: {', '.join(only)}", param_hint="--only")
    times = rounds or (1 if quick else 3)

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        # Each job once, and all rounds of one table size together: a large table takes minutes to seed.
        unique = {point.job.key: point.job for each in made for point in each.points}
        jobs = sorted(unique.values(), key=lambda job: job.rows)
        measurements = [
            measurement
            for _, same_size in groupby(jobs, key=lambda job: job.rows)
            for measurement in run_rounds([job.lasting(1) if quick else job for job in same_size], database, times)
        ]
        files = render(made, measurements, machine, times)
        files = as_trial(files) if quick else files
        click.echo(files["scaling.md"])
        click.echo(keep(files, output, not (quick or only)))

    run_with_database(measure)


if __name__ == "__main__":
    main()
