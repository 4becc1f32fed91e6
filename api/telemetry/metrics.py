"""Counting: two writes to memory for a request, where prometheus_client's own values cost microseconds."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from api.context import Batch, RequestContext
from api.telemetry import counters
from api.telemetry.counters import Counters, Key, Row
from api.telemetry.families import (
    BATCH_SIZE,
    BATCH_WAIT,
    DURATION,
    FAILED,
    FAMILIES,
    OPENED,
    PROBLEMS,
    REQUESTS,
    RETRIES,
    SECONDS,
    STATEMENT,
    SUM,
    UNKNOWN,
    WORKERS,
    make_registry,
)

_SAMPLE_SECONDS = 1.0
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# Problems with an alert. Their counters exist from the start: one that appears with its first event has no rate.
_WATCHED = ("overloaded", "unavailable", "outcome-unknown", "locked")


class Metrics:
    """The metrics of one process. In a `directory` its siblings count too, and any of them can read all of it."""

    def __init__(self, directory: Path | None = None) -> None:
        self.requests: dict[tuple[Any, str, int], Row] = {}
        """The row of each endpoint, method and status so far: see `request_row`."""
        self._counters = Counters(directory)
        self._watched: list[Callable[[], Mapping[Key, float]]] = []
        self.row = self._counters.row
        for key in self._counters.taken_over:
            if key[0] in FAMILIES and FAMILIES[key[0]].is_gauge:
                # The value is that of a process that has ended. This one may have no such pool, and never set it.
                self.row(*key)[0] = UNKNOWN
        for kind in _WATCHED:
            self.row(PROBLEMS.name, kind)

    def request_row(self, endpoint: Any, method: str, status: int, path: str | None) -> Row:
        """Return the row of such requests, a histogram over SECONDS. `path` is the route's template."""
        route = "unrouted" if path is None else path.rstrip("/") or "/"
        named = method if method in _METHODS else "_OTHER"  # as in OpenTelemetry
        row = self.row(DURATION.name, route, named, str(status))
        if named == method:  # Other servers may pass on any number of invented methods.
            self.requests[endpoint, method, status] = row
        return row

    def problem(self, kind: str) -> None:
        """Count a problem."""
        self.row(PROBLEMS.name, kind)[0] += 1

    def watch(self, gauges: Callable[[], Mapping[Key, float]]) -> None:
        """Include in every sample the values that a function returns, by the gauge's name and labels."""
        self._watched.append(gauges)

    def sample(self) -> None:
        """Write the gauges into their rows, for other processes to read."""
        self.row(WORKERS.name)[0] = 1
        for gauges in self._watched:
            for key, value in gauges().items():
                self.row(*key)[0] = value

    async def keep_sampling(self) -> None:
        """Sample every second, until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    def registry(self) -> CollectorRegistry:
        """Return the metrics of this process and its siblings, for prometheus_client to render."""
        return make_registry(self._counters.read)


class _StatementRows(NamedTuple):
    duration: Row
    size: Row
    wait: Row


class DatabaseMetrics:
    """The metrics of the database behind one URL; `url` is the name of its setting."""

    def __init__(self, metrics: Metrics, url: str) -> None:
        self._metrics = metrics
        self._url = url
        self._statements: dict[tuple[str, str], _StatementRows] = {}
        self._retries, self._opened, self._failed = (
            metrics.row(family.name, url) for family in (RETRIES, OPENED, FAILED)
        )

    def statement(
        self, statement: str, outcome: str, queue: float, seconds: float, served: Sequence[RequestContext]
    ) -> None:
        """Count a statement that was sent, and add its times, in seconds, to those of the requests that it served.

        `statement` is its file's name below sql/, `outcome` is ok, refused or failed. `queue` is how long it waited for
        a connection, `seconds` how long PostgreSQL took.
        """
        duration, size, wait = self._statements.get((statement, outcome)) or self._add(statement, outcome)
        duration[bisect_left(SECONDS, seconds)] += 1
        duration[SUM] += seconds
        number = len(served)
        size[SUM] += number
        if isinstance(served, Batch):
            size[bisect_left(REQUESTS, number)] += 1
            wait[bisect_left(SECONDS, served.waited)] += 1
            wait[SUM] += served.waited
        else:  # one request alone, which did not wait
            size[0] += 1
            wait[0] += 1
        for request in served:
            request.queue += queue
            request.database += seconds
            if number > request.shared_by:
                request.shared_by = number

    def _add(self, statement: str, outcome: str) -> _StatementRows:
        name = statement.removesuffix(".sql")
        rows = _StatementRows(
            self._metrics.row(STATEMENT.name, self._url, name, outcome),
            self._metrics.row(BATCH_SIZE.name, self._url, name),
            self._metrics.row(BATCH_WAIT.name, self._url, name),
        )
        self._statements[statement, outcome] = rows
        return rows

    @property
    def seconds(self) -> float:
        """The time of all statements so far: another value means that one was sent meanwhile."""
        return sum(rows.duration[SUM] for rows in self._statements.values())

    def retry(self) -> None:
        """Count a statement that is sent again."""
        self._retries[0] += 1

    def opened(self) -> None:
        """Count a connection that was opened."""
        self._opened[0] += 1

    def failed_to_open(self) -> None:
        """Count a failed attempt to connect."""
        self._failed[0] += 1

    def watch(self, state: Callable[[], Mapping[str, float]]) -> None:
        """Include in every sample the state of the pool, by the names of users_api_pool_… without that prefix."""
        self._metrics.watch(lambda: {(f"users_api_pool_{name}", self._url): value for name, value in state().items()})


def shared_registry(directory: Path) -> CollectorRegistry:
    """Return the metrics of the processes that count in a directory."""
    return make_registry(lambda: counters.read(directory))
