"""The measurements of a run, ordered so that consecutive ones share a server."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.measure import Job
from benchmarks.systems import SYSTEMS, System
from benchmarks.workloads import WORKLOADS, Workload

CONNECTIONS_EACH = 64  # for one worker
FAR_CONNECTIONS = 256
FAR_MS = 10.0
DISTANCES_MS = (0.0, 1.0, FAR_MS)
CONCURRENCIES = (1, 8, 64, 256, 1024)

_OURS, _UNBATCHED = SYSTEMS["users_api"], SYSTEMS["users_api_unbatched"]
_TEXTBOOK, _CONSTANT = SYSTEMS["starlette_textbook"], SYSTEMS["constant"]
_GET, _CREATE = WORKLOADS["get"], WORKLOADS["create"]


def default_plan(extra: Sequence[System] = ()) -> list[Job]:
    """Return every measurement that a target or a chart of the README needs: some minutes."""
    compared = [name for name in WORKLOADS if name != "mix"]
    jobs = [
        Job(system, WORKLOADS[name], rows=WORKLOADS[name].rows)
        for system in (_OURS, _TEXTBOOK, SYSTEMS["fastapi_sqlalchemy"], *extra)
        for name in compared
    ]
    jobs += [Job(_UNBATCHED, _GET), Job(_UNBATCHED, _CREATE), Job(_CONSTANT, _GET)]
    jobs += [_idle(system) for system in (_OURS, _UNBATCHED, _TEXTBOOK, *extra)]
    for system in (_OURS, _TEXTBOOK, *extra):
        jobs += [_far(system, _GET, distance) for distance in DISTANCES_MS] + [_far(system, _CREATE, FAR_MS)]
    return jobs


def full_plan(extra: Sequence[System] = ()) -> list[Job]:
    """Return all systems, workloads, distances and concurrencies: most of an hour."""
    systems = [*SYSTEMS.values(), *extra]
    jobs = [
        Job(system, workload, workers=workers, connections=CONNECTIONS_EACH * workers, rows=workload.rows)
        for workers in (2, 1)
        for system in systems
        for workload in ([_GET] if system is _CONSTANT else WORKLOADS.values())
    ]
    with_database = [system for system in systems if system is not _CONSTANT]
    jobs += [
        Job(system, _GET, connections=connections)
        for system in with_database
        for connections in CONCURRENCIES
        if connections != CONNECTIONS_EACH * 2
    ]
    jobs += [_idle(system) for system in with_database]
    jobs += [
        _far(system, workload, distance)
        for system in with_database
        for distance in DISTANCES_MS
        for workload in (_GET, _CREATE)
    ]
    return jobs


def select(jobs: Iterable[Job], systems: Sequence[str], workloads: Sequence[str]) -> list[Job]:
    """Return the jobs of the named systems and workloads; no name selects all."""
    return [
        job
        for job in jobs
        if (not systems or job.system.name in systems) and (not workloads or job.workload.name in workloads)
    ]


def adjust(jobs: Iterable[Job], seconds: int | None, connections: int | None, rows: int | None) -> list[Job]:
    """Return the jobs with another length, number of connections or table size; each once, in order."""
    changes = {"seconds": seconds, "connections": connections, "rows": rows}
    given = {name: value for name, value in changes.items() if value is not None}
    adjusted = [replace(job, **given) for job in jobs]  # type: ignore[arg-type]
    return list({job.key: job for job in adjusted}.values())


def _idle(system: System) -> Job:
    return Job(system, _GET, workers=1, connections=1)


def _far(system: System, workload: Workload, distance_ms: float) -> Job:
    return Job(system, workload, workers=1, connections=FAR_CONNECTIONS, distance_ms=distance_ms)
