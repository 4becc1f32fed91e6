"""Count the CPU instructions of a request, which vary by less than a percent where times vary by a third.

The server runs in one process under valgrind (`inprocess.py`). PostgreSQL is another process, and not counted. The
figures depend on Python's build and on the locked packages, so each Python version has its own.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.database import Database
from benchmarks.inprocess import ANNOUNCED, CELLS, START, WARM
from benchmarks.processes import StartError
from benchmarks.report import RESULTS
from benchmarks.session import run_with_database
from benchmarks.systems import ROOT

FIGURES = RESULTS / "instructions.json"
PYTHON = f"{platform.python_version()} {platform.machine()}"
"""The name of this Python's figures."""
MARGIN = 0.03
MISSING = "valgrind is missing: apt install valgrind"
_ROWS = 1000
_ENVIRONMENT = {
    # Sets and dictionaries of strings in the same order each time.
    "PYTHONHASHSEED": "0",
    "LOG_LEVEL": "error",
    # Under valgrind everything takes 50 times as long.
    "ACQUIRE_TIMEOUT_SECONDS": "300",
    "STATEMENT_TIMEOUT_SECONDS": "300",
    "POOL_IDLE_SECONDS": "3600",
    "SLOW_REQUEST_SECONDS": "3600",
}
_REMEDY = (
    'Compare profiles of this commit and the one before: make instructions ARGS="--keep DIR", then callgrind_annotate. '
    "If the difference is worth it, or comes of other packages, commit new figures: make instructions WRITE=1"
)


def committed() -> dict[str, int] | None:
    """Return the committed figures of this Python: instructions a request by cell. None if there are none."""
    figures: dict[str, dict[str, int]] = json.loads(FIGURES.read_text())
    return figures.get(PYTHON)


def differences(counted: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, float]:
    """Return the cells whose count differs by more than MARGIN, each with the difference as a share."""
    shares = {cell: counted[cell] / expected.get(cell, 1) - 1 for cell in counted}
    return {cell: share for cell, share in shares.items() if abs(share) > MARGIN}


def explain(counted: Mapping[str, int], expected: Mapping[str, int]) -> str:
    """Return one line for each cell that differs, and what to do; empty if none does."""
    lines = [
        f"{cell}: {counted[cell]:,} instructions a request, {counted[cell] - expected.get(cell, 0):+,} "
        f"({share:+.1%}, allowed: {MARGIN:.0%} more or less)"
        for cell, share in differences(counted, expected).items()
    ]
    return "\n".join([*lines, _REMEDY]) if lines else ""


def count(database: Database, *, plant: int = 0, kept: Path | None = None) -> dict[str, int]:
    """Return the instructions of a request by cell. `plant` is the number of iterations of a planted loop.

    In the directory `kept` remains one profile for each cell. Raises processes.StartError.
    """
    database.prepare(_ROWS)
    database.mark_dirty()
    with TemporaryDirectory(prefix="users-api-bench-") as scratch:
        out, log = Path(scratch) / "callgrind.out", Path(scratch) / "log"
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
            sys.executable, "-m", "benchmarks.inprocess",
        ]  # fmt: skip
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment |= _ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PLANT": str(plant)}
        environment |= {"DATABASE_URL": database.url, "DIRECT_URL": database.url}
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, cwd=scratch, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output
            ) as server,
        ):
            try:
                counted = _follow(server, out)
                server.wait()
            except (OSError, LookupError, subprocess.SubprocessError) as error:
                raise StartError(f"no count: {error!r}\n{log.read_text()[-3000:]}") from error
            finally:
                server.kill()
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            for number, cell in enumerate(CELLS, 2):
                shutil.copy(f"{out}.{number}", kept / f"callgrind.out.{cell.name.replace(' ', '-')}")
    return counted


def _follow(server: "subprocess.Popen[bytes]", out: Path) -> dict[str, int]:
    """Switch the counting on when the server is warm, and read the count after each cell."""
    counted = {}
    _await_stage(server, WARM)
    _control(server, "--instr=on")
    _await_stage(server, START)
    _control(server, "--dump")  # what was counted before the first cell
    for number, cell in enumerate(CELLS, 2):
        _await_stage(server, cell.name)
        _control(server, "--dump")
        total = re.search(r"^totals: (\d+)", Path(f"{out}.{number}").read_text(), re.MULTILINE)
        if total is None:
            raise LookupError(f"no total of {cell.name}")
        counted[cell.name] = round(int(total[1]) / cell.requests)
    _answer(server)
    return counted


def _await_stage(server: "subprocess.Popen[bytes]", stage: str) -> None:
    """Let the server go on to the end of a stage."""
    if stage != WARM:
        _answer(server)
    assert server.stdout is not None
    line = next((line for line in server.stdout if line.startswith(ANNOUNCED.encode())), b"")
    if line.decode() != f"{ANNOUNCED}{stage}\n":
        raise LookupError(f"the server did not reach {stage}")


def _answer(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.write(b"\n")
    server.stdin.flush()


def _control(server: "subprocess.Popen[bytes]", option: str) -> None:
    subprocess.run(["callgrind_control", option, str(server.pid)], check=True, capture_output=True, timeout=60)


def write(counted: Mapping[str, int]) -> None:
    """Commit figures to the file, as those of this Python."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures[PYTHON] = counted
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--write", "writes", is_flag=True, envvar="WRITE", help="Replace the committed figures of this Python.")
@click.option("--plant", default=0, help="Plant a loop of so many iterations before each request.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the profiles in this directory.")
def main(writes: bool, plant: int, keep: Path | None) -> None:
    """Count the instructions of a request, and compare them with the committed figures.

    Exits with 1 if one differs by more than 3 %. `callgrind_annotate` shows the functions of a profile that was kept.
    """
    if shutil.which("valgrind") is None:
        raise click.ClickException(MISSING)

    def measure(database: Database) -> None:
        counted = count(database, plant=plant, kept=keep)
        click.echo("\n".join(f"{cell:14} {each:10,}" for cell, each in counted.items()))
        if writes:
            write(counted)
        elif (expected := committed()) is None:
            click.echo(f"{FIGURES.name} has no figures for Python {PYTHON}: make instructions WRITE=1")
        elif found := explain(counted, expected):
            raise click.ClickException(f"\n{found}")

    run_with_database(measure, needs_wrk=False)


if __name__ == "__main__":
    main()
