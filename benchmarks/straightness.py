"""The report of growth: how straight the line of throughput by instances is, and where it bends."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from benchmarks.cgroups import PERIOD_MICROSECONDS
from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.machine import summarise
from benchmarks.measure import GENERATOR_LIMIT
from benchmarks.tables import table
from benchmarks.workloads import WORKLOADS

CHOSEN = tuple(WORKLOADS[name] for name in ("get", "create", "mix"))
CORES, DISTANCE_MS, ROWS, CONNECTIONS = 0.2, 10.0, 100_000, 128
STRAIGHT = 0.9
"""Where n instances carry less than this share of n times what one carries, the line bends."""
_BUSY = 0.95
_CALM = 0.5  # the load average of a machine without other work
_METHOD = (
    f"Instances of one worker behind HAProxy, each held to {CORES:g} of a core by its control group, which renews the "
    f"quota every {PERIOD_MICROSECONDS // 1000} ms. PostgreSQL is {DISTANCE_MS:g} ms away and commits durably (fsync "
    f"and synchronous_commit on). wrk drives HAProxy in a closed loop, with {CONNECTIONS} connections for each "
    "instance: each is at its limit, and latency is that of a full queue. Every count of instances is started afresh "
    "in each round; figures are medians over the rounds. CPU is user and system time. Cores busy counts everything on "
    "the machine: when all are, the machine is the limit."
)


@dataclass(frozen=True)
class Point:
    """The result of one number of instances under one workload."""

    workload: str
    instances: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int  # answers outside 2xx and 3xx, socket errors and time-outs
    connections: int  # of clients, to HAProxy
    postgres_connections: int
    server_us: float  # CPU microseconds of all instances, a request
    postgres_us: float
    balancer_us: float
    bytes: float  # of an answer, with its head
    instance_cores: float  # cores that each instance used
    postgres_cores: float
    balancer_cores: float
    generator_cores: float
    proxy_cores: float
    busy_cores: float  # of the machine, whatever used them

    @property
    def warnings(self) -> list[str]:
        """The reasons to doubt this figure."""
        used = {"wrk": self.generator_cores, "the delay proxy": self.proxy_cores, "HAProxy": self.balancer_cores}
        found = [
            f"{name} used {cores:.0%} of a core: its limit" for name, cores in used.items() if cores > GENERATOR_LIMIT
        ]
        return found + ([f"{self.errors} errors"] if self.errors else [])


def read_points(document: Mapping[str, Any]) -> list[Point]:
    """Return the points of growth.json."""
    return [Point(**{name: value for name, value in each.items() if name != "warnings"}) for each in document["points"]]


def merge(rounds: Sequence[Point]) -> list[Point]:
    """Return one point for each workload and number of instances: medians over the rounds, and the sum of errors."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for each in rounds:
        groups.setdefault((each.workload, each.instances), []).append(each)
    return [_merge(key, members) for key, members in groups.items()]


def _merge(key: tuple[str, int], members: Sequence[Point]) -> Point:
    names = [each.name for each in fields(Point) if each.name not in ("workload", "instances", "errors")]
    figures: dict[str, Any] = {name: round(median(getattr(each, name) for each in members), 4) for name in names}
    return Point(*key, errors=sum(each.errors for each in members), **figures)


def straightness(points: Sequence[Point], workload: str) -> dict[int, float]:
    """Return the throughput of n instances over n times that of one, by n."""
    rates = {each.instances: each.requests_per_second for each in points if each.workload == workload}
    return {count: rates[count] / (count * rates[1]) for count in sorted(rates)} if rates.get(1) else {}


def bend(points: Sequence[Point], workload: str) -> int | None:
    """Return the number of instances at which the line bends; None if it is straight."""
    return next((count for count, share in straightness(points, workload).items() if share < STRAIGHT), None)


