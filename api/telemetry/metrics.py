"""What is counted, and how Prometheus gets it.

A request costs two writes to memory here, where prometheus_client's own values cost microseconds; it makes of the
numbers what Prometheus reads, when it is asked.
"""

import asyncio
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api.statements import Statement
from api.telemetry import counters
from api.telemetry.context import Batch, RequestContext
from api.telemetry.counters import VALUES, Counters, Row

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the classes that durations are counted in."""
SUM = VALUES - 1
"""Where in a row of a histogram the sum of what was observed stands; its classes begin at 0."""

_REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_SAMPLE_SECONDS = 1.0
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class _Family(NamedTuple):
    """A metric: what each value of it is told apart by; the bounds make it a histogram."""

    name: str
    description: str
    labels: Sequence[str] = ()
    bounds: Sequence[float] = ()
    is_gauge: bool = False


_DURATION = _Family(
    "http_request_duration_seconds",
    "Requests, from their head to the end of their answer. status 499: the client did not wait for it. route unrouted: "
    "refused before anybody looked at the path, or a path that nobody serves.",
    ("route", "method", "status"),
    SECONDS,
)
_PROBLEMS = _Family(
    "users_api_problems",
    "Refusals, by the last part of the problem's type; overloaded: shed, since too many waited.",
    ("kind",),
)
_STATEMENT = _Family(
    "users_api_statement_duration_seconds",
    "Statements sent to PostgreSQL. outcome ok, refused (by PostgreSQL) or failed (no answer).",
    ("statement", "outcome"),
    SECONDS,
)
_BATCH_SIZE = _Family("users_api_batch_size", "Requests that share a statement.", ("statement",), _REQUESTS)
_BATCH_WAIT = _Family(
    "users_api_batch_wait_seconds",
    "How long the first request of a statement waits until it leaves.",
    ("statement",),
    SECONDS,
)
_RETRIES = _Family("users_api_statement_retries", "Statements sent once more, since the link broke.")
_OPENED = _Family("users_api_connections_opened", "Connections to PostgreSQL opened; those after the first reconnect.")
_FAILED = _Family("users_api_connection_failures", "Attempts to connect that failed.")
_GAUGES = (
    _Family("users_api_workers", "Processes that serve.", is_gauge=True),
    _Family("users_api_pool_max_connections", "Connections that the pools may have open.", is_gauge=True),
    _Family("users_api_pool_connections", "Connections that the pools have open.", is_gauge=True),
    _Family("users_api_pool_in_use", "Places of the pools that statements have.", is_gauge=True),
    _Family("users_api_pool_waiting", "Statements that wait for a connection.", is_gauge=True),
)
_FAMILIES = {
    family.name: family
    for family in (_DURATION, _PROBLEMS, _STATEMENT, _BATCH_SIZE, _BATCH_WAIT, _RETRIES, _OPENED, _FAILED, *_GAUGES)
}
# Refusals that somebody should be woken for: a counter that comes into being with its first event has no rate.
_WATCHED = ("overloaded", "unavailable", "outcome-unknown", "locked")


class _StatementRows(NamedTuple):
    duration: Row
    size: Row
    wait: Row


class Metrics:
    """What one process counts. Without a `directory`, where its siblings count too, it is alone."""

    def __init__(self, directory: Path | None = None) -> None:
        self.gauges: Callable[[], Mapping[str, float]] = dict
        """The pool's numbers: users_api_pool_…, without that beginning."""
        self.requests: dict[tuple[Any, str, int], Row] = {}
        """A row for each endpoint, method and status that there was: see `request_row`."""
        self._counters = Counters(directory)
        self._statements: dict[tuple[str, str], _StatementRows] = {}
        self._retries, self._opened, self._failed = (
            self._counters.row(family.name) for family in (_RETRIES, _OPENED, _FAILED)
        )
        for kind in _WATCHED:
            self._counters.row(_PROBLEMS.name, kind)

    def request_row(self, endpoint: Any, method: str, status: int, path: str | None) -> Row:
        """The row of the requests that are alike in this, a histogram of SECONDS; `path` is the route's template."""
        route = "unrouted" if path is None else path.rstrip("/") or "/"
        named = method if method in _METHODS else "_OTHER"  # as OpenTelemetry has it
        row = self._counters.row(_DURATION.name, route, named, str(status))
        self.requests[endpoint, method, status] = row
        return row

    def problem(self, kind: str) -> None:
        """Count a refusal."""
        self._counters.row(_PROBLEMS.name, kind)[0] += 1

    def statement(
        self, statement: Statement, outcome: str, queue: float, seconds: float, served: Sequence[RequestContext]
    ) -> None:
        """Count a statement that was sent, and note for the requests that it served where their time went.

        `outcome` is ok, refused or failed; it waited `queue` seconds for a connection.
        """
        duration, size, wait = self._statements.get((statement.sql, outcome)) or self._add(statement, outcome)
        duration[bisect_left(SECONDS, seconds)] += 1
        duration[SUM] += seconds
        number = len(served)
        size[bisect_left(_REQUESTS, number)] += 1
        size[SUM] += number
        if isinstance(served, Batch):
            wait[bisect_left(SECONDS, served.waited)] += 1
            wait[SUM] += served.waited
        else:
            wait[0] += 1
        spent = ((queue, seconds, number),)
        for request in served:
            request.spent += spent

    def _add(self, statement: Statement, outcome: str) -> _StatementRows:
        name = statement.name.removesuffix(".sql")
        rows = _StatementRows(
            self._counters.row(_STATEMENT.name, name, outcome),
            self._counters.row(_BATCH_SIZE.name, name),
            self._counters.row(_BATCH_WAIT.name, name),
        )
        self._statements[statement.sql, outcome] = rows
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

    def sample(self) -> None:
        """Write down what is, for others to read: they cannot look into this process."""
        self._counters.row("users_api_workers")[0] = 1
        for name, value in self.gauges().items():
            self._counters.row(f"users_api_pool_{name}")[0] = value

    async def keep_sampling(self) -> None:
        """Write it down every second, until this is cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    def registry(self) -> CollectorRegistry:
        """What this process and its siblings have counted, for prometheus_client to render."""
        return _registry(self._counters.read)


def shared_registry(directory: Path) -> CollectorRegistry:
    """What the processes of a directory have counted."""
    return _registry(lambda: counters.read(directory))


def _registry(read: Callable[[], Iterator[tuple[bool, counters.Rows]]]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(read))
    return registry


class _Collector(Collector):
    def __init__(self, read: Callable[[], Iterator[tuple[bool, counters.Rows]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not collect to find that no two metrics share a name."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Add up what the processes have counted."""
        sums: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in _FAMILIES}
        for lives, rows in self._read():
            for (name, *labels), values in rows.items():
                family = _FAMILIES.get(name)
                # A worker of another release may count what this one does not know.
                if family is not None and (lives or not family.is_gauge):
                    found = sums[name].setdefault(tuple(labels), [0.0] * VALUES)
                    found[:] = map(sum, zip(found, values, strict=True))
        for name, by_labels in sums.items():
            yield _metric(_FAMILIES[name], by_labels)
        build = {"version": version("users-api"), "python": platform.python_version()}
        yield InfoMetricFamily("users_api_build", "What serves.", build)


def _metric(family: _Family, by_labels: Mapping[tuple[str, ...], list[float]]) -> Metric:
    if family.bounds:
        histogram = HistogramMetricFamily(family.name, family.description, labels=family.labels)
        for labels, values in by_labels.items():
            histogram.add_metric(labels, _cumulative(family.bounds, values), values[SUM])
        return histogram
    kind = GaugeMetricFamily if family.is_gauge else CounterMetricFamily
    metric: GaugeMetricFamily | CounterMetricFamily = kind(family.name, family.description, labels=family.labels)
    for labels, values in by_labels.items():
        metric.add_metric(labels, values[0])
    return metric


def _cumulative(bounds: Sequence[float], values: Sequence[float]) -> list[tuple[str, float]]:
    """The classes as Prometheus wants them: each holds those below it, and the last everything."""
    found, total = [], 0.0
    for bound, value in zip((*map(str, bounds), "+Inf"), values, strict=False):
        total += value
        found.append((bound, total))
    return found
