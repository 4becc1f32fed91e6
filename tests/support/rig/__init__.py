"""A rig that behaves as Neon does: PostgreSQL, PgBouncer in transaction mode, verified TLS, and fault injections.

    client --TLS--> fault proxy --> PgBouncer --> PostgreSQL      DATABASE_URL
    client --TLS--> fault proxy ----------------> PostgreSQL      DIRECT_URL

`make neon-rig` starts one by hand; tests use the fixtures `rig` and `neon` of tests/conftest.py.
"""

from tests.support.rig.injections import (
    LOSES_PACKETS,
    NEON_PERMANENT,
    NEON_TRANSIENT,
    POOLER_FULL,
    SERVER_FULL,
    SHUTDOWN,
    STARTING,
    Cut,
    Farewell,
    Injection,
    Point,
)
from tests.support.rig.pgbouncer import SCRIPT, find
from tests.support.rig.proxy import Counts
from tests.support.rig.rig import DISTANCE_SECONDS, HOSTS, PASSWORD, ROLE, NeonDatabase, Rig, running

__all__ = [
    "DISTANCE_SECONDS",
    "HOSTS",
    "LOSES_PACKETS",
    "NEON_PERMANENT",
    "NEON_TRANSIENT",
    "PASSWORD",
    "POOLER_FULL",
    "ROLE",
    "SCRIPT",
    "SERVER_FULL",
    "SHUTDOWN",
    "STARTING",
    "Counts",
    "Cut",
    "Farewell",
    "Injection",
    "NeonDatabase",
    "Point",
    "Rig",
    "find",
    "running",
]
