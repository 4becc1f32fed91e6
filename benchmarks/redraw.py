"""Draw the charts of committed results again, without measuring: `python -m benchmarks.redraw [DIRECTORY]`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks import bulk, endurance, findings, latency, overload, profile, recovery, report, scaling, straightness
from benchmarks.measure import Measurement, Point
from benchmarks.systems import SYSTEMS
from benchmarks.targets import medians

_TITLES = {system.name: system.title for system in SYSTEMS.values()}


def _comparison(document: Mapping[str, Any]) -> dict[str, str]:
    return report.draw(medians(_measurements(document)).values(), _TITLES)


def _latency(document: Mapping[str, Any]) -> dict[str, str]:
    return latency.draw([Point(**point) for point in document["points"]], _TITLES)


def _profile(document: Mapping[str, Any]) -> dict[str, str]:
    return profile.draw({each["system"]: Measurement.from_json(each) for each in document["medians"]})


def _scaling(document: Mapping[str, Any]) -> dict[str, str]:
    measurements = _measurements(document)
    keys = {each.key for each in measurements}
    made = scaling.experiments(sorted({each.rows for each in measurements}))
    measured = [each for each in made if keys.issuperset(point.job.key for point in each.points)]
    return scaling.draw(measured, measurements)


def _measurements(document: Mapping[str, Any]) -> list[Measurement]:
    return [Measurement.from_json(each) for each in document["measurements"]]


DRAW: Mapping[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "bulk": bulk.draw,
    "comparison": _comparison,
    "growth": straightness.draw,
    "latency": _latency,
    "overload": overload.draw,
    "profile": _profile,
    "recovery": recovery.draw,
    "scaling": _scaling,
    "soak": endurance.draw,
    "torture": findings.draw,
}
"""The charts of each JSON document, by its name."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", default=report.RESULTS, type=click.Path(path_type=Path, file_okay=False, exists=True))
def main(directory: Path) -> None:
    """Draw the charts of the JSON results in DIRECTORY again; the default is benchmarks/results."""
    for name, draw in DRAW.items():
        source = directory / f"{name}.json"
        if source.exists():
            charts = draw(json.loads(source.read_text()))
            report.write_files(directory, charts)
            click.echo(f"{source.name}: {', '.join(charts)}")


if __name__ == "__main__":
    main()
