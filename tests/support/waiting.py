"""Wait for a thread, a process or a server."""

import time
from collections.abc import Callable

import httpx


def wait_until(condition: Callable[[], object]) -> None:
    """Return once `condition` is true; pytest's timeout bounds it."""
    while not condition():
        time.sleep(0.005)


def status(port: int, path: str) -> int:
    """Return the status of an answer, 0 if there is none."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code
    except httpx.TransportError:
        return 0
