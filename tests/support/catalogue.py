"""The tables of the service and their constraints, as the catalogue of a migrated database has them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import asyncpg

from api.neon.url import parse_url
from api.resources import catalogue
from api.resources.description import Description
from api.resources.idempotency import UNREACHABLE
from tests.support.database import execute
from tests.support.roles import GRANTS_SQL, READER, SERVER

# All but the tables that record migrations.
_TABLES = r"""
    select oid, relname::text from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relname !~ '^(_yoyo|yoyo_|_users_api_)'
"""


def empty(url: str) -> None:
    """Delete every row of the service, and begin the ids at 1 again."""
    execute(url, f"truncate {_tables(url)} restart identity cascade")


def grant(url: str) -> None:
    """Grant what docs/neon.md does, and the same on the tables of resources that it does not name."""
    execute(url, GRANTS_SQL)
    for _, name in execute(url, _TABLES):
        if f"public.{name}" not in GRANTS_SQL:
            execute(url, f'grant select, insert, update, delete on "{name}" to {SERVER}')
            execute(url, f'grant select on "{name}" to {READER}')


def vacuum(url: str) -> None:
    """Vacuum and analyze every table of the service, and none of PostgreSQL's, which are small."""
    execute(url, f"vacuum analyze {_tables(url)}")


def _tables(url: str) -> str:
    return ", ".join(f'"{name}"' for _, name in execute(url, _TABLES))


def find_gaps(url: str, described: Sequence[Description]) -> list[str]:
    """Return what is wrong with the constraints of every table, and with what the resources say of them."""
    named = Counter([*UNREACHABLE, *chain(*((*each.constraints, *each.unreachable) for each in described))])
    twice = [f"{name}: named twice" for name, number in named.items() if number > 1]
    return [*twice, *chain(*asyncio.run(_find_gaps(url, described)))]


async def _find_gaps(url: str, described: Sequence[Description]) -> catalogue.Gaps:
    tables = [f"public.{name}" for _, name in execute(url, _TABLES)]
    connection = await asyncpg.connect(**parse_url(url).asyncpg_arguments())
    try:
        return await catalogue.find_gaps(connection, described, tables)
    finally:
        await connection.close()
