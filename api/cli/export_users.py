"""`users-api export`."""

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from api.cli.common import direct_settings, explain_errors
from api.cli.progress import Progress
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.settings import Settings
from api.users.bulk.formats import FORMATS, Format
from api.users.bulk.formats import export_users as copy_users
from api.users.queries import ESTIMATE_USERS


class _WriteError(Exception):
    """Raised from an OSError of the output, which would pass for one of the database's connection."""


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), help="Default: as FILE ends, else ndjson.")
@explain_errors
def export_users(file: Path, format_name: str | None) -> None:
    """Export every user to FILE, or to standard output where none is named, over DIRECT_URL.

    In the order of the ids, from one snapshot: the users as they are when the export begins. NDJSON has a user a line,
    as GET answers it. FILE is replaced when all of it is there, so an export that fails leaves the old one.
    A new FILE is its owner's alone to read, and one that is replaced keeps its mode.

    \b
    Examples:
      users-api export users.ndjson
      users-api export users.csv
      users-api export | gzip > users.ndjson.gz
    """
    settings = direct_settings()
    format = FORMATS[format_name or ("csv" if file.suffix.lower() == ".csv" else "ndjson")]
    try:
        with _open(file) as output:
            asyncio.run(_export(settings, output, format, file))
    except (OSError, _WriteError) as error:
        cause = error.__cause__ if isinstance(error, _WriteError) else error
        assert isinstance(cause, OSError)
        if isinstance(cause, BrokenPipeError):
            raise cause from None  # Whoever reads has had enough: click ends without a word.
        raise click.ClickException(f"cannot write {file}: {cause.strerror}") from None


async def _export(settings: Settings, output: BinaryIO, format: Format, file: Path) -> None:
    async with PooledDatabase(database_options(settings)).connect() as connection:
        size = await connection.fetchval(ESTIMATE_USERS.sql)
        with Progress(str(file), size if size > 0 else None) as progress:

            async def write(data: bytes) -> None:
                try:
                    output.write(data)
                except OSError as error:
                    raise _WriteError from error
                users = data.count(b"\n")
                progress.update(users, progress.users + users)

            progress.users = await copy_users(connection, format, write)
    click.echo(str(progress), err=True)


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Standard output for -, a pipe or a device as it is, else a file that takes `file`'s place when it is whole."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif file.exists() and not file.is_file():
        with file.open("wb") as output:
            yield output
    else:
        file = file.resolve()
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.unlink(missing_ok=True)  # of one that was killed, as the same process of a container
        try:
            # It holds every address: nobody else may read it, unless they may read the file that it replaces.
            partial.touch(0o600, exist_ok=False)
            with partial.open("wb") as output:
                if file.exists():
                    partial.chmod(stat.S_IMODE(file.stat().st_mode))
                yield output
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
