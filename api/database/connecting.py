"""Connecting to PostgreSQL: a second attempt beside one that is stuck, and the pauses between those that fail."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg

logger = logging.getLogger("api.database")

# Longer than a compute usually takes to wake, and shorter than who waits for it likes.
_STUCK_SECONDS = 1.0
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 0.3


async def connect(
    name: str,
    attempt: Callable[[], Coroutine[Any, Any, asyncpg.Connection]],
    may_repeat: Callable[[], bool] = lambda: True,
) -> asyncpg.Connection:
    """The connection of an attempt, or of a second one where the first is stuck and `may_repeat` allows it.

    The first that succeeds counts, and nothing is left of the other. `name` is that of the URL, for the log. Raises
    what the first attempt failed on.
    """
    attempts = [asyncio.create_task(attempt())]
    chosen: asyncio.Task[asyncpg.Connection] | None = None
    try:
        await asyncio.wait(attempts, timeout=_STUCK_SECONDS)
        if not attempts[0].done() and may_repeat():
            logger.info("%s: no answer to an attempt to connect: another is made beside it", name)
            attempts.append(asyncio.create_task(attempt()))
        pending = set(attempts)
        while pending:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if chosen := next((each for each in ended if each.exception() is None), None):
                return chosen.result()
        return attempts[0].result()  # raises what it failed on
    finally:
        # Not awaited: whoever is cancelled meanwhile would leave the chosen one open.
        for each in attempts:
            if each is not chosen:
                each.cancel()
                each.add_done_callback(_discard)


def _discard(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row, at least one: twice as long each time, with jitter.

    The longest is short: it is what a request may wait after the database is back.
    """
    longest: float = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - not a secret
