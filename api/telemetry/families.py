"""The metric families, and their rendering: prometheus_client turns the rows into what Prometheus reads."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.telemetry.counters import VALUES, Rows

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the buckets of a duration."""
REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""The upper bounds of the buckets of the number of requests that share a statement."""
SUM = VALUES - 1
"""The index of the sum in the row of a histogram; its buckets start at 0."""
UNKNOWN = math.nan
"""The value of a gauge that its process has not written yet: it is not shown."""


class Family(NamedTuple):
    """A metric family. `bounds` make it a histogram, else it is a counter or, with `is_gauge`, a gauge."""

    name: str
    description: str
    labels: Sequence[str] = ()
    bounds: Sequence[float] = ()
    is_gauge: bool = False


DURATION = Family(
    "http_request_duration_seconds",
    "Requests, from their head to the end of their response. status 499: the client disconnected before that, unless "
    "the request failed. route unrouted: refused before routing, or no such path.",
    ("route", "method", "status"),
    SECONDS,
)
PROBLEMS = Family(
    "users_api_problems",
    "Problems, by the last part of their type. overloaded: shed, since too many requests were waiting.",
    ("kind",),
)
STATEMENT = Family(
    "users_api_statement_duration_seconds",
    "Statements sent to PostgreSQL. outcome: ok, refused (by PostgreSQL) or failed (no response).",
    ("url", "statement", "outcome"),
    SECONDS,
)
BATCH_SIZE = Family("users_api_batch_size", "Requests that share a statement.", ("url", "statement"), REQUESTS)
BATCH_WAIT = Family(
    "users_api_batch_wait_seconds",
    "Time from the arrival of a statement's first request until the statement is sent.",
    ("url", "statement"),
    SECONDS,
)
RETRIES = Family("users_api_statement_retries", "Statements sent again after the connection broke.", ("url",))
OPENED = Family("users_api_connections_opened", "Connections to PostgreSQL opened.", ("url",))
FAILED = Family("users_api_connection_failures", "Failed attempts to connect to PostgreSQL.", ("url",))
WORKERS = Family("users_api_workers", "Worker processes.", is_gauge=True)
_GAUGES = (
    WORKERS,
    Family("users_api_requests_under_way", "Requests in flight, but for probes and documentation.", is_gauge=True),
    Family("users_api_pool_max_connections", "Connections that the pools may open.", ("url",), is_gauge=True),
    Family("users_api_pool_connections", "Open connections of the pools.", ("url",), is_gauge=True),
    Family("users_api_pool_in_use", "Connections of the pools that statements use.", ("url",), is_gauge=True),
    Family("users_api_pool_waiting", "Statements waiting for a connection.", ("url",), is_gauge=True),
)
FAMILIES = {
    family.name: family
    for family in (DURATION, PROBLEMS, STATEMENT, BATCH_SIZE, BATCH_WAIT, RETRIES, OPENED, FAILED, *_GAUGES)
}


def make_registry(read: Callable[[], Iterator[tuple[bool, Rows]]]) -> CollectorRegistry:
    """Return a registry of the rows that `read` yields: those of each process, after True if it is alive."""
    registry = CollectorRegistry()
    registry.register(_Collector(read))
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format of Prometheus that an Accept header requests, and its media type."""
    try:
        encode, media_type = choose_encoder(accept)
    except TypeError:  # prometheus_client compares the requested version as a number, even if it is not one.
        encode, media_type = choose_encoder("")
    return encode(registry), media_type


class _Collector(Collector):
    def __init__(self, read: Callable[[], Iterator[tuple[bool, Rows]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not collect to check that names are unique."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Add up the rows of all processes."""
        sums: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in FAMILIES}
        for is_alive, rows in self._read():
            for (name, *labels), values in rows.items():
                family = FAMILIES.get(name)
                # A worker of another release may have families that this one does not know.
                if family is not None and (not family.is_gauge or (is_alive and not math.isnan(values[0]))):
                    found = sums[name].setdefault(tuple(labels), [0.0] * VALUES)
                    found[:] = map(sum, zip(found, values, strict=True))
        for name, by_labels in sums.items():
            yield _metric(FAMILIES[name], by_labels)
        build = {"version": version("users-api"), "python": platform.python_version()}
        yield InfoMetricFamily("users_api_build", "Versions of the service and of Python.", build)


def _metric(family: Family, by_labels: Mapping[tuple[str, ...], list[float]]) -> Metric:
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
    """Return cumulative buckets, as Prometheus requires: each includes those below it."""
    found, total = [], 0.0
    for bound, value in zip((*map(str, bounds), "+Inf"), values, strict=False):
        total += value
        found.append((bound, total))
    return found
