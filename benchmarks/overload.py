"""Behaviour at four times the peak rate, and recovery: `python -m benchmarks.overload --help`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.database import Database
from benchmarks.machine import describe_machine, summarise
from benchmarks.measure import database_at
from benchmarks.openloop import Outcome, Phase, Trace, gets, run_phases, split, summarise_phase
from benchmarks.processes import cpu_seconds
from benchmarks.report import keep
from benchmarks.session import run_with_database
from benchmarks.systems import SYSTEMS, serving
from benchmarks.tables import table
from benchmarks.workloads import WORKLOADS
from benchmarks.wrk import run_wrk

ROWS = 100_000
DISTANCE_MS = 10.0
# Small on purpose: one statement of eight requests at a time, to a distant database. The load generator on the same
# machine can then offer many times the server's capacity, and refusing requests costs the server little.
SMALL = {"BATCH_IN_FLIGHT": "1", "BATCH_MAX_SIZE": "8", "BATCH_MAX_WAITING": "64"}
_RECOVERY_TARGET_SECONDS = 2.0
_METHOD = (
    f"One worker with {', '.join(f'{name}={value}' for name, value in SMALL.items())}, PostgreSQL {DISTANCE_MS:g} ms "
    "away: a server kept small, so that a generator on the same machine can overload it. Its peak is measured first, "
    "in a closed loop with 32 connections. Then an open loop offers 70 % of it, a multiple of it, and 70 % again. "
    "Goodput is answers 2xx a second; latency counts from the time at which a request was due. The service has "
    "recovered when every further answer is 2xx and none is slower than three times the p99 before the overload."
)


def recovery_seconds(after: Sequence[Outcome], begins: float, slow_ms: float) -> float:
    """Return the time from `begins` to the last request that was refused, failed or slow; 0 if there is none."""
    bad = [o.due for o in after if not 200 <= o.status < 300 or o.seconds * 1000 > slow_ms]
    return max(bad, default=begins) - begins


def answers_over_time(trace: Trace, seconds: float) -> dict[str, list[int]]:
    """Return the number of answers 2xx and of all others in each second, by the moment of the answer."""
    counts = {"answered": [0] * math.ceil(seconds), "refused": [0] * math.ceil(seconds)}
    for outcome in trace.outcomes:
        second = int(outcome.due + outcome.seconds)
        if second < math.ceil(seconds):
            counts["answered" if 200 <= outcome.status < 300 else "refused"][second] += 1
    return counts


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--factor", default=4.0, show_default=True, type=click.FloatRange(1.1, 20), help="Multiple of the peak rate."
)
@click.option("--seconds", default=30, show_default=True, type=click.IntRange(1, 600), help="Length of the overload.")
@click.option("--calm", default=10, show_default=True, type=click.IntRange(1, 600), help="Seconds before and after.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(factor: float, seconds: int, calm: int, output: Path | None) -> None:
    """Offer several times the capacity of a small server; measure its goodput, its refusals and its recovery.

    Writes overload.json, overload.md and a chart into benchmarks/results. With a smaller factor or fewer seconds than
    the default it writes only into the directory of --output.
    """

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        database.prepare(ROWS)
        system = SYSTEMS["users_api"].with_environment("users_api_small", "users-api, kept small", **SMALL)
        with database_at(database, DISTANCE_MS) as (url, _), serving(system, 1, url) as server:
            script = WORKLOADS["get"].script
            run_wrk(server.url, script, (ROWS, 1, 1), seconds=1, connections=32)
            peak = run_wrk(server.url, script, (ROWS, 1, 2), seconds=4, connections=32).requests_per_second
            phases = [
                Phase("before", 0.7 * peak, calm),
                Phase("overload", factor * peak, seconds),
                Phase("after", 0.7 * peak, calm),
            ]
            click.echo(f"peak {peak:,.0f} req/s; offering {factor:g} times as much for {seconds} s", err=True)
            before = cpu_seconds(server.process)
            trace = uvloop.run(run_phases(int(server.url.rpartition(":")[2]), phases, gets(ROWS)))
            cores = (cpu_seconds(server.process) - before) / sum(phase.seconds for phase in phases)
        files = render(machine, peak, cores, phases, trace)
        click.echo(files["overload.md"])
        click.echo(keep(files, output, is_whole=factor >= 4 and seconds >= 30))

    run_with_database(measure)


def render(
    machine: dict[str, object], peak: float, server_cores: float, phases: Sequence[Phase], trace: Trace
) -> dict[str, str]:
    """Return overload.json, overload.md and the chart, by file name."""
    parts = split(trace, phases)
    summaries = [summarise_phase(phase, outcomes) for phase, outcomes in zip(phases, parts, strict=True)]
    before, during, _ = summaries
    recovered = recovery_seconds(parts[2], phases[0].seconds + phases[1].seconds, 3 * before.p99_ms)
    head = ("phase", "offered/s", "goodput/s", "503", "with Retry-After", "other failures", "p50 ms", "p99 ms")
    rows = [
        (s.name, f"{s.offered:,.0f}", f"{s.goodput:,.0f}", f"{s.refused:,}", f"{s.refused_with_retry_after:,}",
         f"{s.failed:,}", f"{s.p50_ms:.1f}", f"{s.p99_ms:.1f}")
        for s in summaries
    ]  # fmt: skip
    verdicts = [
        ("goodput under overload", f"{during.goodput / peak:.0%} of the peak of {peak:,.0f} req/s", ""),
        ("excess load", f"{during.refused:,} refused at once, {during.failed:,} failed otherwise",
         "met" if during.has_clean_refusals else "NOT met: only 503 with Retry-After is allowed"),
        ("recovered", f"{recovered:.2f} s after the overload",
         "met" if recovered <= _RECOVERY_TARGET_SECONDS else f"NOT met: at most {_RECOVERY_TARGET_SECONDS:g} s"),
        ("unsent", f"{trace.unsent:,} requests found no free connection of the generator", ""),
        ("server CPU", f"{server_cores:.2f} cores over the whole run", ""),
    ]  # fmt: skip
    document = {
        "machine": machine,
        "method": _METHOD,
        "peak_requests_per_second": peak,
        "phases": [asdict(each) for each in summaries],
        "recovery_seconds": recovered,
        "unsent": trace.unsent,
        "server_cores": server_cores,
        "over_time": answers_over_time(trace, sum(phase.seconds for phase in phases)),
    }
    markdown = "\n".join(
        [
            "# Overload\n",
            f"{summarise(machine)}\n",
            f"{_METHOD}\n",
            table(head, rows) + "\n",
            table(("what", "found", "verdict"), verdicts) + "\n",
            "![answers a second](overload.svg)\n",
        ]
    )
    return {"overload.json": json.dumps(document, indent=1) + "\n", "overload.md": markdown, **draw(document)}


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of overload.json, by file name."""
    before, during, _ = document["phases"]
    counts = document["over_time"]
    lines = {
        "answered": list(enumerate(counts["answered"])),
        "refused, 503": list(enumerate(counts["refused"])),
    }
    chart = line_chart(
        "Overload: answers over time",
        f"{before['offered']:,.0f} requests/s are offered, {during['offered']:,.0f} during the overload",
        Panel(Axis("time, s"), Axis("answers/s"), lines, "/s"),
    )
    return {"overload.svg": chart}


if __name__ == "__main__":
    main()
