"""The tables of docs/growth.md, from the committed results: `python -m benchmarks.sizing --help`."""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from benchmarks.measure import Measurement
from benchmarks.report import RESULTS
from benchmarks.straightness import CHOSEN, STRAIGHT, Point, bend, other_work, read_points, straightness
from benchmarks.systems import ROOT
from benchmarks.tables import table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS

PAGE = ROOT / "docs" / "growth.md"
BEGIN, END = "<!-- {}: written by python -m benchmarks.sizing -->", "<!-- end -->"
RATES = (1_000, 10_000, 100_000, 1_000_000)
SHARE = 0.7
"""The part of a core, a compute or a network that is planned for: the rest is for peaks, vacuum and checkpoints."""
POOL = 10
"""POOL_MAX_SIZE."""
POOLER_CLIENTS = 10_000
_AUTOSCALED, _LARGEST = 16, 56  # CU
_SIZES = (0.25, 0.5, *range(1, _AUTOSCALED + 1), *range(18, _LARGEST + 1, 2))
_MAX_CONNECTIONS = {0.25: 104, 0.5: 209, 1: 419, 2: 839, 3: 1258, 4: 1678, 5: 2098, 6: 2517, 7: 2937, 8: 3357}
_GIGABIT = 1e9 / 8
_MOST_REPLICAS = 16  # of one size; then they get more workers instead


@dataclass(frozen=True)
class Costs:
    """The cost of one request of the mix: CPU microseconds, and the bytes of its answer."""

    server_us: float
    balancer_us: float
    read_us: float  # of PostgreSQL, as a mean over all requests: those that read
    write_us: float
    bytes: float

    @property
    def postgres_us(self) -> float:
        """CPU microseconds of PostgreSQL."""
        return self.read_us + self.write_us

    @property
    def worker_rate(self) -> float:
        """The requests a second that are planned for one worker, on a core of its own."""
        return carried(1, self.server_us)


@dataclass(frozen=True)
class Step:
    """The deployment for one rate."""

    rate: int
    replicas: int
    workers: int  # of each replica
    balancer_cores: int
    primary: float  # CU
    read_replicas: int
    read_replica: float  # CU of each; 0 without one
    gigabits: float  # a second, from the service to its clients

    @property
    def cores(self) -> int:
        """Cores of the service."""
        return self.replicas * self.workers

    @property
    def connections(self) -> int:
        """The connections that the service may open to the primary."""
        return self.cores * POOL


def carried(cores: float, microseconds: float) -> float:
    """Return the requests a second that are planned for some cores."""
    return SHARE * cores * 1e6 / microseconds


def max_connections(compute: float) -> int:
    """Return max_connections of a compute of Neon, by its CU."""
    return _MAX_CONNECTIONS.get(compute, 4000)


def compute_for(cores: float, connections: int) -> float:
    """Return the smallest compute for some planned cores whose pooler can serve all connections at once, if any can."""
    at_once = min(connections, 0.9 * max_connections(_LARGEST))
    fit = (size for size in _SIZES if size >= cores and 0.9 * max_connections(size) >= at_once)
    return next(fit, math.inf)


def costs(points: Sequence[Point], comparison: Sequence[Measurement]) -> Costs:
    """Return the costs of the mix where the line of growth is straight.

    PostgreSQL's are divided into reads and writes as its costs of single requests are in the comparison.
    """
    shares = straightness(points, "mix")
    straight = [each for each in points if each.workload == "mix" and shares[each.instances] >= STRAIGHT]
    parts = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", WORKLOADS["mix"].title)}
    weights = {True: 0.0, False: 0.0}
    for each in medians(comparison).values():
        key = (each.system, each.workers, each.connections, each.distance_ms)
        if key == ("users_api", 2, 128, 0.0) and each.workload in parts:
            weights[WORKLOADS[each.workload].writes] += parts.pop(each.workload) * each.postgres_us
    if parts:
        raise ValueError(f"the comparison lacks: {', '.join(parts)}")
    postgres = median(each.postgres_us for each in straight)
    writing = weights[True] / sum(weights.values())
    return Costs(
        server_us=median(each.server_us for each in straight),
        balancer_us=median(each.balancer_us for each in straight),
        read_us=postgres * (1 - writing),
        write_us=postgres * writing,
        bytes=median(each.bytes for each in straight),
    )


def plan(rate: int, cost: Costs) -> Step:
    """Return the deployment for a rate: replicas of the fewest workers, enough of them to lose one."""
    busy = rate * cost.server_us / 1e6
    workers, replicas = next(
        (workers, replicas)
        for workers in (1, 2, 4, 8, 16, 32, 64)
        for replicas in [max(2, math.ceil(busy / SHARE / workers), math.ceil(busy / workers) + 1)]
        if replicas <= _MOST_REPLICAS
    )
    connections = replicas * workers * POOL
    reading, writing = (rate * each / 1e6 / SHARE for each in (cost.read_us, cost.write_us))
    read_replicas, most = 0, _AUTOSCALED if writing <= _AUTOSCALED / 2 else _LARGEST
    if reading + writing > _AUTOSCALED and writing < most:
        # A replica replays every write, which is taken to cost as much as the write itself.
        read_replicas = max(2, math.ceil(reading / (most - writing)))
    each_reads = reading / read_replicas + writing if read_replicas else 0.0
    return Step(
        rate,
        replicas,
        workers,
        balancer_cores=math.ceil(rate * cost.balancer_us / 1e6 / SHARE),
        primary=compute_for(writing if read_replicas else reading + writing, connections),
        read_replicas=read_replicas,
        read_replica=compute_for(each_reads, math.ceil(connections / read_replicas)) if read_replicas else 0.0,
        gigabits=rate * cost.bytes / _GIGABIT,
    )


