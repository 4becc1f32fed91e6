"""How an import is cut into chunks, and into turns between which others get theirs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from api.users.importing import Counts, Import
from api.users.parsing import CSVParser, NDJSONParser, Parser, Row
from api.users.writing import Written

pytestmark = pytest.mark.anyio


def importing(parser: Parser, chunks: list[int]) -> Import:
    """An import of chunks of 1,000, which notes how large they are."""

    async def write(rows: Sequence[Row]) -> Written:
        chunks.append(len(rows))
        return Written(created=len(rows))

    def report(line: dict[str, Any]) -> None:
        pass

    return Import(parser, write, report, counts=Counts(), chunk_rows=1000, request_id="")


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
