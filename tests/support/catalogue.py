"""The tables of the service and their constraints, as the catalogue of a migrated database has them."""

from collections.abc import Sequence

from api.database.files import SQL_DIRECTORY
from api.resources.description import Description
from api.resources.idempotency import UNREACHABLE
from tests.support.database import execute
from tests.support.roles import GRANTS_SQL, READER, SERVER

# All but the tables that record migrations.
_TABLES = r"""
    select oid, relname::text from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relname !~ '^(_yoyo|yoyo_|_users_api_)'
"""
# A unique constraint, a primary key and an exclusion constraint have an index of their name.
_VIOLATED = f"""
    with tables as ({_TABLES})
    select relname::text from pg_index join pg_class on oid = indexrelid
    where indrelid in (select oid from tables) and (indisunique or indisexclusion)
    union
    select conname::text from pg_constraint where conrelid in (select oid from tables) and contype in ('f', 'x')
    order by 1
"""
_UNIQUE = f"""
    with tables as ({_TABLES})
    select relname::text from pg_index join pg_class on oid = indexrelid
    where indrelid in (select oid from tables) and indisunique
"""
# A partial index counts if its condition is that the key is not null: no other row refers to anything.
_UNINDEXED = f"""
    with tables as ({_TABLES})
    select conname::text from pg_constraint as referring
    where contype = 'f' and conrelid in (select oid from tables) and not exists (
        select from pg_index
        where indrelid = conrelid and indisvalid
            and conkey <@ (indkey::int2[])[0 : cardinality(conkey) - 1]
            and (indpred is null or pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', (
                select attname from pg_attribute where attrelid = conrelid and attnum = conkey[1]
            )))
    )
    order by 1
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


def _definitions(url: str) -> dict[str, str]:
    """Return the definition of each unique index, as the pool recognises one that is being replaced."""
    names = [str(name) for (name,) in execute(url, _UNIQUE)]
    sql = (SQL_DIRECTORY / "indexes/select_index.sql").read_text().replace("$1", "'public'")
    return {name: str(execute(url, sql.replace("$2", f"'{name}'"))[0][0]) for name in names}


def find_gaps(url: str, described: Sequence[Description]) -> list[str]:
    """Return what is wrong with the constraints of a migrated database, and with what the resources say of them."""
    named = dict.fromkeys(UNREACHABLE, "idempotency")
    gaps = []
    for each in described:
        for name in (*each.constraints, *each.unreachable):
            if name in named:
                gaps.append(f"{name}: named twice, by {named[name]} and by {each.name}")
            named[name] = each.name
    found = [str(name) for (name,) in execute(url, _VIOLATED)]
    gaps += [
        f"{name}: no resource has a problem for it, nor the reason why none is met"
        for name in found
        if name not in named
    ]
    gaps += [
        f"{name}: {owner} names it, and the database has no such constraint"
        for name, owner in named.items()
        if name not in found
    ]
    for name, definition in _definitions(url).items():
        described_as = [each.indexes.get(name) for each in described if name in each.constraints]
        if described_as and described_as != [definition]:
            gaps.append(f"{name}: its definition is {definition}, so say that under `indexes`")
    gaps += [
        f"{name}: no index begins with its columns, so a delete reads the table" for (name,) in execute(url, _UNINDEXED)
    ]
    return gaps
