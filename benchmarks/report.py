"""What a run leaves behind: JSON with every round, Markdown, charts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import draw
from benchmarks.machine import summarise
from benchmarks.measure import Measurement
from benchmarks.tables import results_table, targets_table
from benchmarks.targets import medians

RESULTS = Path(__file__).parent / "results"

METHOD = (
    "Each system runs alone, started afresh for every round; rounds alternate over the systems; figures are medians "
    "over rounds. wrk drives it in a closed loop over keep-alive connections on the loopback interface. PostgreSQL "
    "commits durably (fsync and synchronous_commit on). CPU is user and system time of the whole process tree. "
    "Only ratios within one run count: absolute figures move from run to run."
)


def render(
    measurements: Sequence[Measurement], machine: Mapping[str, Any], settings: Mapping[str, Any],
    titles: Mapping[str, str], *, with_targets: bool = True,
) -> dict[str, str]:  # fmt: skip
    """Return comparison.json, comparison.md and the charts, by file name."""
    document = {
        "machine": machine,
        "method": {"text": METHOD, **settings},
        "measurements": [each.as_json() for each in measurements],
    }
    results = medians(measurements)
    charts = draw(results.values(), titles)
    markdown = comparison_markdown(measurements, machine, settings, titles, list(charts), with_targets)
    return {"comparison.json": json.dumps(document, indent=1) + "\n", "comparison.md": markdown, **charts}


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write texts by name into a directory, made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def keep(files: Mapping[str, str], output: Path | None, is_whole: bool) -> str:
    """Write files into `output`, and return a line that says so.

    Where no directory was named, a whole run replaces the committed results, and a trial writes nothing.
    """
    directory = output or (RESULTS if is_whole else None)
    if directory is None:
        return "nothing was written: this was a trial; --output DIR keeps it"
    write_files(directory, files)
    return f"written to {directory}: {', '.join(files)}"


def comparison_markdown(
    measurements: Sequence[Measurement], machine: Mapping[str, Any], settings: Mapping[str, Any],
    titles: Mapping[str, str], charts: Sequence[str], with_targets: bool,
) -> str:  # fmt: skip
    """Return the comparison for people: targets first, then charts, then every figure."""
    results = medians(measurements)
    parts = ["# Comparison\n", f"{summarise(machine)}\n", f"{METHOD}\n"]
    parts.append(f"{settings['rounds']} rounds, {settings['warm_up']} s of warm-up before each measurement.\n")
    if with_targets:
        parts += ["## Targets\n", targets_table(results, titles) + "\n"]
    if charts:
        parts += ["## Charts\n", "\n".join(f"![{name.removesuffix('.svg')}]({name})" for name in charts) + "\n"]
    parts += ["## Figures\n", results_table(results.values(), titles)]
    warned = [f"- {titles.get(m.system, m.system)}, {m.workload}: {w}" for m in results.values() for w in m.warnings]
    if warned:
        parts += ["## Warnings\n", "\n".join(warned) + "\n"]
    return "\n".join(parts)
