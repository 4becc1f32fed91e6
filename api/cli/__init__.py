"""The command line: one thin file for each command."""

import logging.config
import signal

import click

from api.cli.check_sql import check_sql
from api.cli.doctor import doctor
from api.cli.export_users import export_users
from api.cli.import_users import import_users
from api.cli.key import key
from api.cli.migrate import migrate
from api.cli.openapi import openapi
from api.cli.serve import serve
from api.telemetry.logs import LOG_CONFIG


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="users-api")
def main() -> None:
    """A users API on Neon Postgres: raw SQL, no ORM, one statement a request.

    Settings come from the environment or from .env in the working directory; .env.example lists them all. Without
    DATABASE_URL and DIRECT_URL every command uses the embedded development PostgreSQL in .data/.

    \b
    First steps:
      users-api serve                     serve on http://127.0.0.1:8000
      curl localhost:8000/api/v1/users    list the users
    """
    logging.config.dictConfig(LOG_CONFIG)
    # SIGTERM acts like Ctrl-C: transactions are rolled back, and the command ends. In a container a command is process
    # 1, to which the kernel delivers SIGTERM only if it is handled.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


for command in (serve, migrate, check_sql, doctor, key, openapi, import_users, export_users):
    main.add_command(command)
