"""The metrics, and how Prometheus gets them: prometheus_client makes of the rows what it reads."""

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
"""The upper bounds of the classes that durations are counted in."""
REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Those of the requests that share a statement."""
SUM = VALUES - 1
"""Where in a row of a histogram the sum of what was observed stands; its classes begin at 0."""
UNKNOWN = math.nan
"""The value of a gauge that nobody has written since its process began: it is not shown."""


class Family(NamedTuple):
    """A metric: what each value of it is told apart by; the bounds make it a histogram."""

    name: str
    description: str
    labels: Sequence[str] = ()
    bounds: Sequence[float] = ()
    is_gauge: bool = False


DURATION = Family(
    "http_request_duration_seconds",
    "Requests, from their head to the end of their answer. status 499: the client did not wait for it; "
    "a failure stays one. route unrouted: refused before anybody looked at the path, or a path that nobody serves.",
    ("route", "method", "status"),
    SECONDS,
)
PROBLEMS = Family(
    "users_api_problems",
    "Refusals, by the last part of the problem's type; overloaded: shed, since too many waited.",
    ("kind",),
)
STATEMENT = Family(
    "users_api_statement_duration_seconds",
    "Statements sent to PostgreSQL. outcome ok, refused (by PostgreSQL) or failed (no answer).",
    ("url", "statement", "outcome"),
    SECONDS,
)
BATCH_SIZE = Family("users_api_batch_size", "Requests that share a statement.", ("url", "statement"), REQUESTS)
BATCH_WAIT = Family(
    "users_api_batch_wait_seconds",
    "How long the first request of a statement waits until it leaves.",
    ("url", "statement"),
    SECONDS,
)
RETRIES = Family("users_api_statement_retries", "Statements sent once more, since the link broke.", ("url",))
OPENED = Family("users_api_connections_opened", "Connections to PostgreSQL that were opened.", ("url",))
FAILED = Family("users_api_connection_failures", "Attempts to connect that failed.", ("url",))
WORKERS = Family("users_api_workers", "Processes that serve.", is_gauge=True)
_GAUGES = (
    WORKERS,
    Family("users_api_requests_under_way", "Requests of users under way.", is_gauge=True),
    Family("users_api_pool_max_connections", "Connections that the pools may have open.", ("url",), is_gauge=True),
    Family("users_api_pool_connections", "Connections that the pools have open.", ("url",), is_gauge=True),
    Family("users_api_pool_in_use", "Places of the pools that statements have.", ("url",), is_gauge=True),
    Family("users_api_pool_waiting", "Statements that wait for a connection.", ("url",), is_gauge=True),
)
FAMILIES = {
    family.name: family
    for family in (DURATION, PROBLEMS, STATEMENT, BATCH_SIZE, BATCH_WAIT, RETRIES, OPENED, FAILED, *_GAUGES)
}


def make_registry(read: Callable[[], Iterator[tuple[bool, Rows]]]) -> CollectorRegistry:
    """What the processes have counted whose rows `read` returns, each with whether it lives."""
    registry = CollectorRegistry()
    registry.register(_Collector(read))
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in that of Prometheus' two formats which an Accept header asks for, and its media type."""
    try:
        encode, media_type = choose_encoder(accept)
    except TypeError:  # prometheus_client compares the version that is asked for, also one that is no number.
        encode, media_type = choose_encoder("")
    return encode(registry), media_type


class _Collector(Collector):
    def __init__(self, read: Callable[[], Iterator[tuple[bool, Rows]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not collect to find that no two metrics share a name."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Add up what the processes have counted."""
        sums: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in FAMILIES}
        for lives, rows in self._read():
            for (name, *labels), values in rows.items():
                family = FAMILIES.get(name)
                # A worker of another release may count what this one does not know.
                if family is not None and (not family.is_gauge or (lives and not math.isnan(values[0]))):
                    found = sums[name].setdefault(tuple(labels), [0.0] * VALUES)
                    found[:] = map(sum, zip(found, values, strict=True))
        for name, by_labels in sums.items():
            yield _metric(FAMILIES[name], by_labels)
        build = {"version": version("users-api"), "python": platform.python_version()}
        yield InfoMetricFamily("users_api_build", "What serves.", build)


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
    """The classes as Prometheus wants them: each holds those below it, and the last everything."""
    found, total = [], 0.0
    for bound, value in zip((*map(str, bounds), "+Inf"), values, strict=False):
        total += value
        found.append((bound, total))
    return found
