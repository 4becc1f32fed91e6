"""Content negotiation of bulk transfers, whatever the headers hold."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import get_args

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.errors import DatabaseUnavailableError, Problem
from api.users.bulk.formats import CSV, FORMATS, NDJSON, Format, choose_by_accept, choose_by_content, export_users
from api.users.bulk.parsing import Row
from api.users.schemas import ExportQuery
from tests.support.database import execute, locked, wait_until_waiting
from tests.support.serving import settings_for

ZEROS = b"0" * 4400  # more digits than Python reads as a number
PARTS = [
    *(b"text/csv", b"application/x-ndjson", b"text/", b"charset", b"CHARSET", b"q", b"utf-8", b"us-ascii", b"latin-1"),
    *(b";", b"; ", b"=", b"*", b"*=", b"*0", b"*0*=", b"*1*=", b"''", b"'", b'"', b"\\", b"%00", b"%", b"%zz", b"%e9"),
    *(
        b" ",
        b"\t",
        b",",
        b"(",
        b")",
        b"<",
        b">",
        b"@",
        b"/",
        b"\0",
        b"\xe9",
        b"\xff",
        b"=?utf-8?q?=00?=",
        ZEROS,
        b"1e9",
    ),
]
headers = st.none() | st.binary() | st.lists(st.sampled_from(PARTS)).map(b"".join)
of_csv = st.lists(st.sampled_from(PARTS)).map(lambda parts: b"text/csv;charset" + b"".join(parts))


@given(headers | of_csv, st.none() | st.just(b"identity") | headers)
@example(b"text/csv; charset*0*=a%00b''utf-8", None)
@example(b"text/csv; charset*" + ZEROS + b"=utf-8", None)
def test_any_content_type_is_a_format_or_a_problem(content_type: bytes | None, encoding: bytes | None) -> None:
    with suppress(Problem):
        assert choose_by_content(content_type, encoding) in FORMATS.values()


@given(headers)
def test_any_accept_is_a_format_or_a_problem(accept: bytes | None) -> None:
    with suppress(Problem):
        assert choose_by_accept(accept) in FORMATS.values()


@pytest.mark.parametrize(
    ("content_type", "format"),
    [
        (b"text/csv", CSV),
        (b" Text/CSV ; Header=present", CSV),
        (b"text/csv;charset=utf-8", CSV),
        (b'text/csv; header=absent ; CHARSET = "UTF-8"', CSV),
        (b"application/jsonl; charset=us-ascii;", NDJSON),
        (b"application/x-ndjson", NDJSON),
        (b"application/ndjson", NDJSON),
        (b"application/x-jsonlines", NDJSON),
        (None, None),
        (b"", None),
        (b"text/csv, text/csv", None),
        (b"text/csv charset=utf-8", None),
        (b"text/csv; charset=latin-1", None),
        (b"text/csv; charset=utf-8; charset=latin-1", None),
        (b'text/csv; charset="utf-8', None),
        (b"text/csv; charset=", None),
        (b"text/csv; charset", None),
        (b"text/csv; charset*=iso-8859-1''utf-8", None),
        (b"text/csv; charset*0*=a%00b''utf-8", None),
        (b"text/csv; charset*" + ZEROS + b"=utf-8", None),
    ],
    ids=lambda value: "" if isinstance(value, Format) else repr(value)[:50],
)
def test_only_utf_8_is_read(content_type: bytes | None, format: Format | None) -> None:
    if format:
        assert choose_by_content(content_type, None) is format
        assert choose_by_content(content_type, b"Identity") is format
    for encoding in (b"gzip",) if format else (None, b"identity"):
        with pytest.raises(Problem, match=r"must be application/x-ndjson or text/csv, in UTF-8") as refused:
            choose_by_content(content_type, encoding)
        assert (refused.value.status, refused.value.headers) == (415, {"Accept-Encoding": "identity"})


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        (None, NDJSON),
        (b"", NDJSON),
        (b"*/*", NDJSON),
        (b"text/csv", CSV),
        (b"TEXT/CSV;charset=utf-8", CSV),
        (b"text/*", CSV),
        (b"application/*", NDJSON),
        (b"application/jsonl", NDJSON),
        (b"text/csv;q=0.5, application/x-ndjson;q=0.4", CSV),
        (b"text/csv;q=0.5, application/x-ndjson;q=0.5", NDJSON),
        (b"application/x-ndjson;q=1, text/csv", NDJSON),
        # No q is 1, and only the first one counts.
        (b"application/x-ndjson;q=0.999, text/csv", CSV),
        (b"application/x-ndjson ; header=present ; Q=0.5 ; q=1, text/csv ; q=0.6", CSV),
        # What is more specific counts, whatever its quality.
        (b"text/html, application/xml;q=0.9, */*;q=0.8", NDJSON),
        (b"application/x-ndjson;q=0, */*", CSV),
        (b"application/*;q=0.2, */*;q=0.3", CSV),
        (b"text/csv;q=0.1, text/*;q=0.9, application/*;q=0.2", NDJSON),
        # Of the names of one format, the best.
        (b"application/jsonl;q=0.1, application/ndjson;q=0.9, text/csv;q=0.5", NDJSON),
        # More than three places are none of HTTP's, and count as no q.
        (b"application/x-ndjson;q=0.9, text/csv;q=0.1234", CSV),
        (b"application/json", None),
        (b"text/csv;q=0", None),
        (b"*/*;q=0.0", None),
        (b"nonsense;;;q=x", None),
    ],
)
def test_the_format_that_is_preferred(accept: bytes | None, format: Format | None) -> None:
    if format:
        assert choose_by_accept(accept) is format
    else:
        with pytest.raises(Problem, match="are application/x-ndjson and text/csv:") as refused:
            choose_by_accept(accept)
        assert refused.value.status == 406


@asynccontextmanager
async def connecting(database: str, users: int) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of some users."""
    execute(
        database,
        "insert into users (email, name)"
        f" select n || '@example.com', repeat('x', 200) from generate_series(1, {users}) n",
    )
    async with PooledDatabase(database_options(settings_for(database))).connect() as connection:
        yield connection


