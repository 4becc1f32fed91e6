"""Helpers that tests of several areas share: servers, commands, databases, the Neon rig, histories."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent.parent
"""The root of the repository."""


def lacking(missing: str) -> NoReturn:
    """Skip the test that needs what is missing; in CI, where nothing may be missing, it fails."""
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
