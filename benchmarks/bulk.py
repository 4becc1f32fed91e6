"""Import, export and search of a million users: `python -m benchmarks.bulk --help`."""

import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from api.resources.cursors import Position, write_cursor
from benchmarks.charts import Bar, bar_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.report import keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, serving
from benchmarks.tables import table
from benchmarks.transfers import MEDIA_TYPES, MEMORY_TARGET_MB, SEARCH_TARGET_MS, BulkBenchmark

_SEARCHES = 300
_METHOD = (
    "One worker and PostgreSQL with durable commits on one machine. Addresses and names are in random order. Over HTTP "
    "a client sends the file by sendfile and reads the response meanwhile. The rate counts from the first byte sent to "
    "the last one read, or from the start of a command to its end. Memory is the growth of the peak resident set: for "
    "the server after a small import and export, for a command beyond its peak for a thousand users. CPU is user and "
    "system time. Searches run one after the other over one connection, each with another query, in pages of 100."
)
_FIRST = (
    "Ada", "Alan", "Anita", "Barbara", "Bjarne", "Carol", "Dennis", "Donald", "Edsger", "Frances", "Grace", "Guido",
    "Hedy", "Jean", "John", "Katherine", "Ken", "Margaret", "Niklaus", "Radia", "Sophie", "Tim", "Vint", "Yukihiro",
)  # fmt: skip
_LAST = (
    "Allen", "Backus", "Borg", "Cerf", "Dijkstra", "Goldberg", "Hamilton", "Hopper", "Johnson", "Kernighan", "Knuth",
    "Lamarr", "Liskov", "Lovelace", "Perlman", "Ritchie", "Sammet", "Shaw", "Thompson", "Turing", "Wilson", "Wirth",
)  # fmt: skip


def write_files(directory: Path, rows: int) -> dict[str, Path]:
    """Write the same users as NDJSON and as CSV, in random order of addresses and names."""
    chance = random.Random(1)
    numbers = list(range(rows))
    chance.shuffle(numbers)
    files = {kind: directory / f"{rows}.{kind}" for kind in MEDIA_TYPES}
    with files["ndjson"].open("w") as ndjson, files["csv"].open("w") as csv:
        csv.write("email,name\n")
        for number in numbers:
            first, last = chance.choice(_FIRST), chance.choice(_LAST)
            email = f"{first.lower()}.{last.lower()}{number}@example.com"
            ndjson.write(f'{{"email":"{email}","name":"{first} {last}"}}\n')
            csv.write(f"{email},{first} {last}\n")
    return files


def measure(database: Database, directory: Path, rows: int) -> BulkBenchmark:
    """Measure every transfer and search once."""
    database.prepare(1000)  # serving() waits until user 1 can be read
    few, many = write_files(directory, 1000), write_files(directory, rows)
    with serving(SYSTEMS["users_api"], 1, database.url) as server:
        bench = BulkBenchmark(database, server)
        for kind in MEDIA_TYPES:
            bench.import_over_http("a few first", few[kind], 1000, "?on_conflict=skip")
            bench.export_over_http("a few first", 2000, f"?format={kind}")
        held = {}
        for kind in MEDIA_TYPES:
            out = directory / f"out.{kind}"
            held[kind] = bench.command("a few first", ["import", str(few[kind]), "--on-conflict", "skip"], 1000)
            held["to " + kind] = bench.command("a few first", ["export", str(out)], 2000)
        bench.transfers.clear()

        for kind in MEDIA_TYPES:
            database.empty()
            bench.import_over_http(f"import over HTTP, {kind}", many[kind], rows, target=30_000)
        for mode, became in (("error", "all refused"), ("skip", "all there"), ("update", "nothing changes")):
            query = f"?on_conflict={mode}"
            bench.import_over_http(f"import over HTTP, on_conflict={mode}, {became}", many["ndjson"], rows, query)
        for kind in MEDIA_TYPES:
            bench.export_over_http(f"export over HTTP, {kind}", rows, f"?format={kind}", target=150_000)
        for kind in MEDIA_TYPES:
            database.empty()
            what = f"users-api import, {kind}"
            bench.command(what, ["import", str(many[kind])], rows, 100_000, held[kind])
        what = "users-api import --on-conflict skip, all there"
        bench.command(what, ["import", str(many["ndjson"]), "--on-conflict", "skip"], rows, None, held["ndjson"])
        for kind in MEDIA_TYPES:
            arguments = ["export", str(directory / f"out.{kind}")]
            bench.command(f"users-api export, {kind}", arguments, rows, 150_000, held["to " + kind])
        for what, queries in searches(rows, *bench.times()).items():
            bench.search(what, queries)
    return bench


