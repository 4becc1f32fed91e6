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

from api.cli.common import POOLED_DIRECT_URL, direct_settings, explain_errors
from api.cli.progress import Progress
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.database.pooling import is_pooled, meet_backends
from api.environment import SettingsError
from api.errors import OutcomeUnknownError
from api.settings import Settings
from api.users.bulk.formats import FORMATS, Format
from api.users.bulk.importing import Counts, Import
from api.users.bulk.writing import copy_rows, write_rows
from api.users.resource import RESOURCE
from api.users.schemas import OnConflict

_CHUNK_ROWS = 10_000
_CONNECTIONS = 2
_PIECE_BYTES = 256 * 1024


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--format", "format_name", type=click.Choice(list(FORMATS)), help="Default: by the ending of FILE, else ndjson."
)
@click.option(
    "--on-conflict",
    type=click.Choice(get_args(OnConflict)),
    default="error",
    show_default=True,
    help="If the email is taken: refuse the line, skip it, or update that user from it.",
)
@explain_errors
def import_users(file: BinaryIO, format_name: str | None, on_conflict: OnConflict) -> None:
    """Import users from FILE, - for standard input, over DIRECT_URL.

    In NDJSON each line is a user as POST takes it: {"email": "ada@example.com", "name": "Ada"}. In CSV the first line
    names the columns, email and name; others are ignored. An update leaves a missing name as it is; null, in CSV an
    empty one, clears it.

    Lines that cannot be imported are refused and printed to standard output in NDJSON; the import continues. Users are
    written 10,000 at a time: after an interruption run it again with --on-conflict skip. Exit code 1 if a line was
    refused or the import did not finish.

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
    except BaseException as error:
        message = f"users-api: the import stopped after line {counts.lines:,} of {file.name}"
        if isinstance(error, (KeyboardInterrupt, OutcomeUnknownError)):
            message += "; the next chunk may have been written too: run it again with --on-conflict skip"
        click.echo(message, err=True)
        raise
    if counts.refused:
        sys.exit(1)


async def _import(settings: Settings, file: BinaryIO, format: Format, on_conflict: OnConflict, counts: Counts) -> None:
    request_id = secrets.token_hex(8)
    progress = Progress(file.name, RESOURCE.name, _size(file))

    def report(line: dict[str, Any]) -> None:
        if "problem" in line:
            progress.clear()
            try:
                click.echo(orjson.dumps(line))
            except BrokenPipeError:
                raise  # The reader has closed the pipe: click exits without a message.
            except OSError as error:
                raise click.ClickException(f"cannot write the refused lines: {error.strerror}") from None

    database = PooledDatabase(database_options(settings))
    await database.open()
    try:
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(database.connect()) for _ in range(_CONNECTIONS)]
            if is_pooled(*await meet_backends(connections)):
                raise SettingsError(POOLED_DIRECT_URL)
            for connection in connections:
                # The session is the import's own. A chunk that cannot get its locks in time is written row by row.
                await connection.execute(f"set lock_timeout = '{round(database.lock_timeout * 1000)}ms'")
            write = copy_rows(connections, partial(write_rows, database, on_conflict, request_id))
            work = Import(format.parser(), write, report, counts=counts, chunk_rows=_CHUNK_ROWS, request_id=request_id)
            with progress:
                await work.run(_show(_read(file), progress, counts))
    finally:
        await database.close()
        progress.rows = counts.users
        outcomes = ", ".join(f"{number:,} {name}" for name, number in asdict(counts).items() if name != "lines")
        click.echo(f"{outcomes} ({progress})", err=True)


def _size(file: BinaryIO) -> int | None:
    """Return the size of a file in bytes, None if it is a pipe or the like."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()):
        # A file, or a device such as /dev/null, never blocks for long.
        while piece := file.read(_PIECE_BYTES):
            yield piece
        return
    # The event loop writes rows while the pipe is silent.
    reader = asyncio.StreamReader(_PIECE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    while piece := await reader.read(_PIECE_BYTES):
        yield piece


async def _show(pieces: AsyncIterator[bytes], progress: Progress, counts: Counts) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield piece
        progress.update(len(piece), counts.users)
