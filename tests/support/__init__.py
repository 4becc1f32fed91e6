"""Helpers that tests of several areas share: servers, commands, databases, the Neon rig, histories."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent.parent
"""The root of the repository."""


def fetched(program: str, script: str, purpose: str) -> Path:
    """Return the directory of a program that is installed, or that a script of .ci has fetched into its cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "users-api" / script
    for found in (shutil.which(program), cache / program):
        if found is not None and Path(found).exists():
            return Path(found).parent
    lacking(f"no {purpose}: run .ci/{script}, which finds or fetches it")


def lacking(missing: str) -> NoReturn:
    """Skip the test that needs what is missing; in CI, where nothing may be missing, it fails."""
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
