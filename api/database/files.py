"""Where the SQL files lie: beside this package in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()

SQL_DIRECTORY = _PACKAGE.parent / "sql" if _CHECKOUT else _PACKAGE / "sql"
MIGRATIONS_DIRECTORY = _PACKAGE.parent / "migrations" if _CHECKOUT else _PACKAGE / "migrations_sql"
