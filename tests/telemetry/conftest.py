"""Fixtures of the tests of telemetry."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fetched
from tests.support.logs import Log


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of prometheus and promtool."""
    return fetched("prometheus", "prometheus", "prometheus for the dashboard and the alerts")
