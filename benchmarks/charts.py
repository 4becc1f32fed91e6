"""Which charts a run gives."""

from collections.abc import Callable, Iterable, Mapping

from benchmarks.measure import Measurement
from benchmarks.plan import FAR_CONNECTIONS
from benchmarks.svg import Bar, bar_chart, line_chart
from benchmarks.workloads import WORKLOADS

_OURS = "users_api"


def draw(results: Iterable[Measurement], titles: Mapping[str, str]) -> dict[str, str]:
    """Return the SVG of every chart that the measurements are enough for, by file name."""
    measured = list(results)
    charts = {}
    for workload in WORKLOADS:
        bars = _throughput(measured, workload, titles)
        if bars:
            charts[f"throughput-{workload}.svg"] = bars
    for workload in ("get", "create"):
        lines = _against_distance(measured, workload, titles)
        if lines:
            charts[f"distance-{workload}.svg"] = lines
    latency = _against_connections(measured, titles)
    if latency:
        charts["connections.svg"] = latency
    return charts


def _throughput(measured: list[Measurement], workload: str, titles: Mapping[str, str]) -> str | None:
    chosen = [m for m in measured if (m.workload, m.workers, m.connections, m.distance_ms) == (workload, 2, 128, 0.0)]
    if len(chosen) < 2:
        return None
    bars = [
        Bar(titles.get(m.system, m.system), m.requests_per_second, f"{m.requests_per_second:,.0f}", _is_ours(m.system))
        for m in sorted(chosen, key=lambda m: -m.requests_per_second)
    ]
    title = f"{WORKLOADS[workload].title}: requests a second"
    return bar_chart(title, "longer is better · 2 workers, 128 connections, durable commits, one machine", bars)


def _against_distance(measured: list[Measurement], workload: str, titles: Mapping[str, str]) -> str | None:
    chosen = [m for m in measured if (m.workload, m.workers, m.connections) == (workload, 1, FAR_CONNECTIONS)]
    if len({m.distance_ms for m in chosen}) < 2:
        return None
    return line_chart(
        f"{WORKLOADS[workload].title}: requests a second, by distance to PostgreSQL",
        f"higher is better · 1 worker, {FAR_CONNECTIONS} connections, pool of 10",
        "round trip to the database, ms",
        _lines(chosen, titles, lambda m: (m.distance_ms, m.requests_per_second)),
        [titles.get(_OURS, _OURS)],
        unit="/s",
    )


def _against_connections(measured: list[Measurement], titles: Mapping[str, str]) -> str | None:
    chosen = [
        m for m in measured if (m.workload, m.workers, m.distance_ms) == ("get", 2, 0.0) and m.system != "constant"
    ]
    if len({m.connections for m in chosen}) < 3:
        return None
    return line_chart(
        "GET by id: median latency, by connections",
        "lower is better · every connection asks again at once · 2 workers",
        "connections",
        _lines(chosen, titles, lambda m: (float(m.connections), m.p50_ms)),
        [titles.get(_OURS, _OURS)],
        unit=" ms",
    )


def _lines(
    chosen: list[Measurement], titles: Mapping[str, str], point: Callable[[Measurement], tuple[float, float]]
) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in chosen:
        lines.setdefault(titles.get(each.system, each.system), []).append(point(each))
    return lines


def _is_ours(system: str) -> bool:
    return system.startswith(_OURS)