def render(points: Sequence[Point], machine: Mapping[str, Any], rounds: int) -> dict[str, str]:
    """Return growth.json, growth.md and the chart, by file name."""
    document = {
        "machine": machine,
        "method": _METHOD,
        "rounds": rounds,
        "points": [{**asdict(each), "warnings": each.warnings} for each in points],
    }
    parts = ["# Growth\n", f"{summarise(machine)}\n", f"{_METHOD} {rounds} rounds.\n", "![growth](growth.svg)\n"]
    if said := other_work(machine):
        parts.append(f"{said}\n")
    head = ("instances", "req/s", "of n times one", "p50 ms", "p99 ms", "connections", "to PostgreSQL", "instances µs",
            "PostgreSQL µs", "HAProxy µs", "PostgreSQL cores", "cores busy", "errors")  # fmt: skip
    for workload in CHOSEN:
        members = [each for each in points if each.workload == workload.name]
        shares = straightness(points, workload.name)
        rows = [
            (f"{p.instances}", f"{p.requests_per_second:,.0f}", f"{shares[p.instances]:.0%}", f"{p.p50_ms:.1f}",
             f"{p.p99_ms:.1f}", f"{p.connections:,.0f}", f"{p.postgres_connections:,.0f}", f"{p.server_us:,.1f}",
             f"{p.postgres_us:,.1f}", f"{p.balancer_us:,.1f}", f"{p.postgres_cores:.2f}", f"{p.busy_cores:.2f}",
             f"{p.errors:,}")
            for p in members
        ]  # fmt: skip
        parts += [f"## {workload.title}\n", f"{_verdict(points, workload.name, machine)}\n", table(head, rows) + "\n"]
        parts += [f"- {p.instances} instances: {warning}\n" for p in members for warning in p.warnings]
    return {"growth.json": json.dumps(document, indent=1) + "\n", "growth.md": "\n".join(parts), **draw(document)}


def _verdict(points: Sequence[Point], workload: str, machine: Mapping[str, Any]) -> str:
    shares, at = straightness(points, workload), bend(points, workload)
    if at is None:
        worst = min(shares, key=lambda count: shares[count])
        return f"Straight up to {max(shares)} instances: the least is {shares[worst]:.0%} of {worst} times one."
    (there,) = [each for each in points if (each.workload, each.instances) == (workload, at)]
    cores = machine["cores"]
    cause = "all that the machine has" if there.busy_cores >= _BUSY * cores else f"of the machine's {cores}"
    return (
        f"The line bends at {at} instances, with {shares[at]:.0%} of {at} times one. There "
        f"{there.busy_cores:.2f} cores are busy, {cause}."
    )


def other_work(machine: Mapping[str, Any]) -> str:
    """Return a sentence about other work on the machine of a run; empty where there was none."""
    load = machine.get("load_before", 0)
    if load <= _CALM:
        return ""
    return (
        f"The machine had other work: a load average of {load:g} before the run. Lines bend sooner, and CPU costs more."
    )


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of growth.json, by file name."""
    points = read_points(document)
    counts = sorted({each.instances for each in points})
    titles = {workload.name: workload.title.partition(":")[0] for workload in CHOSEN}
    rates = {
        title: [(p.instances, p.requests_per_second) for p in points if p.workload == n] for n, title in titles.items()
    }
    shares = {title: [(n, 100 * share) for n, share in straightness(points, w).items()] for w, title in titles.items()}
    mixed = [each for each in points if each.workload == "mix"]
    cores = {
        "the whole machine": [(p.instances, p.busy_cores) for p in mixed],
        "the instances": [(p.instances, p.instances * p.instance_cores) for p in mixed],
        "HAProxy": [(p.instances, p.balancer_cores) for p in mixed],
        "PostgreSQL": [(p.instances, p.postgres_cores) for p in mixed],
        "wrk and the delay": [(p.instances, p.generator_cores + p.proxy_cores) for p in mixed],
    }
    x = Axis("instances", ticks=counts)
    note = f"{CORES:g} of a core each · database {DISTANCE_MS:g} ms away, durable commits · one machine"
    title = "Growth: instances behind HAProxy"
    return {
        "growth.svg": line_chart(
            title,
            f"{note} with {document['machine']['cores']} cores",
            Panel(x, Axis("requests/s"), rates, "/s", "Throughput: higher is better"),
            Panel(x, Axis("% of n times one instance"), shares, " %", "Straightness: 100 % is a straight line"),
            Panel(x, Axis("cores"), cores, "", "Cores that the mix keeps busy"),
        )
    }
