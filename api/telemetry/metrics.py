"""What is counted: two writes to memory for a request, where prometheus_client's own values cost microseconds."""

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
# Refusals that somebody should be woken for: a counter that comes into being with its first event has no rate.
_WATCHED = ("overloaded", "unavailable", "outcome-unknown", "locked")


class Metrics:
    """What one process counts. Without a `directory`, where its siblings count too, it is alone."""

    def __init__(self, directory: Path | None = None) -> None:
        self.requests: dict[tuple[Any, str, int], Row] = {}
        """A row for each endpoint, method and status that there was: see `request_row`."""
        self._counters = Counters(directory)
        self._watched: list[Callable[[], Mapping[Key, float]]] = []
        self.row = self._counters.row
        for key in self._counters.taken_over:
            if key[0] in FAMILIES and FAMILIES[key[0]].is_gauge:
                # What was is over, and the process before may have had a pool that this one has not.
                self.row(*key)[0] = UNKNOWN
        for kind in _WATCHED:
            self.row(PROBLEMS.name, kind)

    def request_row(self, endpoint: Any, method: str, status: int, path: str | None) -> Row:
        """The row of the requests that are alike in this, a histogram of SECONDS; `path` is the route's template."""
        route = "unrouted" if path is None else path.rstrip("/") or "/"
        named = method if method in _METHODS else "_OTHER"  # as OpenTelemetry has it
        row = self.row(DURATION.name, route, named, str(status))
        if named == method:  # There is no end to what clients may make up, under a server that lets it through.
            self.requests[endpoint, method, status] = row
        return row

    def problem(self, kind: str) -> None:
        """Count a refusal."""
        self.row(PROBLEMS.name, kind)[0] += 1

    def watch(self, gauges: Callable[[], Mapping[Key, float]]) -> None:
        """Have what a function returns in every sample, by the gauge's name and labels."""
        self._watched.append(gauges)

    def sample(self) -> None:
        """Write down what is, for others to read: they cannot look into this process."""
        self.row(WORKERS.name)[0] = 1
        for gauges in self._watched:
            for key, value in gauges().items():
                self.row(*key)[0] = value

    async def keep_sampling(self) -> None:
        """Write it down every second, until this is cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    def registry(self) -> CollectorRegistry:
        """What this process and its siblings have counted, for prometheus_client to render."""
        return make_registry(self._counters.read)


class _StatementRows(NamedTuple):
    duration: Row
    size: Row
    wait: Row


class DatabaseMetrics:
    """What is counted of the database behind one URL; `url` is the name of its setting."""

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
        """Count a statement that was sent, and note for the requests that it served where their time went.

        `statement` is its file's name below sql/; `outcome` is ok, refused or failed; `queue` are the seconds that it
        waited for a connection.
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
        else:  # one that found nobody else, and did not wait
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

    def retry(self) -> None:
        """Count a statement that is sent once more."""
        self._retries[0] += 1

    def opened(self) -> None:
        """Count a connection that was opened."""
        self._opened[0] += 1

    def failed_to_open(self) -> None:
        """Count a connection that could not be had."""
        self._failed[0] += 1

    def watch(self, state: Callable[[], Mapping[str, float]]) -> None:
        """Have the state of the pool in every sample: the names of users_api_pool_… without that beginning."""
        self._metrics.watch(lambda: {(f"users_api_pool_{name}", self._url): value for name, value in state().items()})


def shared_registry(directory: Path) -> CollectorRegistry:
    """What the processes of a directory have counted."""
    return make_registry(lambda: counters.read(directory))
