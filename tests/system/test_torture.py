"""`python -m benchmarks.torture` in a process of its own: it clears the service, and finds planted bugs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.findings import Findings, render
from tests.support import ROOT
from tests.support.database import in_memory
from tests.support.history import Kind, Operation, Seen, Violation
from tests.support.waiting import wait_until

pytestmark = pytest.mark.heavy

MACHINE = {
    "cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "kernel": "Linux 6", "python": "3.11", "postgresql": "18.0",
    "packages": {},
}  # fmt: skip


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the run keeps everything: PostgreSQL's files, which its own user must reach, and every socket and log."""
    directory = Path(tempfile.mkdtemp(prefix="torture-", dir=in_memory()))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def torture(session_rig: object, directory: Path) -> "Torture":
    """Starts a run. The session's rig is not used, but where it is missing this one cannot run either."""
    return Torture(directory)


class Torture:
    """Runs of `python -m benchmarks.torture` that can be told from everything else on the machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._results = directory / "results"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "benchmarks.torture", "--output", str(self._results), *arguments]
        environment = {**os.environ, "TMPDIR": str(self._directory)}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The exit code and the document of a whole run."""
        with self.start(*arguments) as process:
            output = process.communicate()
        assert (self._results / "torture.json").exists(), output
        return process.returncode, self.document

    def line(self, process: "subprocess.Popen[str]") -> str:
        """The next line of a run's progress."""
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line, "the run ended"
        return line

    def faults(self, process: "subprocess.Popen[str]") -> int:
        """How many fault injections the next line of a run's progress counts."""
        counted = re.search(r"(\d+) fault injections", self.line(process))
        return int(counted[1]) if counted else 0

    @property
    def document(self) -> dict[str, Any]:
        """What the last run wrote."""
        document: dict[str, Any] = json.loads((self._results / "torture.json").read_text())
        return document

    @property
    def left(self) -> list[list[str]]:
        """The command lines of what still runs there."""
        return [
            process.info["cmdline"]
            for process in psutil.process_iter(["cmdline", "cwd"])
            if str(self._directory) in " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        ]


def test_nothing_is_lost_and_nothing_invented(torture: Torture) -> None:
    code, found = torture.run("--minutes", "0.2")
    assert (found["violations"], found["failed"], code) == ([], 0, 0)
    # Far fewer than there are on an idle machine.
    assert found["operations"] >= 100
    assert sum(times > 0 for times in found["fault_injections"].values()) >= 10
    assert torture.left == []


@pytest.mark.parametrize(
    ("bug", "fault", "rate"), [("acknowledges_before_commit", "latency", "2"), ("sends_again", "answer 57P01", "20")]
)
def test_a_planted_bug_is_found(torture: Torture, bug: str, fault: str, rate: str) -> None:
    code, found = torture.run("--minutes", "0.1", "--only", fault, "--rate", rate, "--plant", bug)
    assert found["violations"]
    assert code == 1


def test_ctrl_c_ends_a_run_early_and_checks_what_was_done(torture: Torture) -> None:
    with torture.start("--minutes", "1", "--only", "SIGKILL", "--rate", "2") as process:
        wait_until(lambda: torture.faults(process) >= 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert "interrupted" in errors
    assert "| violations" in output
    assert (torture.document["violations"], process.returncode) == ([], 0)
    assert torture.left == []


def test_ctrl_c_twice_ends_it_at_once(torture: Torture) -> None:
    with torture.start("--minutes", "1") as process:
        wait_until(lambda: torture.faults(process) >= 1)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "interrupted" in torture.line(process))
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode != 0
    assert torture.left == []


def test_findings_become_json_markdown_and_a_chart() -> None:
    seen = Seen(1, 1, "n1", "ada@example.com")
    history = [
        Operation(Kind.CREATE, 10.0, 10.1, 201, address="ada@example.com", name="n1", seen=seen),
        Operation(Kind.PATCH, 10.2, 10.3, 503, user_id=1, name="n2", problem="outcome-unknown"),
        Operation(Kind.PATCH, 10.2, float("inf"), user_id=1, name="n3", problem="hung up"),
        Operation(Kind.PATCH, 10.4, 10.5, 503, user_id=1, name="n4", problem="unavailable"),
        Operation(Kind.GET, 13.0, 13.5, 200, user_id=1, seen=Seen(1, 2, "n2", "ada@example.com")),
        Operation(Kind.GET, 13.6, 13.7, 500, user_id=1, problem="blank"),
    ]
    violation = Violation("Something is wrong", tuple(history[:1]))
    findings = Findings(10.0, 4.0, history, {"answer reset": 1, "suspend": 30}, [violation], (0.5, history[4]), ["Oh"])
    files = render(findings, MACHINE, "So it was done.")
    found = json.loads(files["torture.json"])
    assert (found["operations"], found["refused"], found["unknown"], found["unknown_that_happened"]) == (6, 2, 2, 1)
    assert (found["failed"], found["longest_outage_seconds"], found["longest_stall_seconds"]) == (1, 3.4, 0.5)
    assert found["answers"]["none hung up"] == {"PATCH": 1}
    assert "31 of 2 kinds, each at least 1 times" in files["torture.md"]
    assert "Something is wrong" in files["torture.md"]
    assert "<svg" in files["torture.svg"]
    assert not findings.is_good
