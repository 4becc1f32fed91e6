"""The privileges that a role lacks for the declared statements, as the GRANTs to run.

PostgreSQL itself judges a statement: `explain` checks the privileges that the statement needs, and does not run it. It
names only the first table that it objects to. So the GRANTs are made from the catalogue: the tables that the refused
statements name, and the verbs that the role may not use on them.
"""

import re
from collections.abc import Iterable

import asyncpg

# $1 are the tables that are used; $2 are those of refused statements, each with a verb of its statement in $3. The
# functions are those that PostgreSQL calls with the role's privileges when a row is written: of generated columns,
# defaults, checks and indexes. `explain` does not check them.
_GRANTS = """
    with used as (
        select class.oid, nspname, relname, relnamespace
        from pg_catalog.pg_class as class
        join pg_catalog.pg_namespace as space on space.oid = relnamespace
        where nspname || '.' || relname = any($1::text[])
    ), needed as (
        select distinct used.oid, nspname, relname, verb
        from unnest($2::text[], $3::text[]) as refused (name, verb)
        join used on nspname || '.' || relname = refused.name
    ), expressions as (
        select 'pg_attrdef'::regclass, oid from pg_catalog.pg_attrdef where adrelid in (select oid from used)
        union all
        select 'pg_constraint'::regclass, oid from pg_catalog.pg_constraint where conrelid in (select oid from used)
        union all
        select 'pg_class'::regclass, indexrelid from pg_catalog.pg_index where indrelid in (select oid from used)
    )
    select distinct 1 as place, format('grant usage on schema %I to %I', nspname, current_user) as statement
    from used
    where not has_schema_privilege(relnamespace, 'usage')
    union all
    select 2, format(
        'grant %s on %I.%I to %I',
        string_agg(verb, ', ' order by position(verb in 'select insert update delete')), nspname, relname, current_user
    )
    from needed
    where not has_table_privilege(oid, verb)
    group by nspname, relname
    union all
    select distinct 3, format(
        'grant execute on function %I.%I(%s) to %I',
        nspname, proname, pg_get_function_identity_arguments(refobjid), current_user
    )
    from pg_catalog.pg_depend
    join pg_catalog.pg_proc as called on called.oid = refobjid
    join pg_catalog.pg_namespace as space on space.oid = pronamespace
    where refclassid = 'pg_proc'::regclass and (classid, objid) in (select * from expressions)
        and not has_function_privilege(refobjid, 'execute')
    order by 1, 2
"""
_VERBS = {"select", "insert", "update", "delete"}


async def find_grants(connection: asyncpg.Connection, used: Iterable[str], refused: Iterable[str]) -> list[str]:
    """Return the GRANTs that the connection's role lacks.

    `used` is the SQL of the statements that must work; `refused` is that of those for which a privilege is missing. A
    table of a refused statement gets every verb of that statement. So the GRANTs suffice, and together are no more than
    all statements need.
    """
    tables = sorted(set().union(*(words_in(sql) for sql in used)))
    pairs = sorted({(word, verb) for sql in refused for word in words_in(sql) for verb in _VERBS & words_in(sql)})
    # In a transaction, which stays on one backend of a pooler.
    async with connection.transaction(readonly=True):
        rows = await connection.fetch(_GRANTS, tables, [table for table, _ in pairs], [verb for _, verb in pairs])
    return [row["statement"] for row in rows]


def words_in(sql: str) -> set[str]:
    """Return the words of a statement, its comments aside: a table is one word with its schema."""
    return set(re.findall(r"\w+(?:\.\w+)?", re.sub("--.*", "", sql)))