def limits(cost: Costs) -> list[tuple[str, float, str]]:
    """Return each limit, the requests a second at which it is reached, and what lifts it: the lowest first."""
    found = [
        ("one worker", cost.worker_rate, "more workers, up to the cores; then replicas"),
        ("0.25 CU", carried(0.25, cost.postgres_us), "a larger maximum for autoscaling"),
        ("one thread of HAProxy", carried(1, cost.balancer_us), "`nbthread`; then several, by DNS"),
        (f"{_AUTOSCALED} CU, the most that autoscales", carried(_AUTOSCALED, cost.postgres_us), "read replicas"),
        (f"{_LARGEST} CU, the largest compute", carried(_LARGEST, cost.postgres_us), "read replicas"),
        ("10 Gbit/s of answers through one machine", SHARE * 10 * _GIGABIT / cost.bytes,
         "several balancers; smaller pages"),
        (f"{_AUTOSCALED} CU that only write", carried(_AUTOSCALED, cost.write_us), "a fixed size above it"),
        (f"{_LARGEST} CU that only write", carried(_LARGEST, cost.write_us), "several databases, by user"),
        ("connections over the direct host", (max_connections(_LARGEST) - 7) // POOL * cost.worker_rate,
         "the pooled host, or a smaller `POOL_MAX_SIZE`"),
        ("clients of the pooler", POOLER_CLIENTS // POOL * cost.worker_rate, "a smaller `POOL_MAX_SIZE`"),
    ]  # fmt: skip
    return sorted(found, key=lambda limit: limit[1])


def tables(points: Sequence[Point], cost: Costs) -> dict[str, str]:
    """Return the tables of the page by name."""
    steps = [
        (f"{s.rate:,}", f"{s.replicas} of {s.workers}", f"{s.cores:,}", f"{s.balancer_cores:,}", f"{s.connections:,}",
         _size(s.primary), f"{s.read_replicas} of {_size(s.read_replica)}" if s.read_replicas else "none",
         f"{s.gigabits:.2g}")
        for s in (plan(rate, cost) for rate in RATES)
    ]  # fmt: skip
    head = ("requests/s", "replicas, and workers of each", "cores", "cores of HAProxy", "connections",
            "Neon compute", "read replicas", "Gbit/s of answers")  # fmt: skip
    parts = {"service": cost.server_us, "HAProxy": cost.balancer_us,
             "PostgreSQL, reads": cost.read_us, "PostgreSQL, writes": cost.write_us}  # fmt: skip
    spent = [(name, f"{us:.1f}", f"{_about(carried(1, us)):,}") for name, us in parts.items()]
    bounds = [(what, f"{_about(rate):,}", remedy) for what, rate, remedy in limits(cost)]
    return {
        "steps": table(head, steps),
        "costs": table(("part", "CPU of a request, µs", f"requests/s at {SHARE:.0%} of a core"), spent),
        "straightness": _straight(points),
        "limits": table(("limit", "requests/s", "what lifts it"), bounds),
    }


def _straight(points: Sequence[Point]) -> str:
    counts = sorted({each.instances for each in points})
    rows = []
    for workload in CHOSEN:
        shares, at = straightness(points, workload.name), bend(points, workload.name)
        cells = [f"{shares[count]:.0%}" if count in shares else "" for count in counts]
        rows.append((workload.title.partition(":")[0], *cells, f"{at} instances" if at else "nowhere"))
    return table(("request", *map(str, counts), "bends at"), rows)


def _size(compute: float) -> str:
    return f"{compute:g} CU" if compute <= _LARGEST else f"more than {_LARGEST} CU"


def _about(rate: float) -> int:
    """Round to two digits."""
    return int(round(rate, 1 - math.floor(math.log10(rate))))


def rewrite(page: str, generated: Mapping[str, str]) -> str:
    """Return a page with every table replaced that stands between its marks."""
    for name, text in generated.items():
        before, begin, rest = page.partition(BEGIN.format(name))
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"the page lacks the marks {BEGIN.format(name)} and {END}")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def generate(results: Path = RESULTS) -> dict[str, str]:
    """Return the tables from a directory of results."""
    growth, comparison = (json.loads((results / f"{name}.json").read_text()) for name in ("growth", "comparison"))
    points = read_points(growth)
    found = tables(points, costs(points, [Measurement.from_json(each) for each in comparison["measurements"]]))
    if said := other_work(growth["machine"]):
        found["straightness"] += f"\n\n{said}"
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--check", is_flag=True, help="Write nothing; exit code 1: the page is not what the results give.")
def main(check: bool) -> None:
    """Write the tables of docs/growth.md, from growth.json and comparison.json in benchmarks/results."""
    page = PAGE.read_text()
    wanted = rewrite(page, generate())
    if check and page != wanted:
        click.echo("docs/growth.md is not what the results give: run python -m benchmarks.sizing", err=True)
        sys.exit(1)
    if not check:
        PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