async def export(connection: asyncpg.Connection, format: Format) -> bytes:
    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    assert await export_users(connection, format, write) == 2
    return b"".join(pieces)


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
async def test_what_a_format_exports_it_imports(database: str, format: Format) -> None:
    async with connecting(database, 0) as connection:
        values = [("=a@example.com", "=1"), ("'b@example.com", '\'2, "3" \\n')]
        await connection.executemany("insert into users (email, name) values ($1, $2)", values)
        file = await export(connection, format)
    parser = format.parser()
    rows = [row for row in (*parser.feed(file), *parser.end()) if isinstance(row, Row)]
    assert [(row.email, row.name) for row in rows] == values
    assert (b",'=1," in file) == (format.name == "csv-safe")
    assert (b"id,email,name,created_at,updated_at\n" in file) == (format.suffix == "csv")


def test_each_format_that_a_client_may_name_is_one() -> None:
    names = get_args(get_args(ExportQuery.model_fields["format"].annotation)[0])
    assert list(FORMATS) == list(names)
    assert {name: format.suffix for name, format in FORMATS.items()} == {name: name.partition("-")[0] for name in names}


MANY = 30_000
"""More than one piece, and more than the sockets hold."""


@pytest.mark.parametrize("ending", ["cancelled", "broken"])
async def test_an_export_that_ends_while_a_piece_is_written(database: str, ending: str) -> None:
    """asyncpg would wait for the next piece for ever."""
    async with connecting(database, MANY) as connection:
        is_writing, is_over = asyncio.Event(), asyncio.Event()
        connection.add_termination_listener(lambda _: is_over.set())

        async def write(piece: bytes) -> None:
            is_writing.set()
            await is_over.wait()

        exporting = asyncio.create_task(export_users(connection, NDJSON, write))
        await is_writing.wait()
        if ending == "broken":
            connection._transport.abort()  # type: ignore[attr-defined]
            with pytest.raises(DatabaseUnavailableError, match="in the middle"):
                await exporting
        else:
            exporting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await exporting


async def test_an_export_whose_connection_breaks_before_a_piece_has_changed_nothing(database: str) -> None:
    async def write(piece: bytes) -> None:
        raise AssertionError

    async with connecting(database, 1) as connection:
        with locked(database):
            exporting = asyncio.create_task(export_users(connection, NDJSON, write))
            await asyncio.to_thread(wait_until_waiting, database, 1)
            connection._transport.abort()  # type: ignore[attr-defined]
            with pytest.raises(DatabaseUnavailableError) as raised:
                await exporting
        assert raised.value.__cause__
