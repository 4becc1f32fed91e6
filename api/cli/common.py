"""Shared by the commands: errors as one readable message, and the settings with their database."""

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec

import asyncpg
import click
from pydantic import SecretStr

from api.database import embedded
from api.environment import SettingsError, warn_of_misspelt_names
from api.errors import DatabaseUnavailableError, MigrationError, OutcomeUnknownError, Problem, describe
from api.settings import VARIABLES, Settings, load_settings

P = ParamSpec("P")

POOLED_DIRECT_URL = (
    "DIRECT_URL leads through a transaction pooler: set it to the same URL without -pooler, or to PostgreSQL's own "
    "host and port"
)


def explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """End a command that fails with one readable message: exit code 2 for wrong settings, 1 for the rest."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (SettingsError, embedded.EmbeddedUnavailableError) as error:
            click.echo(f"users-api: {error}", err=True)
            sys.exit(2)
        except (MigrationError, Problem) as error:
            click.echo(f"users-api: {error}", err=True)
            sys.exit(1)
        except (DatabaseUnavailableError, OutcomeUnknownError, asyncpg.PostgresError) as error:
            click.echo(f"users-api: the database failed: {describe(error.__cause__ or error)}", err=True)
            sys.exit(1)

    return run


def read_settings() -> Settings:
    """Return the settings, after a warning about variables that look like one but are none."""
    warn_of_misspelt_names(VARIABLES)
    return load_settings()


def settings_with_database() -> tuple[Settings, bool]:
    """Return the settings, and True if their database is the embedded one: see `with_database`."""
    return with_database(read_settings())


def with_database(settings: Settings) -> tuple[Settings, bool]:
    """Return the settings, and True if their database is the embedded one, which is started if no URL is set.

    With one URL alone `Settings.pooled` or `Settings.direct` raises SettingsError, for the command that needs it.
    """
    if settings.database_url is not None or settings.direct_url is not None:
        return settings, False
    url = embedded.start()
    return settings.model_copy(update={"database_url": SecretStr(url), "direct_url": SecretStr(url)}), True


def direct_settings() -> Settings:
    """Return the settings with DIRECT_URL for every connection, after migrating an embedded database.

    Raises SettingsError if DIRECT_URL is that of a pooler.
    """
    settings, is_embedded = settings_with_database()
    if is_embedded:
        from api.database import migrations

        migrations.migrate(settings.direct, report=partial(click.echo, err=True))
    if settings.direct.pooled:
        raise SettingsError(POOLED_DIRECT_URL)
    return settings.model_copy(update={"database_url": settings.direct_url})
