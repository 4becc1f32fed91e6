"""The arguments of every statement, which it carries."""

from typing import Any

from api.database.statements import Statement


def arguments(statement: Statement, keys: int) -> list[Any]:
    """Return parameters that match `keys` rows; for lists, the position of a page."""
    return list(statement.example([n * 97 + 1 for n in range(keys)]))
