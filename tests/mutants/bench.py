"""A copy of the checkout in which mutants are tried, one after the other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.mutants.mutations import Mutant
from tests.support import ROOT
from tests.support.cluster import make_template, running_postgres

_COPIED = ("api", "benchmarks", "deploy", "docs", "migrations", "sql", "tests")
_OPTIONS = (
    *("-x", "-q", "--no-header", "-m", "not heavy and not image", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # packages that are imported before pytest starts
)
_PASSED = 0


class BrokenError(Exception):
    """The tests fail, or none is selected, on the source as it is; the message is the end of pytest's output."""


class Bench:
    """One process that runs tests on one copy; `with` removes both."""

    def __init__(self, directory: Path) -> None:
        self._checkout = directory / "checkout"
        self._output = directory / "output"
        self._cluster = directory / "cluster"
        self._directory = directory

    def __enter__(self) -> Self:
        self._checkout.mkdir(parents=True)
        self._directory.chmod(0o755)  # PostgreSQL's own user passes through it
        ignored = shutil.ignore_patterns("__pycache__", "results")
        for name in _COPIED:
            shutil.copytree(ROOT / name, self._checkout / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, self._checkout)
        with running_postgres(self._cluster) as url:
            make_template(url)
        self._start(writes_bytecode=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._directory)

    def measure(self, tests: list[str]) -> float:
        """Run tests on the source as it is and return the seconds that they take. Raises BrokenError."""
        # The first run compiles; what is measured, and every mutant, finds the bytecode and adds none: a mutated file
        # could be as old and as long as another.
        (self._directory / "imported").unlink(missing_ok=True)
        for writes_bytecode in (True, False):
            self._stop()
            self._start(writes_bytecode)
            status, seconds = self._run(tests, 600)
            if status != _PASSED:
                raise BrokenError("".join(self._output.read_text().splitlines(keepends=True)[-40:]))
        return seconds

    def kills(self, mutant: Mutant, tests: list[str], seconds: float) -> bool:
        """Return True if the tests fail on a mutant, or take longer than some seconds."""
        path = self._checkout / mutant.path
        original = path.read_text()
        path.write_text(mutant.source)
        try:
            status, _ = self._run(tests, seconds)
        finally:
            path.write_text(original)
        return status != _PASSED

    def _run(self, tests: list[str], seconds: float) -> tuple[int, float]:
        request = {"arguments": [*_OPTIONS, *tests], "seconds": seconds, "output": str(self._output)}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        for left in self._directory.glob("users-api-tests-*"):
            shutil.rmtree(left, ignore_errors=True)
        return int(answer["status"]), float(answer["seconds"])

    def _start(self, writes_bytecode: bool) -> None:
        environment = os.environ | {"PYTHONPATH": str(self._checkout), "TEST_POSTGRES": str(self._cluster)}
        environment["PYTHONDONTWRITEBYTECODE"] = "" if writes_bytecode else "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.trial", self._directory / "imported"],
            cwd=self._checkout, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _stop(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
