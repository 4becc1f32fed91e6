"""The PostgreSQL that the tests run on, and the database in it that they clone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.database import embedded, migrations
from api.neon.url import parse_url
from tests.support.catalogue import grant
from tests.support.database import database_url, execute
from tests.support.roles import OWNER, ROLES_SQL, as_role

TEMPLATE = "migrated"
"""The name of the migrated database without connections."""


@contextmanager
def running_postgres(directory: Path) -> Iterator[str]:
    """Run PostgreSQL on a directory, with a cluster that is made if there is none; the value is the superuser's URL."""
    is_new = not (directory / "postgres").exists()
    url = embedded.start(directory)
    try:
        if is_new:
            # A crash may lose what the tests write.
            for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
                execute(url, f"alter system set {setting}")
            execute(url, "select pg_reload_conf()")
            # Every database but those made of template0 begins with what the document grants on the schema.
            execute(database_url(url, "template1"), ROLES_SQL)
        yield url
    finally:
        embedded.stop(directory)


def make_template(postgres: str) -> None:
    """Create the migrated database that the tests clone."""
    execute(postgres, f"create database {TEMPLATE}")
    owner = as_role(database_url(postgres, TEMPLATE), OWNER)
    migrations.migrate(parse_url(owner), report=lambda line: None)
    grant(owner)
