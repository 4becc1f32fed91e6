"""Medians over the rounds of a run, and the targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.measure import Job, Measurement
from benchmarks.plan import FAR_CONNECTIONS, FAR_MS

Key = tuple[str, str, int, int, float, int]


def medians(measurements: Sequence[Measurement]) -> dict[Key, Measurement]:
    """Return one measurement for each job: the median of each figure over its rounds, and the sum of the errors."""
    by_key: dict[Key, list[Measurement]] = {}
    for each in measurements:
        by_key.setdefault(each.key, []).append(each)
    return {key: _median(rounds) for key, rounds in by_key.items()}


def _median(rounds: list[Measurement]) -> Measurement:
    def of(figure: Callable[[Measurement], float]) -> float:
        return median(map(figure, rounds))

    return replace(
        rounds[0],
        round=len(rounds),
        requests_per_second=of(lambda m: m.requests_per_second),
        p50_ms=of(lambda m: m.p50_ms),
        p99_ms=of(lambda m: m.p99_ms),
        requests=sum(m.requests for m in rounds),
        refused=sum(m.refused for m in rounds),
        socket_errors=sum(m.socket_errors for m in rounds),
        server_us=of(lambda m: m.server_us),
        postgres_us=of(lambda m: m.postgres_us),
        generator_cores=of(lambda m: m.generator_cores),
        proxy_cores=of(lambda m: m.proxy_cores),
    )


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two systems measured in one run: the figure of `ours` over that of `other`."""

    title: str
    workload: str
    ours: str
    other: str
    bound: float
    figure: Callable[[Measurement], float]
    at_most: bool = False  # otherwise the ratio has to be at least the bound
    workers: int = 2
    connections: int = 128
    distance_ms: float = 0.0

    def ratio(self, results: dict[Key, Measurement]) -> float | None:
        """Return the ratio; None if the run did not measure it."""
        found = [
            next((m for m in results.values() if _matches(m, self, system)), None) for system in (self.ours, self.other)
        ]
        if found[0] is None or found[1] is None or not self.figure(found[1]):
            return None
        return self.figure(found[0]) / self.figure(found[1])

    def is_met(self, ratio: float) -> bool:
        """Return True if a ratio meets the target."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


def _matches(measurement: Measurement, target: Target, system: str) -> bool:
    return (measurement.system, measurement.workload, measurement.workers, measurement.connections) == (
        system,
        target.workload,
        target.workers,
        target.connections,
    ) and measurement.distance_ms == target.distance_ms


def _rate(measurement: Measurement) -> float:
    return measurement.requests_per_second


def _p50(measurement: Measurement) -> float:
    return measurement.p50_ms


def _postgres(measurement: Measurement) -> float:
    return measurement.postgres_us


_US, _UNBATCHED = "users_api", "users_api_unbatched"
_ORM, _TEXTBOOK, _CONSTANT = "fastapi_sqlalchemy", "starlette_textbook", "constant"
_FAR = f"database {FAR_MS:.0f} ms away, {FAR_CONNECTIONS} connections"


def _far(title: str, workload: str, bound: float) -> Target:
    return Target(
        f"{title}, {_FAR}", workload, _US, _TEXTBOOK, bound, _rate,
        workers=1, connections=FAR_CONNECTIONS, distance_ms=FAR_MS,
    )  # fmt: skip


TARGETS = (
    Target("GET by id", "get", _US, _ORM, 25, _rate),
    Target("POST", "create", _US, _ORM, 20, _rate),
    Target("PATCH", "patch", _US, _ORM, 20, _rate),
    Target("DELETE", "delete", _US, _ORM, 15, _rate),
    Target("list of 100", "list", _US, _ORM, 20, _rate),
    Target("GET by id", "get", _US, _TEXTBOOK, 3, _rate),
    Target("POST", "create", _US, _TEXTBOOK, 2.5, _rate),
    Target("PATCH", "patch", _US, _TEXTBOOK, 2.5, _rate),
    Target("DELETE", "delete", _US, _TEXTBOOK, 2.5, _rate),
    Target("list of 100", "list", _US, _TEXTBOOK, 1.8, _rate),
    _far("GET by id", "get", 20),
    _far("POST", "create", 12),
    Target("one connection, idle, p50", "get", _US, _TEXTBOOK, 0.9, _p50, at_most=True, workers=1, connections=1),
    Target("PostgreSQL CPU a GET", "get", _US, _TEXTBOOK, 0.25, _postgres, at_most=True),
    Target("batching off, GET by id", "get", _UNBATCHED, _TEXTBOOK, 1.3, _rate),
    Target("GET by id against a constant body", "get", _US, _CONSTANT, 0.6, _rate),
)


def describe(job: Job) -> str:
    """Return a job in one line."""
    far = f", database {job.distance_ms:g} ms away" if job.distance_ms else ""
    workers = "1 worker" if job.workers == 1 else f"{job.workers} workers"
    connections = "1 connection" if job.connections == 1 else f"{job.connections} connections"
    return f"{job.system.name} {job.workload.name}, {workers}, {connections}{far}"
