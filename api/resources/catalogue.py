"""The constraints of a migrated database, compared with what the resources say of them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import asyncpg

from api.database.indexes import SELECT_INDEX
from api.resources.description import Description
from api.resources.idempotency import INDEXES, UNREACHABLE

# Of the tables $1: each unique index and exclusion constraint, and each foreign key from or to one of them. `schema` is
# null for those that are not recognised by their definition. `create_index` is the index that a foreign key lacks: one
# whose first columns are the key's. A partial one counts if it leaves out only null, which refers to nothing.
_CONSTRAINTS = """
    with tables as (
        select class.oid
        from pg_catalog.pg_class as class
        join pg_catalog.pg_namespace as space on space.oid = relnamespace
        where nspname || '.' || relname = any($1::text[]) and nspname <> 'pg_catalog'
    )
    select relname::text as name, case when indisunique then nspname::text end as schema, null as create_index
    from pg_catalog.pg_index
    join pg_catalog.pg_class as class on class.oid = indexrelid
    join pg_catalog.pg_namespace as space on space.oid = relnamespace
    where indrelid in (select oid from tables) and (indisunique or indisexclusion)
    union all
    select conname::text, null, case when not exists (
        select from pg_catalog.pg_index
        where indrelid = conrelid and indisvalid
            and conkey <@ (indkey::int2[])[0 : cardinality(conkey) - 1]
            and (indpred is null or pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', (
                select attname from pg_catalog.pg_attribute where attrelid = conrelid and attnum = conkey[1]
            )))
    ) then format('create index concurrently on %I.%I (%s)', nspname, relname, (
        select string_agg(quote_ident(attname), ', ' order by n)
        from unnest(conkey) with ordinality as key (attnum, n)
        join pg_catalog.pg_attribute as attribute on attrelid = conrelid and attribute.attnum = key.attnum
    )) end
    from pg_catalog.pg_constraint
    join pg_catalog.pg_class as class on class.oid = conrelid
    join pg_catalog.pg_namespace as space on space.oid = relnamespace
    where contype = 'f' and (conrelid in (select oid from tables) or confrelid in (select oid from tables))
    order by 1
"""


class Gaps(NamedTuple):
    """A line for each constraint that is not as the resources say.

    The service does not work as it should with `misfits`. It does with `unnamed` constraints, whose violation is
    `refused-by-database`, and with `unindexed` foreign keys, which make deletes slow.
    """

    misfits: list[str]
    unnamed: list[str]
    unindexed: list[str]


async def find_gaps(connection: asyncpg.Connection, described: Sequence[Description], tables: Iterable[str]) -> Gaps:
    """Compare the constraints of `tables`, such as `public.NAME`, with what the resources say. It only reads."""
    problems = {name for each in described for name in each.constraints}
    owners = dict.fromkeys(UNREACHABLE, "idempotency")
    definitions = dict(INDEXES)
    for each in described:
        owners.update(dict.fromkeys([*each.constraints, *each.unreachable], each.name))
        definitions.update(each.indexes)
    names = {definition: name for name, definition in definitions.items()}
    gaps = Gaps([], [], [])
    found = set()
    for name, definition, create_index in await _constraints(connection, tables):
        known_as = names.get(definition or "", name)  # an index that is being replaced has another name
        found.add(known_as)
        if known_as not in owners:
            gaps.unnamed.append(f"{name}: no resource names it, so what violates it is 409 refused-by-database")
        elif known_as in problems | definitions.keys() and definition != definitions.get(known_as):
            expected = definitions.get(known_as, "nothing under `indexes` of its resource")
            gaps.misfits.append(f"{name}: its definition is {definition}; expected {expected}")
        if create_index:
            advice = f"no index begins with its columns, so a delete reads the table: {create_index}"
            gaps.unindexed.append(f"{name}: {advice}")
    for name in owners.keys() - found:
        gaps.misfits.append(f"{name}: the database has no such constraint, and the resource {owners[name]} names it")
    gaps.misfits.sort()
    return gaps


async def _constraints(
    connection: asyncpg.Connection, tables: Iterable[str]
) -> list[tuple[str, str | None, str | None]]:
    """Return the name of each constraint, its definition if it is recognised by that, and the index that it lacks."""
    # In a transaction, which stays on one backend of a pooler.
    async with connection.transaction(readonly=True):
        return [
            (name, schema and await connection.fetchval(SELECT_INDEX.sql, schema, name), create_index)
            for name, schema, create_index in await connection.fetch(_CONSTRAINTS, list(tables))
        ]
