"""Transaction pooling, found out by behaviour: whatever the host is called, a pooler shares backends of PostgreSQL.

A connection to PostgreSQL itself, a proxy or a session pooler keeps one backend of its own. A transaction pooler
assigns the same one to two connections, or another one to the next statement. The process id that PostgreSQL sends at
the start of a session proves less: Neon's proxy replaces it on both hosts.
"""

from collections.abc import Sequence, Set

import asyncpg

ROUNDS = 5
"""How often to ask each of two connections, in turn: enough to meet a shared backend, however a pooler assigns them."""

ASK_BACKEND = "select pg_backend_pid()"


async def meet_backends(connections: Sequence[asyncpg.Connection]) -> list[set[int]]:
    """Return the process ids of the backends that each connection meets. Raises one of DATABASE_ERRORS."""
    met: list[set[int]] = [set() for _ in connections]
    for _ in range(ROUNDS):
        for connection, backends in zip(connections, met, strict=True):
            backends.add(await connection.fetchval(ASK_BACKEND))
    return met


def is_pooled(one: Set[int], other: Set[int]) -> bool:
    """Return True if the backends that two connections of one URL have met show a transaction pooler between."""
    return max(len(one), len(other)) > 1 or not one.isdisjoint(other)
