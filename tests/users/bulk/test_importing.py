"""How an import is cut into chunks, how it yields to other requests, and how it ends."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from api.errors import DatabaseUnavailableError, Problem
from api.users.bulk.importing import Counts, Import
from api.users.bulk.parsing import CSVParser, NDJSONParser, Parser, Refusal, Row
from api.users.bulk.report import Report
from api.users.bulk.writing import WriteRows, Written
from tests.support.simulated import SimulatedLoop, simulate

Come = list[tuple[float, bytes]]
"""Pieces of a file, and how long each is awaited."""


async def come(pieces: Come) -> AsyncIterator[bytes]:
    for seconds, piece in pieces:
        await asyncio.sleep(seconds)
        yield piece


def importing(parser: Parser, chunks: list[int]) -> Import:
    """An import of chunks of 1,000, which notes how large they are."""

    async def write(rows: Sequence[Row]) -> Written:
        chunks.append(len(rows))
        return Written(created=len(rows))

    return import_with(parser, write)


def import_with(parser: Parser, write: WriteRows, reports: list[dict[str, Any]] | None = None) -> Import:
    reports = [] if reports is None else reports
    return Import(parser, write, reports.append, counts=Counts(), chunk_rows=1000, request_id="7")


class Writes:
    """Takes some time for each chunk, and notes when it began and how many rows it had."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.begun: list[tuple[float, int]] = []
        self._seconds = seconds

    async def __call__(self, rows: Sequence[Row]) -> Written:
        self.begun.append((round(time.monotonic(), 6), len(rows)))
        await asyncio.sleep(self._seconds)
        return Written(created=len(rows))


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


def rows(number: int) -> bytes:
    return b"".join(b'{"email":"%d@example.com"}\n' % n for n in range(number))


def lines(number: int, size: int) -> bytes:
    """Lines that are refused, of so many bytes."""
    return (b"x" * (size - 1) + b"\n") * number


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


async def turns_of_others(importing: Coroutine[Any, Any, None]) -> int:
    """Return how often the event loop turns during an import."""
    work = asyncio.create_task(importing)
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    await work
    return turns


