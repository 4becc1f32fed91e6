"""Fixtures of the tests of telemetry."""

import logging
from collections.abc import Iterator

import pytest

from tests.support.logs import Log


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
