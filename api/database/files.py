"""The directories of the SQL files: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
ROOT = _PACKAGE.parent
"""The directory that holds the package: the checkout, or `site-packages`."""

_CHECKOUT = (ROOT / "pyproject.toml").is_file()

SQL_DIRECTORY = ROOT / "sql" if _CHECKOUT else _PACKAGE / "sql"
MIGRATIONS_DIRECTORY = ROOT / "migrations" if _CHECKOUT else _PACKAGE / "migrations_sql"
