"""The SQL files: each is read once and declared with its types, which can be checked against a live database."""

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from api.database.files import ROOT, SQL_DIRECTORY
from api.database.privileges import find_grants, words_in


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL file, with the types that Python expects of its parameters and columns.

    `name` is the file's path below `sql/`, such as `NAME/select_NAME.sql`. Types are PostgreSQL's internal names, as
    in `pg_type.typname`; an array's is the element's with `[]` after it. `batched` statements take many keys, and
    requests share them.

    The tests check the plan with the arguments that `example` makes of the ids of rows. It uses indexes, through which
    each id reaches `reach` rows at most; None allows a page or a whole table in an index's order. It sorts nothing,
    unless each of its steps has at most `sorts` rows.
    """

    name: str
    sql: str
    parameters: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    writes: bool
    declared_at: str
    batched: bool = False
    example: Callable[[Sequence[int]], Sequence[Any]] = lambda ids: ()
    reach: int | None = 1
    sorts: int = 0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A statement whose declaration does not fit a database, and the reason."""

    statement: Statement
    reason: str
    is_denied: bool = False  # the role lacks a privilege

    def __str__(self) -> str:
        return f"sql/{self.statement.name}, declared at {self.statement.declared_at}: {self.reason}"


_declared: dict[str, Statement] = {}


def declare(
    name: str,
    parameters: list[str],
    columns: dict[str, str],
    *,
    writes: bool = False,
    batched: bool = False,
    example: Callable[[Sequence[int]], Sequence[Any]] = lambda ids: (),
    reach: int | None = 1,
    sorts: int = 0,
) -> Statement:
    """Read `sql/<name>` and declare the types of its parameters and columns, and the rest as in Statement.

    Raises FileNotFoundError, with the path, if there is no such file, and ValueError if it is declared already.
    """
    if name in _declared:
        raise ValueError(f"sql/{name} is declared twice, at {_declared[name].declared_at} too")
    sql = (SQL_DIRECTORY / name).read_text(encoding="utf-8")
    caller = traceback.extract_stack(limit=2)[0]
    statement = Statement(
        name=name,
        sql=sql,
        parameters=tuple(parameters),
        columns=tuple(columns.items()),
        writes=writes,
        declared_at=f"{Path(os.path.relpath(caller.filename, ROOT)).as_posix()}:{caller.lineno}",
        batched=batched,
        example=example,
        reach=reach,
        sorts=sorts,
    )
    _declared[name] = statement
    return statement


def declared_statements() -> list[Statement]:
    """Return the statements that the imported modules have declared, ordered by name."""
    return [_declared[name] for name in sorted(_declared)]


def used_tables() -> set[str]:
    """Return the tables of the declared statements with their schema, such as `public.NAME`, and other such words."""
    return {word for each in _declared.values() for word in words_in(each.sql) if "." in word}


def undeclared_files() -> list[str]:
    """Return the SQL files that no imported module has declared: dead code, or a forgotten declaration."""
    return sorted(
        name
        for path in SQL_DIRECTORY.rglob("*.sql")
        if (name := path.relative_to(SQL_DIRECTORY).as_posix()) not in _declared
    )


async def check_statement(connection: asyncpg.Connection, statement: Statement) -> Mismatch | None:
    """Prepare a statement on a migrated database and compare its types with the declaration: None if equal.

    PostgreSQL also checks whether the role may run it, which preparing it does not.
    """
    try:
        prepared = await connection.prepare(statement.sql)
        writes = await _plan_writes(connection, statement)
    except asyncpg.PostgresError as error:
        is_denied = isinstance(error, asyncpg.InsufficientPrivilegeError)
        return Mismatch(statement, f"PostgreSQL refuses it: {error.args[0]} (SQLSTATE {error.sqlstate})", is_denied)
    parameters = tuple(parameter.name for parameter in prepared.get_parameters())
    if parameters != statement.parameters:
        return Mismatch(statement, f"parameters: expected {_list(statement.parameters)}, found {_list(parameters)}")
    columns = tuple((attribute.name, attribute.type.name) for attribute in prepared.get_attributes())
    if columns != statement.columns:
        expected, found = (_list(" ".join(column) for column in side) for side in (statement.columns, columns))
        return Mismatch(statement, f"columns: expected {expected}, found {found}")
    if writes != statement.writes:
        return Mismatch(statement, f"declared with writes={statement.writes}, but its plan says {writes}")
    return None


async def _plan_writes(connection: asyncpg.Connection, statement: Statement) -> bool:
    """Return whether a statement's plan changes a table. It does not show what the functions do that are called.

    To `explain` a statement takes the privileges that it needs, and does not run it.
    """
    plan = await connection.fetchval(f"explain (format json) {statement.sql}", *statement.example([1]))
    return '"Node Type": "ModifyTable"' in plan


class Findings(NamedTuple):
    """A line for each mismatch and each file that is not declared, and the GRANTs that the role lacks."""

    mismatches: list[str]
    grants: list[str]


async def check_statements(connection: asyncpg.Connection) -> Findings:
    """Check every declared statement, and every privilege that they need."""
    declared = declared_statements()
    mismatches = [found for each in declared if (found := await check_statement(connection, each))]
    grants = await find_grants(
        connection, [each.sql for each in declared], [found.statement.sql for found in mismatches if found.is_denied]
    )
    unused = [f"sql/{name}: no Python module declares it" for name in undeclared_files()]
    return Findings([*map(str, mismatches), *unused], grants)


def _list(items: Iterable[str]) -> str:
    return f"({', '.join(items)})"
