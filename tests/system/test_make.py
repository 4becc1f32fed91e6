"""The messages of the Makefile to a newcomer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT


def make(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Without the variables of the `make test` that may run this.
    outer = ("MAKE", "MFLAGS", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run(["make", *arguments], cwd=directory, env=environment, capture_output=True, text=True)


def test_help_lists_every_command() -> None:
    ended = make(ROOT, "help")
    assert (ended.returncode, ended.stderr) == (0, "")
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = {name for line in ended.stdout.splitlines() for name in line.split()}
    assert listed >= {name for line in phony for name in line.split()}
    assert all(re.match(r"  [a-z]", line) for line in ended.stdout.splitlines())


@pytest.mark.parametrize(
    ("python", "lacks", "said"),
    [
        ("python3", "venv", "apt install python3-venv"),
        ("python3.13", "venv", "apt install python3.13-venv"),
        ("python3.9", "version_info", "users-api needs Python >= 3.11; name another one with: make PYTHON="),
    ],
)
def test_a_python_that_cannot_be_used_is_one_line_with_the_remedy(
    tmp_path: Path, python: str, lacks: str, said: str
) -> None:
    """Debian's Python comes without venv."""
    for name in ("Makefile", "requirements-run.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / python
    program.write_text(f'#!/bin/sh\ncase "$2" in *{lacks}*) echo ModuleNotFoundError >&2; exit 1;; esac\n')
    program.chmod(0o755)
    ended = make(tmp_path, "run", f"PYTHON={program}")
    assert ended.returncode == 2
    assert said in ended.stdout
    assert not (tmp_path / ".venv").exists()
