"""The SQL files: each read once, beside a declaration of its types, which can be checked against a live database."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from api.database.files import SQL_DIRECTORY


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL file and what the Python side takes its parameters and columns to be.

    `name` is the file's below `sql/`, as in `users/select_users.sql`.
    Types are PostgreSQL's internal names, as `pg_type.typname` has them, an array's with `[]` behind the element's.
    """

    name: str
    sql: str
    parameters: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    writes: bool
    declared_at: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A statement whose declaration does not hold on a database, and why."""

    statement: Statement
    reason: str

    def __str__(self) -> str:
        return f"sql/{self.statement.name}, declared at {self.statement.declared_at}: {self.reason}"


_declared: dict[str, Statement] = {}


def declare(name: str, parameters: list[str], columns: dict[str, str], *, writes: bool = False) -> Statement:
    """Read `sql/<name>` and say what its parameters and columns are.

    Raises FileNotFoundError with the file's path where there is none, and ValueError where two declarations name the
    same file.
    """
    if name in _declared:
        raise ValueError(f"sql/{name} is declared twice, at {_declared[name].declared_at} too")
    caller = sys._getframe(1)
    statement = Statement(
        name=name,
        sql=(SQL_DIRECTORY / name).read_text(encoding="utf-8"),
        parameters=tuple(parameters),
        columns=tuple(columns.items()),
        writes=writes,
        declared_at=f"{caller.f_globals['__name__'].replace('.', '/')}.py:{caller.f_lineno}",
    )
    _declared[name] = statement
    return statement


def declared_statements() -> list[Statement]:
    """Every statement that the imported modules have declared, in the order of the files' names."""
    return [_declared[name] for name in sorted(_declared)]


def undeclared_files() -> list[str]:
    """The SQL files that no module has declared: dead code, or a forgotten declaration."""
    return sorted(
        name
        for path in SQL_DIRECTORY.rglob("*.sql")
        if (name := path.relative_to(SQL_DIRECTORY).as_posix()) not in _declared
    )


async def check_statement(connection: asyncpg.Connection, statement: Statement) -> Mismatch | None:
    """Prepare one statement on a migrated database and compare its types with the declaration."""
    try:
        prepared = await connection.prepare(statement.sql)
    except asyncpg.PostgresError as error:
        return Mismatch(statement, f"PostgreSQL refuses it: {error.args[0]} (SQLSTATE {error.sqlstate})")
    parameters = tuple(parameter.name for parameter in prepared.get_parameters())
    if parameters != statement.parameters:
        return Mismatch(statement, f"parameters: expected {_list(statement.parameters)}, found {_list(parameters)}")
    columns = tuple((attribute.name, attribute.type.name) for attribute in prepared.get_attributes())
    if columns != statement.columns:
        expected, found = (_list(" ".join(column) for column in side) for side in (statement.columns, columns))
        return Mismatch(statement, f"columns: expected {expected}, found {found}")
    return None


async def check_statements(connection: asyncpg.Connection) -> list[str]:
    """Check every declared statement, and for files that nothing declares; return a line for each that does not fit."""
    checks = [await check_statement(connection, each) for each in declared_statements()]
    unused = [f"sql/{name}: no Python module declares it" for name in undeclared_files()]
    return [str(mismatch) for mismatch in checks if mismatch is not None] + unused


def _list(items: Iterable[str]) -> str:
    return f"({', '.join(items)})"
