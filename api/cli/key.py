"""`users-api key`."""

import click

from api.auth.keys import make_api_key


@click.command()
@click.argument("name")
@click.option("--read-only", is_flag=True, help="The key may read, and change nothing.")
def key(name: str, read_only: bool) -> None:
    """Make an API key for NAME, which says who calls with it.

    The key is shown once and kept nowhere: the server knows it by its SHA-256. To replace a key without an
    interruption give NAME a second one, and take the first out of API_KEYS when nobody uses it any more.

    \b
    Examples:
      users-api key reporting --read-only
      curl -H 'Authorization: Bearer users_…' https://users.example.com/api/v1/users
    """
    try:
        secret, entry = make_api_key(name, read_only=read_only)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    click.echo(f"the key, shown this once:  {secret}")
    click.echo(f"its entry in API_KEYS:     {entry}")
