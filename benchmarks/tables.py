"""Results as Markdown tables, which are also printed on the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.measure import GENERATOR_LIMIT, Measurement, Point
from benchmarks.targets import TARGETS, Key
from benchmarks.workloads import WORKLOADS


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up; all but the first are right-aligned."""
    body = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *body]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(aligned)} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|"
    return "\n".join([line(head), rule, *map(line, body)])


def targets_table(results: Mapping[Key, Measurement], titles: Mapping[str, str]) -> str:
    """Return each target with the ratio that this run measured."""
    rows = []
    for target in TARGETS:
        ratio = target.ratio(dict(results))
        verdict = "not measured" if ratio is None else "met" if target.is_met(ratio) else "NOT met"
        measured = "-" if ratio is None else f"{ratio:.2f}x"
        bound = f"{'<=' if target.at_most else '>='} {target.bound:g}x"
        rows.append((target.title, titles.get(target.other, target.other), measured, bound, verdict))
    return table(("what", "against", "measured", "target", "verdict"), rows)


def results_table(results: Iterable[Measurement], titles: Mapping[str, str]) -> str:
    """Return the figures of every measurement, grouped by workload, workers, connections and distance."""
    sections: dict[tuple[float, int, int, str], list[Measurement]] = {}
    for each in results:
        sections.setdefault((each.distance_ms, each.workers, each.connections, each.workload), []).append(each)
    parts = []
    for (distance_ms, workers, connections, workload), members in sorted(sections.items(), key=_order):
        far = f", database {distance_ms:g} ms away" if distance_ms else ""
        title = WORKLOADS[workload].title if workload in WORKLOADS else workload
        plural = "" if workers == 1 else "s"
        parts.append(f"### {title}: {workers} worker{plural}, {connections} connection{'s'[: connections != 1]}{far}\n")
        head = ("system", "req/s", "p50 ms", "p99 ms", "server µs", "PostgreSQL µs", "errors")
        ordered = sorted(members, key=lambda m: -m.requests_per_second)
        parts.append(table(head, [_figures(m, titles) for m in ordered]) + "\n")
    return "\n".join(parts)


def rates_table(points: Sequence[Point], titles: Mapping[str, str]) -> str:
    """Return the figures of each system and rate."""
    rows = [
        (titles[p.system] + ("" if p.generator_cores < GENERATOR_LIMIT else " (limit of the generator)"),
         f"{p.offered:,}", f"{p.goodput:,.0f}",
         *(f"{each:.0f}" if p.is_held else "" for each in (p.server_us, p.postgres_us)),
         f"{p.p50_ms:.2f}", f"{p.p99_ms:.2f}", f"{p.p999_ms:.2f}", "yes" if p.is_held else "no")
        for p in points
    ]  # fmt: skip
    columns = ("offered/s", "answered/s", "server µs", "PostgreSQL µs", "p50 ms", "p99 ms", "p99.9 ms", "held")
    return table(("system", *columns), rows)


def _order(item: tuple[tuple[float, int, int, str], list[Measurement]]) -> tuple[float, int, int, int]:
    distance_ms, workers, connections, workload = item[0]
    names = list(WORKLOADS)
    return distance_ms, -workers, connections, names.index(workload) if workload in names else len(names)


def _figures(each: Measurement, titles: Mapping[str, str]) -> tuple[str, ...]:
    mark = " (limit of the generator)" if each.warnings and not (each.refused or each.socket_errors) else ""
    return (
        titles.get(each.system, each.system) + mark,
        f"{each.requests_per_second:,.0f}",
        f"{each.p50_ms:.2f}",
        f"{each.p99_ms:.2f}",
        f"{each.server_us:,.0f}",
        f"{each.postgres_us:,.0f}",
        f"{each.refused + each.socket_errors:,}",
    )
