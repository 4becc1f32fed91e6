"""Fixtures of the tests of telemetry."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lacking
from tests.support.logs import Log

SCRIPT = Path(".ci/prometheus")


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of prometheus and promtool."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "users-api/prometheus"
    for program in (shutil.which("prometheus"), cache / "prometheus"):
        if program is not None and Path(program).exists():
            return Path(program).parent
    lacking(f"no prometheus for the dashboard and the alerts: run {SCRIPT}, which finds or fetches it")
