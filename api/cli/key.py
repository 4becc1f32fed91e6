"""`users-api key`."""

import click

from api.auth.keys import make_api_key


@click.command()
@click.argument("name")
@click.option("--read-only", is_flag=True, help="The key can read, but not change anything.")
def key(name: str, read_only: bool) -> None:
    """Make an API key for NAME, the caller that uses it.

    The key is printed once and stored nowhere: API_KEYS has its SHA-256. To replace a key without an interruption, make
    a second one for NAME, and remove the first from API_KEYS once its caller uses the new one.

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
