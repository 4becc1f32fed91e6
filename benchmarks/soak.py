"""Growth of memory and errors under a long load: `python -m benchmarks.soak --help`."""

import asyncio
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import psycopg
import uvloop

from api.neon.url import parse_url
from benchmarks.database import Database
from benchmarks.endurance import BURST, BURST_SECONDS, SAMPLE_SECONDS, Sample, render
from benchmarks.machine import describe_machine
from benchmarks.openloop import Phase, Trace, http_request, run_phases
from benchmarks.processes import cpu_seconds
from benchmarks.progress import Progress
from benchmarks.report import keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, serving

ROWS = 100_000
WORKERS = 2
WHOLE_MINUTES = 20.0

_MEGABYTE = 1e6


def mix(rows: int) -> Iterator[bytes]:
    """Return the requests of the load without end, on a table of `rows` rows.

    None of them is refused: only deletes use the last tenth of the rows. When it is used up, they become reads.
    """
    others = rows * 9 // 10
    doomed = iter(range(others + 1, rows + 1))
    number = 0
    while True:
        number += 1
        choice = random.randrange(100)
        user = random.randint(1, others)
        if choice < 10:
            body = json.dumps({"email": f"soak{number}@example.com", "name": f"New {number}"})
            yield http_request("POST", "", body)
        elif choice < 14:
            yield http_request("PATCH", f"/{user}", json.dumps({"name": f"Name {number}"}))
        elif choice < 29:
            yield http_request("GET", f"?limit=100&after={user}")
        elif choice == 29 and (deleted := next(doomed, None)):
            yield http_request("DELETE", f"/{deleted}")
        else:
            yield http_request("GET", f"/{user}")


class _Sampler:
    """Take samples of the processes and of PostgreSQL."""

    def __init__(self, server: psutil.Process, database: psycopg.Connection) -> None:
        self._server = server
        self._database = database

    def sample(self, seconds: float) -> Sample:
        workers = [child for child in self._server.children() if "spawn_main" in " ".join(child.cmdline())]
        workers.sort(key=lambda worker: worker.pid)
        established = [
            connection
            for worker in workers
            for connection in worker.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        ]
        count = (
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        row = self._database.execute(count).fetchone()
        assert row is not None
        memory = tuple(round(worker.memory_info().rss / _MEGABYTE, 3) for worker in workers)
        return Sample(round(seconds, 1), memory, len(established), row[0])


async def _soak(port: int, rate: float, seconds: float, sampler: _Sampler) -> tuple[Trace, list[Sample]]:
    loop = asyncio.get_running_loop()
    begins = loop.time()
    samples: list[Sample] = []
    progress = Progress(max(1, math.floor(seconds / 60)))

    async def sample() -> None:
        while True:
            samples.append(await asyncio.to_thread(sampler.sample, loop.time() - begins))
            if len(samples) % round(60 / SAMPLE_SECONDS) == 1 and len(samples) > 1:
                memory = " + ".join(f"{each:.1f}" for each in samples[-1].workers_mb)
                progress.finish(f"minute {samples[-1].seconds / 60:.0f}: workers' memory {memory} MB", [])
            await asyncio.sleep(begins + len(samples) * SAMPLE_SECONDS - loop.time())

    sampling = loop.create_task(sample())
    try:
        # The burst fills pool and buffers to their size, so that their memory does not count as growth.
        burst = Phase("burst", BURST * rate, min(BURST_SECONDS, seconds / 4))
        trace = await run_phases(port, [burst, Phase("soak", rate, seconds - burst.seconds)], mix(ROWS))
    finally:
        if sampling.done():
            sampling.result()  # raises the reason
        sampling.cancel()
        progress.close()
    return trace, samples


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes",
    default=WHOLE_MINUTES,
    show_default=True,
    type=click.FloatRange(0.1, 10_000),
    help="Length of the load.",
)
@click.option("--rate", default=300.0, show_default=True, type=click.FloatRange(1, 20_000), help="Requests a second.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(minutes: float, rate: float, output: Path | None) -> None:
    """Hold a mixed load for a long time; report the workers' memory, latency, connections and errors.

    Writes soak.json, soak.md and a chart into benchmarks/results. A shorter load than the default writes only into the
    directory of --output. Exit code 1: memory grows, or a request failed. Other work on the machine shows as latency.

    \b
    Examples:
      python -m benchmarks.soak --minutes 2
      python -m benchmarks.soak --minutes 480 --output overnight
    """

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        database.prepare(ROWS)
        with (
            psycopg.connect(**parse_url(database.url).psycopg_arguments(), autocommit=True) as connection,  # type: ignore[arg-type]
            serving(SYSTEMS["users_api"], WORKERS, database.url) as server,
        ):
            seconds, before = minutes * 60, cpu_seconds(server.process)
            sampler = _Sampler(server.process, connection)
            trace, samples = uvloop.run(_soak(int(server.url.rpartition(":")[2]), rate, seconds, sampler))
            cores = (cpu_seconds(server.process) - before) / seconds
        files, is_good = render(machine, rate, seconds, cores, trace, samples)
        click.echo(files["soak.md"])
        click.echo(keep(files, output, is_whole=minutes >= WHOLE_MINUTES))
        if not is_good:
            sys.exit(1)

    run_with_database(measure, needs_wrk=False)


if __name__ == "__main__":
    main()
