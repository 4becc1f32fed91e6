"""`users-api doctor`."""

import asyncio
import os
import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict

import click
import orjson

from api.cli.common import explain_errors, settings_with_database
from api.doctor import examine
from api.doctor.findings import Step

_COLOURS = {"green": "green", "yellow": "yellow", "red": "red", "skipped": "bright_black"}


@click.command()
@click.option(
    "--replicas", default=1, show_default=True, type=click.IntRange(1, 10000), help="Containers of the service."
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Workers in each container.")
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds for each URL, including the wake-up of a compute. The whole run takes at most about twice as long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, for programs.")
@click.pass_context
@explain_errors
def doctor(context: click.Context, replicas: int, workers: int, timeout: float, as_json: bool) -> None:
    """Examine DATABASE_URL and DIRECT_URL step by step, and name the remedy for each problem.

    Each step is green, yellow (it works; read the remedy), red, or skipped because an earlier step failed. Exit code 1
    if a step is red, 2 if the settings cannot be used, else 0. It only reads. NO_COLOR turns the colours off.

    Without DIRECT_URL, as where the server runs, migrations are not examined. It needs no privilege beyond those of the
    server's role: it names the GRANT that the role lacks for a statement, and says what it is not shown.

    \b
    --json: {"status": the worst of all, "steps": [{"url": "DATABASE_URL", "step": "TLS", "status": "red",
            "milliseconds": 12.3 or null, "detail": "...", "remedy": "..." or null}, ...]}

    \b
    Examples:
      users-api doctor
      users-api doctor --replicas 3 --workers 2
      users-api doctor --json | jq '.steps[] | select(.status == "red")'
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        context.color = False
    settings, _ = settings_with_database()
    report = _Progress()
    steps = asyncio.run(
        examine(
            settings,
            replicas=replicas,
            workers=workers,
            time_limit=timeout,
            report=(lambda *_: None) if as_json else report,
        )
    )
    count = Counter[str](step.status for step in steps)
    worst = next(status for status in ("red", "yellow", "green") if count[status])
    if as_json:
        click.echo(orjson.dumps({"status": worst, "steps": list(map(asdict, steps))}, option=orjson.OPT_INDENT_2))
    else:
        summary = ", ".join(f"{count[status]} {status}" for status in _COLOURS if count[status])
        click.echo(f"\n{click.style(worst, fg=_COLOURS[worst], bold=True)}: {summary}")
    sys.exit(worst == "red")


class _Progress:
    """Prints each step when it ends; on a terminal also when it begins."""

    def __init__(self) -> None:
        self._variable = ""
        self._terminal = sys.stdout.isatty()
        # In a pipe or a file a text stays on one line, for grep.
        self._width = min(shutil.get_terminal_size().columns, 100) if self._terminal else 10**6

    def __call__(self, variable: str, name: str, step: Step | None) -> None:
        if variable != self._variable:
            click.echo(f"{chr(10) if self._variable else ''}{click.style(variable, bold=True)}")
            self._variable = variable
        if step is None:
            if self._terminal:
                click.echo(f"  {'...':<7} {name:<19}\r", nl=False)
            return
        status = click.style(f"{step.status:<7}", fg=_COLOURS[step.status])
        took = f"{step.milliseconds:.1f} ms" if step.milliseconds is not None else ""
        click.echo(f"  {status} {name:<19} {took:>10}  {self._fold(step.detail, 42)}")
        if step.remedy:
            click.echo(f"{' ' * 10}{click.style('do:', bold=True)} {self._fold(step.remedy, 14)}")

    def _fold(self, text: str, indent: int) -> str:
        lines = textwrap.wrap(text, max(self._width - indent, 30), break_long_words=False, break_on_hyphens=False)
        return f"\n{' ' * indent}".join(lines)
