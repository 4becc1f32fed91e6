"""The committed figures, and the survivors that are no slips."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tests.support import ROOT

PATH = Path(__file__).parent / "README.md"
"""Its table has a row for each module."""
_EQUIVALENTS = Path(__file__).parent / "equivalents.toml"


@dataclass(frozen=True)
class Row:
    """What became of the mutants of a module."""

    module: str
    mutants: int
    equivalent: int
    survived: int

    @property
    def killed(self) -> int:
        """How many the tests saw."""
        return self.mutants - self.equivalent - self.survived

    def render(self) -> str:
        """Return the row of the table: the share is of those that a test could see."""
        share = self.killed / ((self.mutants - self.equivalent) or 1)
        figures = f"{self.mutants} | {self.killed} | {self.equivalent} | {self.survived} | {share:.1%}"
        return f"| {self.module} | {figures} | {date.today()} | {_git('rev-parse', '--short', 'HEAD').strip()} |"


def equivalents(module: str) -> set[tuple[str, str]]:
    """Return the changes of a module, as lines before and after, that no test can see."""
    return {(each["before"], each["after"]) for each in tomllib.loads(_EQUIVALENTS.read_text()).get(module, [])}


def uncommitted() -> list[str]:
    """Return what differs from the commit that a row would name."""
    changed = (line[3:] for line in _git("status", "--porcelain").splitlines())
    return [path for path in changed if path != str(PATH.relative_to(ROOT))]


def write(row: Row) -> None:
    """Put a row in its place in the table, or at its end."""
    text = PATH.read_text()
    old = re.compile(rf"^\| {re.escape(row.module)} \|.*\n", re.M)
    rows = old.sub(lambda _: f"{row.render()}\n", text) if old.search(text) else f"{text.rstrip()}\n{row.render()}\n"
    PATH.write_text(rows)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout
