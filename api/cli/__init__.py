"""The command line: one thin file for each command."""

import gc
import logging.config
import signal
from pkgutil import resolve_name

import click

from api.telemetry.logs import LOG_CONFIG

# What a command imports is no garbage: looking for some after every 700 new objects takes a tenth of its start. This
# module is the first that a worker imports, too.
gc.set_threshold(10_000)

_COMMANDS = {
    "check-sql": "api.cli.check_sql:check_sql",
    "doctor": "api.cli.doctor:doctor",
    "export": "api.cli.export_users:export_users",
    "import": "api.cli.import_users:import_users",
    "key": "api.cli.key:key",
    "migrate": "api.cli.migrate:migrate",
    "new-resource": "api.cli.new_resource:new_resource",
    "openapi": "api.cli.openapi:openapi",
    "serve": "api.cli.serve:serve",
}


class _Commands(click.Group):
    """The commands, each imported when it is used: all of them together take a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command: click.Command | None = resolve_name(_COMMANDS[cmd_name]) if cmd_name in _COMMANDS else None
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="users-api")
def main() -> None:
    """A users API on Neon Postgres: raw SQL, no ORM, one statement a request.

    Settings come from the environment or from .env in the working directory; .env.example lists them all. serve,
    check-sql and doctor use DATABASE_URL; migrate, import and export use DIRECT_URL. With neither set, every command
    uses the embedded development PostgreSQL in .data/.

    \b
    First steps:
      users-api serve                     serve on http://127.0.0.1:8000
      curl localhost:8000/api/v1/users    list the users
    """
    logging.config.dictConfig(LOG_CONFIG)
    # SIGTERM acts like Ctrl-C: transactions are rolled back, and the command ends. In a container a command is process
    # 1, to which the kernel delivers SIGTERM only if it is handled.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
