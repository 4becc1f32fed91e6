"""An outage: failures to connect in a row, the pause before the next attempt, and whether waiting can help."""

import asyncio
import logging
from collections.abc import Callable

from api.database import connecting, faults
from api.errors import DatabaseUnavailableError, describe

logger = logging.getLogger("api.database")


class Outage:
    """The outage of one database, if there is one. `name` is that of its URL, for the log.

    `retry` is called when the next attempt may be made.
    """

    def __init__(self, name: str, retry: Callable[[], None]) -> None:
        self._name = name
        self._retry = retry
        self._failures = 0
        self._cause: Exception | None = None
        self._since = 0.0
        self._pause: asyncio.TimerHandle | None = None

    @property
    def is_on(self) -> bool:
        """True from the first failure until a statement is answered on a new connection."""
        return self._failures > 0

    @property
    def is_pausing(self) -> bool:
        """True until the next attempt may be made."""
        return self._pause is not None

    @property
    def is_lasting(self) -> bool:
        """True until the next attempt if waiting does not help: the password is wrong, for example."""
        return self.is_pausing and self._cause is not None and not faults.classify(self._cause).transient

    def note(self, cause: Exception) -> None:
        """Count a failure, and pause before the next attempt."""
        loop = asyncio.get_running_loop()
        if not self._failures:
            self._since = loop.time()
            logger.warning("%s: no new connection: %s", self._name, describe(cause))
        self._failures += 1
        self._cause = cause.with_traceback(None)
        if self._pause is None:
            self._pause = loop.call_later(connecting.delay(self._failures), self._end_pause)

    def end(self) -> None:
        """Note that the database answers again."""
        if self._failures:
            seconds = asyncio.get_running_loop().time() - self._since
            logger.info("%s: connected again, after %d failures in %.1f s", self._name, self._failures, seconds)
            self.stop()
            self._retry()

    def stop(self) -> None:
        """Forget the outage, and make no further attempt."""
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._cause = None
        self._failures = 0

    def explain(self, otherwise: str) -> DatabaseUnavailableError:
        """Return the error of a request that got no connection; `otherwise` is its text without an outage."""
        if self._cause is None:
            return DatabaseUnavailableError(otherwise)
        error = DatabaseUnavailableError(faults.classify(self._cause).remedy)
        error.__cause__ = self._cause
        return error

    def _end_pause(self) -> None:
        self._pause = None
        self._retry()
