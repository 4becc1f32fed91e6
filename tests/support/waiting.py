"""Waiting for a thread, a process or a server."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object]) -> None:
    """Return when a thread, a process or a server has come to what a test expects of it; pytest's time-out ends it."""
    while not condition():
        time.sleep(0.005)