@pytest.mark.parametrize("parser", [NDJSONParser, CSVParser])
@pytest.mark.parametrize("line", [b"\n", b" \r\n", b"a@example.com\n", b'{"email":"a@example.com"}\n'])
def test_others_get_their_turn_while_one_piece_is_parsed(parser: type[Parser], line: bytes) -> None:
    """Of lines that are passed over, a piece holds more than of any other."""
    file = b"email\n" + line * (16 * 1024 // len(line))
    turns = simulate(turns_of_others(importing(parser(), []).run(cut(file, len(file)))))
    # As long as time stands still: on a slow machine there are more. Each turn costs an import time.
    assert 4 <= turns < 30


class SlowParser(NDJSONParser):
    """Takes some time for each line."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        for event in super().feed(data):
            spend(self._seconds)
            yield event


def spend(seconds: float) -> None:
    """Let time pass while the loop is busy."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    loop.spend(seconds)


def test_others_get_their_turn_after_a_few_slow_lines() -> None:
    """An international address takes long."""
    assert 40 <= simulate(turns_of_others(importing(SlowParser(0.00025), []).run(cut(rows(200), 4096)))) < 80


def test_a_chunk_is_parsed_while_another_is_written() -> None:
    """Each takes a second."""
    writes = Writes()
    simulate(import_with(SlowParser(0.001), writes).run(cut(rows(3000), 4096)))
    assert writes.begun == [(1.0, 1000), (2.0, 1000), (3.0, 1000)]


@pytest.mark.parametrize(
    ("pieces", "begun"),
    [
        ([(0.0, rows(3)), (5.0, b"")], [(1.0, 3)]),
        # Each piece begins the second anew.
        ([(0.0, rows(3)), (0.75, rows(2)), (0.75, b""), (5.0, b"")], [(2.5, 5)]),
        ([(0.0, rows(3)), (0.75, rows(2)), (5.0, rows(1))], [(1.75, 5), (5.75, 1)]),
        # What comes while a chunk is written waits for it.
        ([(0.0, rows(3)), (1.25, rows(2)), (5.0, b"")], [(1.0, 3), (3.0, 2)]),
        ([(0.0, lines(1, 9)), (5.0, b"")], []),
    ],
)
def test_after_a_second_of_silence_what_has_come_is_written(pieces: Come, begun: list[tuple[float, int]]) -> None:
    writes = Writes()
    simulate(import_with(NDJSONParser(), writes).run(come(pieces)))
    assert writes.begun == begun


NEVER = 60.0


@pytest.mark.parametrize(
    ("pieces", "ended"),
    [
        # Nothing comes for two seconds.
        ([(NEVER, b"")], 2.0),
        ([(1.75, lines(1, 2048)), (NEVER, b"")], 3.75),
        ([(1.75, lines(1, 2048)), (1.75, lines(1, 2048)), (1.75, b"")], None),
        # Less than 2,048 bytes in two seconds.
        ([(1.0, lines(1, 2047)), (1.0, b"\n")], None),
        ([(1.0, lines(1, 2046)), (1.0, b"\n")], 2.0),
        ([(1.0, lines(1, 2046)), (0.75, b"\n"), (0.25, b"\n")], None),
        # The next two seconds begin as soon as there were enough, and with nothing.
        ([(1.0, lines(1, 2048)), (1.0, lines(1, 2046)), (0.75, b"\n"), (0.25, b"")], 3.0),
        ([(0.0, lines(1, 9000)), (1.0, b"\n"), (0.75, b"\n"), (0.25, b"")], 2.0),
        # Enough in each two seconds is enough, however unevenly it comes.
        ([(0.5, lines(1, 512))] * 40, None),
        ([(0.5, lines(1, 511))] * 40, 2.0),
    ],
)
def test_a_client_that_does_not_keep_the_pace_is_given_up(pieces: Come, ended: float | None) -> None:
    async def run(idle_seconds: float | None) -> float | None:
        (end,) = await asyncio.gather(
            importing(NDJSONParser(), []).run(come(pieces), idle_seconds), return_exceptions=True
        )
        assert end is None or (isinstance(end, Problem) and end.status == 408)
        return time.monotonic() if end else None

    assert simulate(run(2.0)) == ended
    # A file that the operator imports comes when it comes.
    assert simulate(run(None)) is None


def test_the_pace_is_that_of_the_client_alone() -> None:
    """However long the database takes."""
    writes = Writes(100.0)
    simulate(import_with(NDJSONParser(), writes).run(come([(0.25, rows(1000))] * 5), 60.0))
    assert [at for at, _ in writes.begun] == [0.25, 100.25, 200.25, 300.25, 400.25]


def test_progress_is_told_at_most_once_a_second() -> None:
    reports: list[dict[str, Any]] = []

    async def write(rows: Sequence[Row]) -> Written:
        await asyncio.sleep(0.25)
        refusal = Refusal(rows[0].line, Problem(409, "taken"))
        return Written(created=len(rows) - 4, updated=2, skipped=1, refusals=[refusal])

    async def run() -> Counts:
        work = import_with(NDJSONParser(), write, reports)
        await work.run(cut(rows(10_000), 4096))
        return work.counts

    counts = simulate(run())
    progress = [report["progress"] for report in reports if "progress" in report]
    assert [each["lines"] for each in progress] == [4000, 8000]
    assert progress[0] == {"lines": 4000, "created": 3984, "updated": 8, "skipped": 4, "refused": 4}
    assert (counts.users, counts.lines) == (10_000, 10_000)


@pytest.mark.parametrize("unreported", [0, 2])
@pytest.mark.parametrize("error", [None, Problem(408, "Nothing has come")])
def test_the_summary_tells_what_was_done_and_why_it_ended(error: Exception | None, unreported: int) -> None:
    async def summarise() -> dict[str, Any]:
        work = importing(NDJSONParser(), [])
        await work.run(come([(1.23456, rows(2) + b"nobody\n\n" + rows(1).rstrip())]))
        return work.summarise(error, unreported=unreported)

    expected = {"complete": error is None, **asdict(Counts(5, 3, 0, 0, 1)), "seconds": 1.235}
    if unreported:
        expected["unreported"] = 2
    if error:
        expected["problem"] = {
            "type": "about:blank",
            "title": "Request Timeout",
            "status": 408,
            "detail": "Nothing has come",
            "request_id": "7",
        }
    assert simulate(summarise()) == {"summary": expected}


def test_a_client_that_leaves_as_a_chunk_fails_is_no_error_in_the_log() -> None:
    logged: list[Any] = []

    async def write(rows: Sequence[Row]) -> Written:
        await asyncio.sleep(0.5)
        raise DatabaseUnavailableError

    async def pieces() -> AsyncIterator[bytes]:
        yield rows(1000)
        await asyncio.sleep(0.5)
        raise ClientDisconnect

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        with pytest.raises(DatabaseUnavailableError):
            await import_with(NDJSONParser(), write).run(pieces())
        gc.collect()  # asyncio logs an exception that was never retrieved when its task is collected

    simulate(run())
    assert logged == []
