"""How soon a database that is back is used: `python -m benchmarks.recovery --help`."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import uvloop

from api.database import migrations
from api.neon.url import parse_url
from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.database import Database, execute
from benchmarks.machine import describe_machine, summarise
from benchmarks.openloop import Outcome, Phase, gets, run_phases
from benchmarks.progress import Progress
from benchmarks.report import as_trial, keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, serving
from benchmarks.tables import table
from tests.support import rig as neon_rig
from tests.support.rig import STARTING, Cut, Rig

RATE = 60.0
ROWS = 1000
FIRST_SECONDS = 1.0
ALL_SECONDS = 2.0
_CALM_SECONDS = 1.0
_WATCHED_SECONDS = 6.0
_METHOD = (
    f"One worker behind PgBouncer and a proxy gets {RATE:g} GETs a second, whether or not earlier ones are answered. "
    "The proxy resets every connection and refuses new ones with 57P03 until the outage is over. Then it is watched "
    f"for {_WATCHED_SECONDS:g} s. Both times count from the end of the outage: to the first answer 200, and to the "
    "first one from which on 99 % of all answers are 200. The deadline is ACQUIRE_TIMEOUT_SECONDS."
)


@dataclass(frozen=True)
class Cell:
    """One outage: times in seconds, the distance in milliseconds there and back."""

    distance_ms: float
    outage: float
    deadline: float
    batching: bool

    @property
    def line(self) -> str:
        """The name of its line in the chart."""
        mode = "batched" if self.batching else "unbatched"
        return f"{mode}, down {self.outage:g} s, deadline {self.deadline:g} s"


@dataclass(frozen=True)
class Recovery:
    """The result of one cell: seconds after the outage, and the requests in it and after it that got no 200."""

    cell: Cell
    first: float
    all: float
    failed_during: int
    failed_after: int

    @property
    def is_met(self) -> bool:
        """True if both times are within their bounds."""
        return self.first <= FIRST_SECONDS and self.all <= ALL_SECONDS


def whole_matrix() -> list[Cell]:
    """Return the cells of the committed results. The last ones have the default deadline."""
    cells = [
        Cell(distance, outage, 3.0, batching)
        for batching in (True, False)
        for outage in (2.0, 5.0)
        for distance in (0.0, 5.0, 20.0, 80.0)
    ]
    return cells + [Cell(20.0, 18.0, 15.0, batching) for batching in (True, False)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Two short outages: only checks that everything runs.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(quick: bool, output: Path | None) -> None:
    """Measure how soon a healthy database is used after an outage, by distance, length of the outage, and batching.

    Outages are shorter and longer than ACQUIRE_TIMEOUT_SECONDS, under a steady load. Exit code 1: the first answer 200
    took more than 1 s, or 99 % took more than 2 s. Writes recovery.json, recovery.md and a chart into
    benchmarks/results. With --quick it writes only into the directory of --output.
    """
    program = neon_rig.find()
    if program is None:
        click.echo(f"benchmarks: no PgBouncer >= 1.21: run {neon_rig.SCRIPT}, which finds or fetches one", err=True)
        sys.exit(2)
    cells = [Cell(20.0, 0.5, 0.3, True), Cell(20.0, 0.5, 1.0, False)] if quick else whole_matrix()

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        recoveries = list(measure_cells(database, program, cells))
        files = render(machine, recoveries)
        files = as_trial(files) if quick else files
        click.echo(files["recovery.md"])
        click.echo(keep(files, output, is_whole=not quick))
        if not all(each.is_met for each in recoveries):
            sys.exit(1)

    run_with_database(measure, needs_wrk=False)


def measure_cells(database: Database, pgbouncer: Path, cells: Sequence[Cell]) -> Iterator[Recovery]:
    """Measure each cell on a server of its own. Raises processes.StartError."""
    progress = Progress(len(cells))
    with neon_rig.running(database.url, pgbouncer) as rig:
        execute(database.url, f"create database neondb owner {neon_rig.ROLE}")
        neon = rig.database(database.url.replace("/postgres?", "/neondb?"))
        migrations.migrate(parse_url(neon.direct), report=lambda line: None)
        users = f"select 'user' || n || '@example.com' from generate_series(1, {ROWS}) as n"
        execute(neon.superuser, f"insert into users (email) {users}")
        for cell in cells:
            rig.distance = cell.distance_ms / 1000
            rig.reset()
            name = "users_api" if cell.batching else "users_api_unbatched"
            system = SYSTEMS[name].with_environment(name, name, ACQUIRE_TIMEOUT_SECONDS=f"{cell.deadline:g}")
            progress.begin(f"{cell.distance_ms:g} ms, {cell.line}")
            with serving(system, 1, neon.pooled) as server:
                found = uvloop.run(_measure(rig, int(server.url.rpartition(":")[2]), cell))
            progress.finish(
                f"{cell.distance_ms:g} ms, {cell.line}: first after {found.first:.2f} s, 99 % after {found.all:.2f} s",
                [],
            )
            yield found
    progress.close()


async def _measure(rig: Rig, port: int, cell: Cell) -> Recovery:
    seconds = _CALM_SECONDS + cell.outage + _WATCHED_SECONDS
    start = time.perf_counter()
    load = asyncio.create_task(run_phases(port, [Phase("all", RATE, seconds)], gets(ROWS), cell.deadline + 5.0))
    await asyncio.sleep(_CALM_SECONDS)
    began = time.perf_counter() - start
    rig.refusal = STARTING
    await asyncio.to_thread(rig.cut, Cut.RESET)
    await asyncio.sleep(cell.outage)
    rig.refusal = None
    back = time.perf_counter() - start
    outcomes = (await load).outcomes
    during = [each for each in outcomes if began <= each.due < back]
    after = [each for each in outcomes if each.due >= back]
    return Recovery(
        cell,
        first_answer(outcomes, back),
        all_answered(outcomes, back),
        sum(each.status != 200 for each in during),
        sum(each.status != 200 for each in after),
    )


def first_answer(outcomes: Sequence[Outcome], back: float) -> float:
    """Return the seconds from `back` to the first answer 200, whenever its request was sent."""
    answered = [each.due + each.seconds - back for each in outcomes if each.status == 200]
    return min((seconds for seconds in answered if seconds >= 0), default=float("inf"))


def all_answered(outcomes: Sequence[Outcome], back: float) -> float:
    """Return the seconds from `back` to the first answer from which on 99 % of all answers are 200."""
    answers = sorted((each.due + each.seconds - back, each.status == 200) for each in outcomes)
    answers = [(seconds, good) for seconds, good in answers if seconds >= 0]
    failed = sum(not good for _, good in answers)
    for number, (seconds, good) in enumerate(answers):
        if good and failed <= 0.01 * (len(answers) - number):
            return seconds
        failed -= not good
    return float("inf")


def render(machine: Mapping[str, Any], recoveries: Sequence[Recovery]) -> dict[str, str]:
    """Return recovery.json, recovery.md and the chart, by file name."""
    found = [asdict(each) for each in recoveries]
    document = {"machine": machine, "method": _METHOD, "recoveries": [each.pop("cell") | each for each in found]}
    head = (
        "distance",
        "outage",
        "deadline",
        "batching",
        "first 200",
        "99 % 200",
        "no 200 in the outage",
        "after it",
        "",
    )
    rows = [
        (f"{c.distance_ms:g} ms", f"{c.outage:g} s", f"{c.deadline:g} s", "on" if c.batching else "off",
         f"{each.first:.2f} s", f"{each.all:.2f} s", f"{each.failed_during:,}", f"{each.failed_after:,}",
         "met" if each.is_met else "NOT met")
        for each in recoveries for c in [each.cell]
    ]  # fmt: skip
    markdown = "\n".join(
        [
            "# Recovery\n",
            f"{summarise(machine)}\n",
            f"{_METHOD}\n",
            f"Bounds: {FIRST_SECONDS:g} s to the first 200, and {ALL_SECONDS:g} s to 99 %.\n",
            table(head, rows) + "\n",
            "![seconds to the first 200, and to 99 %](recovery.svg)\n",
        ]
    )
    return {"recovery.json": json.dumps(document, indent=1) + "\n", "recovery.md": markdown, **draw(document)}


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of recovery.json, by file name."""
    found = document["recoveries"]
    distances = sorted({each["distance_ms"] for each in found})
    x = Axis("round trip to the database, ms", "symlog", distances)
    panels = []
    for name, title, bound in (("first", "first answer 200", FIRST_SECONDS), ("all", "99 % answered 200", ALL_SECONDS)):
        lines: dict[str, list[tuple[float, float]]] = {}
        for each in found:
            cell = Cell(each["distance_ms"], each["outage"], each["deadline"], each["batching"])
            lines.setdefault(cell.line, []).append((each["distance_ms"], each[name]))
        panels.append(Panel(x, Axis("s after the outage"), lines, " s", f"{title}: at most {bound:g} s"))
    return {
        "recovery.svg": line_chart("Recovery: a database that is back", f"lower is better · {RATE:g} GETs/s", *panels)
    }


if __name__ == "__main__":
    main()
