"""Runs tests in a process of its own for each mutant, without importing the packages each time.

A bench is a copy of the checkout in memory, with a PostgreSQL cluster that every run copies. Its process imports the
packages that the tests need, but nothing of `api` and no test, and forks for each run. So a run starts in the state of
a fresh pytest, without the time that it takes to import them.

Protocol: a line of JSON for each run on the standard input, and one on the standard output with pytest's exit status.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import psutil

TIMED_OUT = -1
"""The status of a run that was ended."""
# Ours are imported anew for each mutant. A module such as _asyncio is imported by the one that needs it, in its order.
_IS_LEFT = re.compile(r"(api|tests|benchmarks|conftest|_\w+)(\.|$)").match
_PR_SET_CHILD_SUBREAPER = 36


def main(imported: Path) -> None:
    """Answer requests until the input ends. The first run lists in `imported` what later ones find imported."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    names = imported.read_text().split() if imported.exists() else []
    with warnings.catch_warnings(action="ignore"):
        for name in names:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    _prepare_hypothesis()
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line), imported=None if names else imported)), flush=True)


def _prepare_hypothesis() -> None:
    """The same examples for each mutant. A failure is enough: the smallest one is not looked for."""
    from hypothesis import Phase, settings

    settings.register_profile("mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")


def _run(arguments: list[str], seconds: float, output: str, imported: Path | None) -> dict[str, float]:
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _test(arguments, Path(output), imported)
    status = _wait(pid, began + seconds)
    _end_descendants()
    return {"status": status, "seconds": time.monotonic() - began}


def _test(arguments: list[str], output: Path, imported: Path | None) -> None:
    status = 3
    try:
        with output.open("wb") as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import pytest

        status = int(pytest.main(arguments))
        if imported is not None:
            imported.write_text("\n".join(name for name in sorted(sys.modules) if not _IS_LEFT(name)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def _wait(pid: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return abs(os.waitstatus_to_exitcode(status))
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return TIMED_OUT


def _end_descendants() -> None:
    """A test that was ended has left its PostgreSQL and its servers behind, which are this process's children now."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
