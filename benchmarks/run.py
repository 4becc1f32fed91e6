"""Compare this service with others: `python -m benchmarks.run --help`."""

from pathlib import Path

import click

from benchmarks.database import Database
from benchmarks.latency import RUN_RATES, measure_systems
from benchmarks.machine import describe_machine
from benchmarks.plan import adjust, default_plan, full_plan, select
from benchmarks.report import TRIAL, as_trial, keep, render
from benchmarks.session import run_rounds, run_with_database
from benchmarks.systems import SYSTEMS, System, read_systems
from benchmarks.tables import rates_table, results_table, targets_table
from benchmarks.targets import medians
from benchmarks.workloads import WORKLOADS


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--full", is_flag=True, help="All systems, workloads, distances and concurrencies: most of an hour.")
@click.option(
    "--quick", is_flag=True, help="One round of one second: checks that everything runs. The figures are noise."
)
@click.option("--only", multiple=True, metavar="NAME", help=f"Measure this system; repeatable. {', '.join(SYSTEMS)}.")
@click.option(
    "--workload", multiple=True, type=click.Choice(list(WORKLOADS)), help="Measure this workload; repeatable."
)
@click.option(
    "--system",
    "extra",
    multiple=True,
    metavar="NAME=DIRECTORY|COMMAND",
    callback=read_systems,
    help="One more system: a checkout of this service, or a command in any language; repeatable.",
)
@click.option("--rounds", type=click.IntRange(1, 50), help="Number of times that each measurement is made. Default 3.")
@click.option("--seconds", type=click.IntRange(1, 60), help="Length of one measurement. Default 3, with --full 4.")
@click.option(
    "--connections", type=click.IntRange(1, 10_000), help="Connections of every measurement, instead of its own number."
)
@click.option("--rows", type=click.IntRange(1000), help="Users in the table. Default 100000.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Directory for the results; see above."
)
def main(
    full: bool,
    quick: bool,
    only: tuple[str, ...],
    workload: tuple[str, ...],
    extra: list[System],
    rounds: int | None,
    seconds: int | None,
    connections: int | None,
    rows: int | None,
    output: Path | None,
) -> None:
    """Compare this service with the same API written in other ways.

    Starts a PostgreSQL of its own with durable commits, then each system in turn, and loads it with wrk. Without
    options it measures the targets and reports which are met, in about ten minutes on two cores. Run nothing else
    on the machine meanwhile.

    Writes comparison.json, comparison.md and SVG charts into benchmarks/results. With --quick, --only, --workload,
    --connections or --rows it writes only into the directory of --output.

    \b
    Examples:
      python -m benchmarks.run                                     the targets
      python -m benchmarks.run --quick                             a check that it runs
      python -m benchmarks.run --only users_api --workload get     one figure
      python -m benchmarks.run --full --rounds 5                   everything
      python -m benchmarks.run --system 'go=./users -port {port}'  one more system
      python -m benchmarks.run --system before=../before           one more version of this service

    A command runs in the current directory with DATABASE_URL, PORT and WORKERS in its environment. It has to serve
    /api/v1/users/ and /api/v1/users/{id}, and to end on SIGTERM. A checkout is served by the Python of its own .venv,
    on a database with the migrations of this version.
    """
    unknown = [name for name in only if name not in SYSTEMS and name not in {system.name for system in extra}]
    if unknown:
        raise click.BadParameter(f"no such system: {', '.join(unknown)}", param_hint="--only")
    jobs = full_plan(extra) if full else default_plan(extra)
    if only or workload:  # a system or workload that is named is measured, also if the default plan lacks it
        jobs = select(full_plan(extra) if full or not select(jobs, only, workload) else jobs, only, workload)
    seconds = seconds or (1 if quick else 4 if full else None)
    jobs = adjust(jobs, seconds, connections, rows)
    rounds = rounds or (1 if quick else 3)
    settings = {"rounds": rounds, "warm_up": 1, "wrk_threads": 1, "full": full, "quick": quick}

    def measure(database: Database) -> None:
        machine = describe_machine(database)
        measurements = run_rounds(jobs, database, rounds)
        is_whole = not (only or workload)
        compared = [SYSTEMS[name] for name in ("users_api", "starlette_textbook", "fastapi_sqlalchemy")] + extra
        at_rates = measure_systems(compared, database, RUN_RATES, seconds or 3, 2, rounds) if is_whole else []
        titles = {system.name: system.title for system in (*SYSTEMS.values(), *extra)}
        results = medians(measurements)
        if quick:
            click.echo(f"{TRIAL}\n")
        if at_rates:
            click.echo(rates_table(at_rates, titles) + "\n")
        click.echo(results_table(results.values(), titles))
        if is_whole:
            click.echo(f"{TRIAL}\n\n" * quick + targets_table(results, titles))
        files = render(measurements, machine, settings, titles, at_rates, with_targets=is_whole)
        files = as_trial(files) if quick else files
        # A run that was cut down must not replace the results of a whole one.
        click.echo("\n" + keep(files, output, is_whole and not quick and connections is None and rows is None))

    run_with_database(measure)


if __name__ == "__main__":
    main()