def searches(rows: int, oldest: datetime, newest: datetime) -> dict[str, list[dict[str, str]]]:
    """Return the queries of each kind of search; no two are equal."""
    chance = random.Random(2)
    people = [(chance.choice(_FIRST), chance.choice(_LAST)) for _ in range(_SEARCHES)]
    numbers = [str(chance.randrange(rows)) for _ in people]
    times = [(oldest + (newest - oldest) * chance.random()).isoformat() for _ in people]
    middle = [write_cursor(Position(f"{first} {last}".lower(), 0)) for first, last in people]
    return {
        "q: two letters": [{"q": first[:2]} for first, _ in people],
        "q: a letter, from the middle on": [
            {"q": first[0], "cursor": cursor} for (first, _), cursor in zip(people, middle, strict=True)
        ],
        "q: a whole name": [{"q": f"{first} {last}"} for first, last in people],
        "q: one address": [{"q": f"{a}.{b}{n}@"} for (a, b), n in zip(people, numbers, strict=True)],
        "q: no match": [{"q": f"nobody{number}"} for number in numbers],
        "order=-id": [{"order": "-id", "after": number} for number in numbers],
        "order=created_at, created_after": [{"order": "created_at", "created_after": time} for time in times],
        "order=-created_at, created_before": [{"order": "-created_at", "created_before": time} for time in times],
    }


def render(bench: BulkBenchmark, machine: dict[str, Any], rows: int) -> dict[str, str]:
    """Return bulk.json, bulk.md and the chart, by file name."""
    transfers = [
        (each.what, f"{each.rate:,.0f}", f"{each.target:,}" if each.target else "", f"{each.memory_mb:.0f}",
         f"{each.process_us:.1f}", f"{each.postgres_us:.1f}", each.verdict)
        for each in bench.transfers
    ]  # fmt: skip
    latencies = [(each.what, f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", each.verdict) for each in bench.latencies]
    head = ("what", "users/s", "target", "memory, MB", "process µs", "PostgreSQL µs", "verdict")
    parts = [
        "# Import, export and search\n",
        f"{summarise(machine)}\n",
        f"{_METHOD}\n",
        f"## {rows:,} users in and out\n",
        f"Targets are minimum users a second; memory must grow by less than {MEMORY_TARGET_MB:g} MB.\n",
        table(head, transfers) + "\n",
        "![users a second](bulk.svg)\n",
        f"## Pages of 100 out of {rows:,}\n",
        f"The median must be below {SEARCH_TARGET_MS:g} ms.\n",
        table(("what", "p50 ms", "p99 ms", "verdict"), latencies) + "\n",
    ]
    document = {
        "machine": machine,
        "method": _METHOD,
        "rows": rows,
        "transfers": [{**asdict(each), "users_per_second": each.rate} for each in bench.transfers],
        "latencies": [asdict(each) for each in bench.latencies],
    }
    return {"bulk.json": json.dumps(document, indent=1) + "\n", "bulk.md": "\n".join(parts), **draw(document)}


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of bulk.json, by file name: every transfer that has a target."""
    bars = [
        Bar(
            each["what"].replace("users-api", "command"),
            each["users_per_second"],
            f"{each['users_per_second']:,.0f}",
            True,
        )
        for each in document["transfers"]
        if each["target"]
    ]
    note = "longer is better · one worker, durable commits, one machine"
    return {"bulk.svg": bar_chart(f"{document['rows']:,} users in and out", note, "users/s", bars)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rows", default=1_000_000, show_default=True, type=click.IntRange(2000), help="Users to import and export."
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(rows: int, output: Path | None) -> None:
    """Import and export a million users, over HTTP and by command, and search them.

    Prints users a second, memory, CPU and the latencies of searches; takes about four minutes. Writes bulk.json,
    bulk.md and a chart into benchmarks/results. With fewer rows than the default it writes only into the directory of
    --output.
    """

    def run(database: Database) -> None:
        machine = describe_machine(database)
        with TemporaryDirectory(prefix="users-api-bench-") as directory:
            bench = measure(database, Path(directory), rows)
        files = render(bench, machine, rows)
        click.echo(files["bulk.md"])
        click.echo(keep(files, output, is_whole=rows >= 1_000_000))

    run_with_database(run, needs_wrk=False)


if __name__ == "__main__":
    main()
