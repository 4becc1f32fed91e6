"""`users-api openapi`."""

import json

import click

from api.cli.common import explain_errors
from api.settings import load_settings


@click.command()
@explain_errors
def openapi() -> None:
    """Print the OpenAPI 3.1 document that the server has at /openapi.json. Needs no database.

    \b
    Example:
      users-api openapi > openapi.json
    """
    # Imported here: no other command needs the whole application.
    from api.app import routes
    from api.database.fetch import Database
    from api.openapi.document import document

    settings = load_settings()
    click.echo(json.dumps(document(routes(settings, Database(settings))), indent=2, ensure_ascii=False))
