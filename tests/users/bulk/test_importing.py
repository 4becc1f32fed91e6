"""How an import is cut into chunks, how it yields to other requests, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.errors import OutcomeUnknownError
from api.users.bulk.importing import Counts, Import
from api.users.bulk.parsing import CSVParser, NDJSONParser, Parser, Row
from api.users.bulk.problems import client_silent
from api.users.bulk.report import Report
from api.users.bulk.writing import WriteRows, Written, write_rows
from tests.support.database import locked, wait_until_waiting
from tests.support.serving import settings_for


def importing(parser: Parser, chunks: list[int]) -> Import:
    """An import of chunks of 1,000, which notes how large they are."""

    async def write(rows: Sequence[Row]) -> Written:
        chunks.append(len(rows))
        return Written(created=len(rows))

    return import_with(parser, write)


def import_with(parser: Parser, write: WriteRows) -> Import:
    def report(line: dict[str, Any]) -> None:
        pass

    return Import(parser, write, report, counts=Counts(), chunk_rows=1000, request_id="")


async def test_an_answer_that_is_not_read_keeps_one_line_of_progress() -> None:
    report = Report()
    report.write({"line": 1, "problem": {}})
    for lines in range(100):
        report.write({"progress": {"lines": lines}})
    report.write({"line": 2, "problem": {}})
    assert await report.read() == b'{"line":1,"problem":{}}\n{"line":2,"problem":{}}\n'
    assert await report.read() == b'{"progress":{"lines":99}}\n'
    report.write({"progress": {"lines": 100}})
    report.write({"summary": {}})
    report.end()
    assert await report.read() == b'{"progress":{"lines":100}}\n{"summary":{}}\n'
    assert await report.read() == b""


async def cut(file: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(file), size):
        yield file[start : start + size]


@pytest.mark.parametrize("piece", [777, 65536, 1 << 20])
@pytest.mark.parametrize("line", [b"", b"nobody\n"])
async def test_no_chunk_is_larger_than_it_may_be(piece: int, line: bytes) -> None:
    """Refused lines count, since they are kept as well."""
    chunks: list[int] = []
    work = importing(NDJSONParser(), chunks)
    await work.run(cut(b"".join(b'{"email":"%d@example.com"}\n%s' % (n, line) for n in range(2500)), piece))
    assert (work.counts.created, work.counts.refused) == (2500, 2500 if line else 0)
    assert chunks == ([500] * 5 if line else [1000, 1000, 500])


@pytest.mark.parametrize("parser", [NDJSONParser, CSVParser])
@pytest.mark.parametrize("line", [b"\n", b" \r\n", b"a@example.com\n", b'{"email":"a@example.com"}\n'])
async def test_others_get_their_turn_while_one_piece_is_parsed(parser: type[Parser], line: bytes) -> None:
    """As much as uvicorn hands over at once: of lines that are passed over it holds more than of any other."""
    file = b"email\n" + line * (256 * 1024 // len(line))
    work = asyncio.create_task(importing(parser(), []).run(cut(file, len(file))))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    await work
    assert turns > 30


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (client_silent(1), OutcomeUnknownError),
        (asyncio.CancelledError(), OutcomeUnknownError),
        (ClientDisconnect(), ClientDisconnect),
    ],
    ids=lambda end: type(end).__name__ if isinstance(end, BaseException) else "",
)
async def test_what_ends_an_import_does_not_hide_that_a_chunk_was_sent(
    database: str, ending: BaseException, told: type[Exception]
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"email":"ada@example.com"}\n'
        await asyncio.to_thread(wait_until_waiting, database, 1)
        raise ending

    users = PooledDatabase(database_options(settings_for(database, statement_timeout_seconds=60)))
    await users.open()
    try:
        with locked(database, "insert into users (email) values ('ada@example.com')"):
            work = import_with(NDJSONParser(), partial(write_rows, users, "error", ""))
            with pytest.raises(told) as raised:
                await work.run(pieces())
            # The log says what ended it.
            assert told is ClientDisconnect or isinstance(raised.value.__cause__, type(ending))
    finally:
        await users.close()
