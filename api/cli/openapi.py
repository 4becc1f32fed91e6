"""`users-api openapi`."""

import json

import click
from pydantic import SecretStr

from api.app import describe
from api.cli.common import explain_errors, read_settings


@click.command()
@explain_errors
def openapi() -> None:
    """Print the OpenAPI 3.1 document that the server has at /openapi.json. Needs no database.

    \b
    Example:
      users-api openapi > openapi.json
    """
    # The routes are described and not served, so the URL is never used: none has to be set.
    settings = read_settings().model_copy(update={"database_url": SecretStr("postgresql://user@localhost/database")})
    click.echo(json.dumps(describe(settings), indent=2, ensure_ascii=False))
