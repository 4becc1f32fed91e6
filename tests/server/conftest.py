"""Fixtures of the tests of the server's process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Served, on, served


@pytest.fixture
def start(directory: Path, database: str) -> Callable[..., Served]:
    """Serve the test's database in a process of its own."""

    def start_it(*arguments: str, **variables: Any) -> Served:
        return served(*arguments, cwd=directory, **{**on(database), **variables})

    return start_it
