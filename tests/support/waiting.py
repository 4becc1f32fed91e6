"""Wait for a thread, a process or a server."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition` is true; pytest's timeout bounds it."""
    while not condition():
        time.sleep(0.005)
