"""The results of a comparison: JSON with every round, Markdown and charts."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.charts import Axis, Bar, Panel, bar_chart, line_chart, short
from benchmarks.machine import summarise
from benchmarks.measure import Measurement, Point
from benchmarks.plan import FAR_CONNECTIONS
from benchmarks.tables import rates_table, results_table, targets_table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"

TRIAL = "TRIAL: it only checks that everything runs. The figures are noise, and so is whether a target is met."
METHOD = (
    "Each system runs alone, started afresh for every round; rounds alternate over the systems; figures are medians "
    "over rounds. wrk drives it in a closed loop over keep-alive connections on the loopback interface. PostgreSQL "
    "commits durably (fsync and synchronous_commit on). CPU is user and system time of the whole process tree. "
    "Only ratios within one run count: absolute figures move from run to run."
)


def render(
    measurements: Sequence[Measurement], machine: Mapping[str, Any], settings: Mapping[str, Any],
    titles: Mapping[str, str], at_rates: Sequence[Point], *, with_targets: bool = True,
) -> dict[str, str]:  # fmt: skip
    """Return comparison.json, comparison.md and the charts, by file name. `at_rates` is a GET in an open loop."""
    document = {
        "machine": machine,
        "method": {"text": METHOD, **settings},
        "at_rates": [asdict(each) for each in at_rates],
        "measurements": [each.as_json() for each in measurements],
    }
    results = medians(measurements)
    charts = draw(results.values(), titles)
    markdown = comparison_markdown(measurements, machine, settings, titles, at_rates, list(charts), with_targets)
    return {"comparison.json": json.dumps(document, indent=1) + "\n", "comparison.md": markdown, **charts}


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write texts by file name into a directory; create it if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def as_trial(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a run that was cut down: its Markdown says so first."""
    return {name: f"**{TRIAL}**\n\n{text}" if name.endswith(".md") else text for name, text in files.items()}


def keep(files: Mapping[str, str], output: Path | None, is_whole: bool) -> str:
    """Write files into `output` and return a message about it.

    Without `output` a whole run replaces the committed results, and a partial run writes nothing.
    """
    directory = output or (RESULTS if is_whole else None)
    if directory is None:
        return "nothing was written: this was a trial; --output DIR keeps it"
    write_files(directory, files)
    return f"written to {directory}: {', '.join(files)}"


def comparison_markdown(
    measurements: Sequence[Measurement], machine: Mapping[str, Any], settings: Mapping[str, Any],
    titles: Mapping[str, str], at_rates: Sequence[Point], charts: Sequence[str], with_targets: bool,
) -> str:  # fmt: skip
    """Return the comparison as Markdown: the rates that people run, targets, charts, then every figure."""
    results = medians(measurements)
    parts = ["# Comparison\n", f"{summarise(machine)}\n", f"{METHOD}\n"]
    parts.append(f"{settings['rounds']} rounds, {settings['warm_up']} s of warm-up before each measurement.\n")
    if at_rates:
        parts += ["## GET by id at the rates that people run: an open loop, 2 workers\n"]
        parts += [rates_table(at_rates, titles) + "\n"]
    if with_targets:
        parts += ["## Targets\n", targets_table(results, titles) + "\n"]
    if charts:
        parts += ["## Charts\n", "\n".join(f"![{name.removesuffix('.svg')}]({name})" for name in charts) + "\n"]
    parts += ["## Figures\n", results_table(results.values(), titles)]
    warned = [f"- {titles.get(m.system, m.system)}, {m.workload}: {w}" for m in results.values() for w in m.warnings]
    if warned:
        parts += ["## Warnings\n", "\n".join(warned) + "\n"]
    return "\n".join(parts)


def draw(results: Iterable[Measurement], titles: Mapping[str, str]) -> dict[str, str]:
    """Return every chart for which there are enough measurements, by file name."""
    measured = list(results)
    charts = {f"throughput-{workload}.svg": _throughput(measured, workload, titles) for workload in WORKLOADS}
    charts |= {f"distance-{name}.svg": _by_distance(measured, name, titles) for name in ("get", "create")}
    charts["connections.svg"] = _by_connections(measured, titles)
    return {name: chart for name, chart in charts.items() if chart is not None}


def _throughput(measured: list[Measurement], workload: str, titles: Mapping[str, str]) -> str | None:
    chosen = [m for m in measured if (m.workload, m.workers, m.connections, m.distance_ms) == (workload, 2, 128, 0.0)]
    if len(chosen) < 2:
        return None
    bars = [
        Bar(titles.get(m.system, m.system), m.requests_per_second, short(m.requests_per_second), _is_ours(m.system))
        for m in sorted(chosen, key=lambda m: -m.requests_per_second)
    ]
    note = "longer is better · 2 workers, 128 connections, durable commits, one machine"
    return bar_chart(f"{WORKLOADS[workload].title}: throughput", note, "requests/s", bars)


def _by_distance(measured: list[Measurement], workload: str, titles: Mapping[str, str]) -> str | None:
    chosen = [m for m in measured if (m.workload, m.workers, m.connections) == (workload, 1, FAR_CONNECTIONS)]
    distances = sorted({m.distance_ms for m in chosen})
    if len(distances) < 2:
        return None
    x = Axis("round trip to the database, ms", "symlog", distances)
    lines = _lines(chosen, titles, lambda m: (m.distance_ms, m.requests_per_second))
    return line_chart(
        f"{WORKLOADS[workload].title}: throughput by distance to PostgreSQL",
        f"higher is better · 1 worker, {FAR_CONNECTIONS} connections, pool of 10",
        Panel(x, Axis("requests/s", "log"), lines, "/s"),
    )


def _by_connections(measured: list[Measurement], titles: Mapping[str, str]) -> str | None:
    chosen = [
        m for m in measured if (m.workload, m.workers, m.distance_ms) == ("get", 2, 0.0) and m.system != "constant"
    ]
    connections = sorted({m.connections for m in chosen})
    if len(connections) < 3:
        return None
    x = Axis("connections", "log", connections)
    lines = _lines(chosen, titles, lambda m: (float(m.connections), m.p50_ms))
    return line_chart(
        "GET by id: median latency by connections",
        "lower is better · closed loop · 2 workers",
        Panel(x, Axis("median latency, ms", "log"), lines, " ms"),
    )


def _lines(
    chosen: list[Measurement], titles: Mapping[str, str], point: Callable[[Measurement], tuple[float, float]]
) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each system, this service's first."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in sorted(chosen, key=lambda m: not _is_ours(m.system)):
        lines.setdefault(titles.get(each.system, each.system), []).append(point(each))
    return lines


def _is_ours(system: str) -> bool:
    return system.startswith("users_api")
