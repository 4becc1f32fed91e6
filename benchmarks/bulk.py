"""Import, export and search at a million users: `python -m benchmarks.bulk --help`."""

import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from api.users.cursors import Position, write_cursor
from benchmarks.charts import Bar, bar_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.report import keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, serving
from benchmarks.tables import table
from benchmarks.transfers import MEDIA_TYPES, MEMORY_TARGET_MB, SEARCH_TARGET_MS, Bench

_SEARCHES = 300
_METHOD = (
    "One worker, and PostgreSQL with durable commits, on one machine. Addresses and names come in random order. Over "
    "HTTP a client sends the file by sendfile and reads the answer meanwhile; a rate counts from the first byte sent "
    "to the last one read, that of a command from its start to its end. Memory is the peak of the resident set: the "
    "server's above what it held before, when it had served a small import and export; a command's above its peak for "
    "a thousand users. CPU is user and system time. Searches go one after the other over one connection, each for "
    "something else, in pages of 100."
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
    files = {format: directory / f"{rows}.{format}" for format in MEDIA_TYPES}
    with files["ndjson"].open("w") as ndjson, files["csv"].open("w") as csv:
        csv.write("email,name\n")
        for number in numbers:
            first, last = chance.choice(_FIRST), chance.choice(_LAST)
            email = f"{first.lower()}.{last.lower()}{number}@example.com"
            ndjson.write(f'{{"email":"{email}","name":"{first} {last}"}}\n')
            csv.write(f"{email},{first} {last}\n")
    return files


def measure(database: Database, directory: Path, rows: int) -> Bench:
    """Measure everything once."""
    database.prepare(1000)  # the harness waits for a user to be there
    few, many = write_files(directory, 1000), write_files(directory, rows)
    with serving(SYSTEMS["users_api"], 1, database.url) as server:
        bench = Bench(database, server)
        for format in MEDIA_TYPES:
            bench.import_over_http("a few first", few[format], 1000, "?on_conflict=skip")
            bench.export_over_http("a few first", 2000, f"?format={format}")
        held = {}
        for format in MEDIA_TYPES:
            out = directory / f"out.{format}"
            held[format] = bench.command("a few first", ["import", str(few[format]), "--on-conflict", "skip"], 1000)
            held["to " + format] = bench.command("a few first", ["export", str(out)], 2000)
        bench.transfers.clear()

        for format in MEDIA_TYPES:
            database.empty()
            bench.import_over_http(f"import over HTTP, {format}", many[format], rows, target=30_000)
        for mode, became in (("error", "all refused"), ("skip", "all there"), ("update", "nothing changes")):
            query = f"?on_conflict={mode}"
            bench.import_over_http(f"import over HTTP, on_conflict={mode}, {became}", many["ndjson"], rows, query)
        for format in MEDIA_TYPES:
            bench.export_over_http(f"export over HTTP, {format}", rows, f"?format={format}", target=150_000)
        for format in MEDIA_TYPES:
            database.empty()
            what = f"users-api import, {format}"
            bench.command(what, ["import", str(many[format])], rows, 100_000, held[format])
        what = "users-api import --on-conflict skip, all there"
        bench.command(what, ["import", str(many["ndjson"]), "--on-conflict", "skip"], rows, None, held["ndjson"])
        for format in MEDIA_TYPES:
            arguments = ["export", str(directory / f"out.{format}")]
            bench.command(f"users-api export, {format}", arguments, rows, 150_000, held["to " + format])
        for what, queries in searches(rows, *bench.times()).items():
            bench.search(what, queries)
    return bench


def searches(rows: int, oldest: datetime, newest: datetime) -> dict[str, list[dict[str, str]]]:
    """What is searched for: each shape with its queries, which differ."""
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
        "q: nobody": [{"q": f"nobody{number}"} for number in numbers],
        "order=-id": [{"order": "-id", "after": number} for number in numbers],
        "order=created_at, created_after": [{"order": "created_at", "created_after": time} for time in times],
        "order=-created_at, created_before": [{"order": "-created_at", "created_before": time} for time in times],
    }


def render(bench: Bench, machine: dict[str, Any], rows: int) -> dict[str, str]:
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
        f"Targets are users a second, at least; memory is to grow by less than {MEMORY_TARGET_MB:g} MB.\n",
        table(head, transfers) + "\n",
        "![users a second](bulk.svg)\n",
        f"## Pages of 100 out of {rows:,}\n",
        f"The median is to be below {SEARCH_TARGET_MS:g} ms.\n",
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
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(2000), help="Users in and out.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Where results go; see above.")
def main(rows: int, output: Path | None) -> None:
    """Import and export a million users, over HTTP and by command, and search them.

    Prints users a second, memory and CPU, and the latencies of searches; about four minutes. Writes bulk.json, bulk.md
    and a chart into benchmarks/results, with fewer rows than the default where --output says so alone.
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
