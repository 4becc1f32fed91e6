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
from api.users.bulk.formats import FORMATS, NDJSON, Format
from api.users.bulk.formats import export_users as copy_users
from api.users.resource import RESOURCE
from api.users.statements import ESTIMATE_USERS


class _WriteError(Exception):
    """Raised from an OSError of the output, to distinguish it from one of the database connection."""


class _Lines:
    """Counts the users in an export by its lines. In CSV the first is a header, and a name in quotes may hold some."""

    def __init__(self, *, is_csv: bool) -> None:
        self._is_csv = is_csv
        self._is_quoted = False
        self._header = int(is_csv)

    def count(self, piece: bytes) -> int:
        if not self._is_csv:
            return piece.count(b"\n")
        parts = piece.split(b'"')
        lines = sum(part.count(b"\n") for part in parts[self._is_quoted :: 2])
        self._is_quoted ^= len(parts) % 2 == 0
        users = max(lines - self._header, 0)
        self._header -= lines - users
        return users


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option(
    "--format", "format_name", type=click.Choice(list(FORMATS)), help="Default: by the ending of FILE, else ndjson."
)
@explain_errors
def export_users(file: Path, format_name: str | None) -> None:
    """Export every user to FILE, by default to standard output, over DIRECT_URL.

    The users come in the order of their ids, from a snapshot that is taken when the export begins. In NDJSON each line
    is a user as GET returns it. FILE is replaced at the end, so an export that fails leaves the old one. A new FILE has
    mode 0600; a replaced one keeps its mode.

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
            raise cause from None  # The reader has closed the pipe: click exits without a message.
        raise click.ClickException(f"cannot write {file}: {cause.strerror}") from None


async def _export(settings: Settings, output: BinaryIO, format: Format, file: Path) -> None:
    async with PooledDatabase(database_options(settings)).connect() as connection:
        size = await connection.fetchval(ESTIMATE_USERS.sql)
        lines = _Lines(is_csv=format is not NDJSON)
        with Progress(str(file), RESOURCE.name, size if size > 0 else None) as progress:

            async def write(data: bytes) -> None:
                try:
                    output.write(data)
                except OSError as error:
                    raise _WriteError from error
                rows = lines.count(data)
                progress.update(rows, progress.rows + rows)

            progress.rows = await copy_users(connection, format, write)
    click.echo(str(progress), err=True)


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Open the output: standard output for -, a pipe or device itself, else a file that replaces `file` at the end."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif file.exists() and not file.is_file():
        with file.open("wb") as output:
            yield output
    else:
        file = file.resolve()
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.unlink(missing_ok=True)  # left by an export that was killed, with the same process id in a container
        try:
            # It contains every email address: only its owner may read it, or those who may read the file it replaces.
            partial.touch(0o600, exist_ok=False)
            with partial.open("wb") as output:
                if file.exists():
                    partial.chmod(stat.S_IMODE(file.stat().st_mode))
                yield output
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
