"""The report of a soak: growth of memory, and errors."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression, quantiles
from typing import Any

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.machine import summarise
from benchmarks.openloop import Outcome, Trace
from benchmarks.tables import table

SAMPLE_SECONDS = 5.0
BURST, BURST_SECONDS = 20, 30.0
"""The factor on the rate in the initial burst, and the length of the burst."""
WARM_UP_SECONDS = 60.0
SLOPE_LIMIT = 1.0
"""The permitted growth of the workers' memory, in MB an hour."""

_METHOD = (
    "`users-api serve` as in production. An open loop offers a fixed rate far below the capacity of the service: the "
    "test looks for growth and not for speed. Of 100 requests 70 are GET, 15 lists of 100, 10 POST, 4 PATCH and 1 "
    f"DELETE. For the first {BURST_SECONDS:g} s it offers {BURST} times as much, so that pool and buffers reach their "
    f"size. The resident memory of each worker and the connections are sampled every {SAMPLE_SECONDS:g} s. The slope "
    f"is that of the least-squares line through all samples after the first {WARM_UP_SECONDS:g} s, for the sum of the "
    "workers' memory. An error is a missing answer or any answer that is not 2xx."
)


@dataclass(frozen=True)
class Sample:
    """Memory and connections at one moment."""

    seconds: float  # since the start of the load
    workers_mb: tuple[float, ...]  # resident memory of each, in the order of their process ids
    client_connections: int
    postgres_connections: int


def slope_mb_an_hour(samples: Sequence[Sample]) -> float:
    """Return the growth of the workers' memory after the warm-up; nan if there are too few samples."""
    counted = [sample for sample in samples if sample.seconds >= WARM_UP_SECONDS]
    if len(counted) < 2:
        return math.nan
    line = linear_regression([each.seconds for each in counted], [sum(each.workers_mb) for each in counted])
    return line.slope * 3600


def is_error(outcome: Outcome) -> bool:
    """Return True unless the answer is 2xx."""
    return not 200 <= outcome.status < 300


def render(
    machine: Mapping[str, Any], rate: float, seconds: float, cores: float, trace: Trace, samples: Sequence[Sample]
) -> tuple[dict[str, str], bool]:
    """Return soak.json, soak.md and the chart, by file name, and True if nothing grew and nothing failed."""
    slope = slope_mb_an_hour(samples)
    errors = sum(map(is_error, trace.outcomes)) + trace.unsent
    grows = slope > SLOPE_LIMIT
    latencies = [outcome.seconds * 1000 for outcome in trace.outcomes if not is_error(outcome)]
    first, last = ([f"{each:.1f}" for each in sample.workers_mb] for sample in (samples[0], samples[-1]))
    rows = [
        ("requests", f"{len(trace.outcomes) + trace.unsent:,}, at {rate:,.0f}/s, in {seconds / 60:g} minutes", ""),
        ("memory, slope", f"{slope:+.2f} MB an hour",
         "too short to tell" if math.isnan(slope) else f"NOT met: at most {SLOPE_LIMIT:g}" if grows else "met"),
        ("memory of each worker", f"{' and '.join(first)} MB at the start, {' and '.join(last)} MB at the end", ""),
        ("errors", f"{errors:,}", "NOT met: none is allowed" if errors else "met"),
        ("latency", f"p50 {_percentile(latencies, 50):.2f} ms, p99 {_percentile(latencies, 99):.2f} ms", ""),
        ("connections to PostgreSQL", f"{max(sample.postgres_connections for sample in samples)} at most", ""),
        ("server CPU", f"{cores:.2f} cores", ""),
    ]  # fmt: skip
    document = {
        "machine": machine,
        "method": _METHOD,
        "requests_per_second": rate,
        "seconds": seconds,
        "requests": len(trace.outcomes) + trace.unsent,
        "errors": errors,
        "slope_mb_an_hour": None if math.isnan(slope) else slope,
        "samples": [asdict(sample) for sample in samples],
        "over_time": over_time(trace),
    }
    markdown = "\n".join(
        [
            "# Soak\n",
            f"{summarise(machine)}\n",
            f"{_METHOD}\n",
            table(("what", "found", "verdict"), rows) + "\n",
            "![memory, latency, connections and errors](soak.svg)\n",
        ]
    )
    files = {
        "soak.json": json.dumps(document, indent=1) + "\n",
        "soak.md": markdown,
        **draw(document),
    }
    return files, not (grows or errors)


def over_time(trace: Trace) -> dict[str, list[float | None]]:
    """Return latencies and answers of the requests that were due in each SAMPLE_SECONDS; None if too few."""
    by_sample: dict[int, list[Outcome]] = {}
    for outcome in trace.outcomes:
        by_sample.setdefault(int(outcome.due / SAMPLE_SECONDS), []).append(outcome)
    found: dict[str, list[float | None]] = {name: [] for name in ("p50_ms", "p99_ms", "answered", "errors")}
    for number in range(max(by_sample, default=-1) + 1):
        outcomes = by_sample.get(number, [])
        good = [outcome.seconds * 1000 for outcome in outcomes if not is_error(outcome)]
        for percent in (50, 99):
            found[f"p{percent}_ms"].append(round(_percentile(good, percent), 3) if len(good) > 1 else None)
        found["answered"].append(len(good) / SAMPLE_SECONDS)
        found["errors"].append((len(outcomes) - len(good)) / SAMPLE_SECONDS)
    return found


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of soak.json, by file name."""
    samples = document["samples"]
    workers = max(len(sample["workers_mb"]) for sample in samples)
    memory = {
        f"worker {n + 1}": [(s["seconds"] / 60, s["workers_mb"][n]) for s in samples if n < len(s["workers_mb"])]
        for n in range(workers)
    }
    found = {
        name: [(n * SAMPLE_SECONDS / 60, value) for n, value in enumerate(values) if value is not None]
        for name, values in document["over_time"].items()
    }
    connections = {
        name: [(sample["seconds"] / 60, sample[key]) for sample in samples]
        for name, key in (("to PostgreSQL", "postgres_connections"), ("of clients", "client_connections"))
    }
    latency = {"p50": found["p50_ms"], "p99": found["p99_ms"]}
    answers = {"2xx a second": found["answered"], "errors a second": found["errors"]}
    time = Axis("time, minutes")
    chart = line_chart(
        "Soak",
        f"{document['requests_per_second']:,.0f} requests/s of every kind, after a burst of {BURST} times as many",
        Panel(time, Axis("resident memory, MB"), memory, " MB", "Memory of each worker"),
        Panel(time, Axis("latency, ms", "log"), latency, " ms", "Latency of the answers 2xx"),
        Panel(time, Axis("connections"), connections, "", "Connections"),
        Panel(time, Axis("answers/s"), answers, "", "Answers"),
    )
    return {"soak.svg": chart}


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else math.nan
