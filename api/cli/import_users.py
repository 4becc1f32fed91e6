"""`users-api import`."""

import asyncio
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, get_args

import click
import orjson

from api.cli.common import direct_settings, explain_errors
from api.cli.progress import Progress
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.settings import Settings
from api.users.bulk.formats import FORMATS, Format
from api.users.bulk.importing import Counts, Import
from api.users.bulk.writing import copy_rows, write_rows
from api.users.schemas import OnConflict

_CHUNK_ROWS = 10_000
_CONNECTIONS = 2
_PIECE_BYTES = 256 * 1024


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), help="Default: as FILE ends, else ndjson.")
@click.option(
    "--on-conflict",
    type=click.Choice(get_args(OnConflict)),
    default="error",
    show_default=True,
    help="Where an address is taken: refuse the line, skip it, or update the user to what it says.",
)
@explain_errors
def import_users(file: BinaryIO, format_name: str | None, on_conflict: OnConflict) -> None:
    """Import users from FILE, or from standard input where it is -, over DIRECT_URL.

    NDJSON has a user a line, as POST takes it: {"email": "ada@example.com", "name": "Ada"}. CSV begins with a line that
    names its columns, email and name; others are passed over. On update a name that is not there is left alone; null,
    or an empty one in CSV, clears it.

    A line that cannot be imported is refused, which standard output tells in NDJSON, and the rest goes on. Users are
    written 10,000 at a time: after an interruption run it again with --on-conflict skip. Exit code 1 where a line was
    refused, or where the import did not come to its end.

    \b
    Examples:
      users-api import users.csv
      users-api import users.ndjson --on-conflict update > refused.ndjson
      zcat users.ndjson.gz | users-api import -
    """
    settings = direct_settings()
    format = FORMATS[format_name or ("csv" if Path(file.name).suffix.lower() == ".csv" else "ndjson")]
    counts = Counts()
    try:
        asyncio.run(_import(settings, file, format, on_conflict, counts))
    except BaseException:
        click.echo(f"users-api: the import has ended behind line {counts.lines:,} of {file.name}", err=True)
        raise
    if counts.refused:
        sys.exit(1)


async def _import(settings: Settings, file: BinaryIO, format: Format, on_conflict: OnConflict, counts: Counts) -> None:
    request_id = secrets.token_hex(8)
    progress = Progress(file.name, _size(file))

    def report(line: dict[str, Any]) -> None:
        if "problem" in line:
            progress.clear()
            try:
                click.echo(orjson.dumps(line))
            except BrokenPipeError:
                raise  # Whoever reads has had enough: click ends without a word.
            except OSError as error:
                raise click.ClickException(f"cannot write what is refused: {error.strerror}") from None

    database = PooledDatabase(database_options(settings))
    await database.open()
    try:
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(database.connect()) for _ in range(_CONNECTIONS)]
            for connection in connections:
                # The session is the import's own. What it waits for in vain is written row by row.
                await connection.execute(f"set lock_timeout = '{round(database.lock_timeout * 1000)}ms'")
            write = copy_rows(connections, partial(write_rows, database, on_conflict, request_id))
            work = Import(format.parser(), write, report, counts=counts, chunk_rows=_CHUNK_ROWS, request_id=request_id)
            with progress:
                await work.run(_show(_read(file), progress, counts))
    finally:
        await database.close()
        progress.users = counts.users
        outcomes = ", ".join(f"{number:,} {name}" for name, number in asdict(counts).items() if name != "lines")
        click.echo(f"{outcomes} ({progress})", err=True)


def _size(file: BinaryIO) -> int | None:
    """The bytes of a file; None where it is a pipe, or the like."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()):
        # There is no waiting for a file, nor for a device such as /dev/null.
        while piece := file.read(_PIECE_BYTES):
            yield piece
        return
    # What is being written goes on while nothing comes.
    reader = asyncio.StreamReader(_PIECE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    while piece := await reader.read(_PIECE_BYTES):
        yield piece


async def _show(pieces: AsyncIterator[bytes], progress: Progress, counts: Counts) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield piece
        progress.update(len(piece), counts.users)
