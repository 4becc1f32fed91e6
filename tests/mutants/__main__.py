"""Try every mutant of the modules that decide: `python -m tests.mutants --help`."""

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import click

from tests.mutants import mutations, sql, table
from tests.mutants.bench import Bench, BrokenError
from tests.mutants.modules import MODULES
from tests.mutants.mutations import Mutant
from tests.support import ROOT
from tests.support.database import in_memory

_TIMES_AS_LONG, _GRACE_SECONDS = 3, 10
"""A mutant whose tests take longer than so many times those of the source, and a grace, hangs."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("modules", nargs=-1, metavar="[MODULE]...")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=os.cpu_count() or 1, show_default=True, help="Mutants at a time."
)
@click.option(
    "--line", "lines", type=int, multiple=True, help="Only mutants of this line; repeatable. Writes no result."
)
@click.option("--write", is_flag=True, help=f"Write the figures to {table.PATH.relative_to(ROOT)}.")
def main(modules: tuple[str, ...], jobs: int, lines: tuple[int, ...], write: bool) -> None:
    """Change one line of a MODULE after the other and run its tests: which changes do they not see?

    A MODULE is a path below api/ without .py, such as database/pool, or the beginning of the paths of SQL files, such
    as sql/users/insert; without one, every module of tests/mutants/modules.py is tried, which takes an hour. Prints
    each survivor as a diff, and a table. Survivors that are the same program in effect are listed with their reason in
    tests/mutants/equivalents.toml.
    """
    if unknown := set(modules) - set(MODULES):
        raise click.BadParameter(f"no tests are named for {', '.join(sorted(unknown))}: one of {', '.join(MODULES)}")
    if write and (changed := table.uncommitted()):
        raise click.ClickException(f"a row names the commit that it was made of: commit first {', '.join(changed)}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="users-api-mutants-", dir=in_memory())))
        directory.chmod(0o755)  # PostgreSQL's own user passes through it
        benches = [stack.enter_context(Bench(directory / str(number))) for number in range(jobs)]
        for module in modules or MODULES:
            found = [mutant for mutant in _mutants(module) if not lines or mutant.line in lines]
            try:
                survivors = _try(module, found, benches)
            except BrokenError as error:
                raise click.ClickException(f"the tests of {module} fail without a mutant:\n{error}") from None
            equivalent = table.equivalents(module)
            unexplained = [mutant for mutant in survivors if (mutant.before, mutant.after) not in equivalent]
            for mutant in unexplained:
                click.echo(mutant.diff)
            row = table.Row(module, len(found), len(survivors) - len(unexplained), len(unexplained))
            click.echo(row.render())
            if write and not lines:
                table.write(row)


def _mutants(module: str) -> list[Mutant]:
    find = sql.mutants if module.startswith("sql/") else mutations.mutants
    return find(ROOT, module)


def _try(module: str, found: Sequence[Mutant], benches: Sequence[Bench]) -> list[Mutant]:
    """Return the mutants that survive, in order. Raises BrokenError."""
    tests = MODULES[module]
    seconds = [bench.measure(tests) for bench in benches]
    limit = _GRACE_SECONDS + _TIMES_AS_LONG * max(seconds)
    click.echo(f"{module}: {len(found)} mutants, {seconds[0]:.1f} s of tests for one that survives", err=True)
    free: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        free.put(bench)

    def survives(mutant: Mutant) -> bool:
        bench = free.get()
        try:
            return not bench.kills(mutant, tests, limit)
        finally:
            free.put(bench)

    with ThreadPoolExecutor(len(benches)) as threads, click.progressbar(length=len(found), file=sys.stderr) as progress:
        survivors = []
        for mutant, has_survived in zip(found, threads.map(survives, found), strict=True):
            progress.update(1)
            if has_survived:
                survivors.append(mutant)
    return survivors


if __name__ == "__main__":
    main()
