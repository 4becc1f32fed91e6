"""An import over simulated time: its invariants, whenever pieces come, chunks end or fail, or it is cancelled."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from api.errors import DatabaseUnavailableError, OutcomeUnknownError, Problem
from api.users.bulk.importing import Counts, Import
from api.users.bulk.parsing import NDJSONParser, Refusal, Row
from api.users.bulk.writing import Written
from tests.support.simulated import simulate

CHUNK_ROWS = 3
IDLE_SECONDS = 2.0
ROW, INVALID, BLANK = b'{"email":"ada@example.com"}'.ljust(2500) + b"\n", b"nobody\n", b"\n"
"""A row takes more than half of what parsing takes at a time, and keeps the pace alone."""


class Pause(NamedTuple):
    """Some time, and turns of the event loop after it: what ends at the same time ends in any order."""

    seconds: float
    turns: int

    async def wait(self) -> None:
        await asyncio.sleep(self.seconds)
        for _ in range(self.turns):
            await asyncio.sleep(0)


AT_ONCE = Pause(0.0, 0)


class Script(NamedTuple):
    """When what comes, and what becomes of it."""

    pieces: list[tuple[Pause, list[bytes]]]
    ending: str
    """The end of the file, a disconnect, or silence."""
    writes: list[tuple[Pause, str]]
    """How long the first chunks take: they are written, or the first row of one is refused, or it fails."""
    is_sent: bool
    """A chunk that is cancelled may have been written."""
    cancelled: Pause | None


class Trial:
    """One import, and what its file, its database and its client see."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.ends: list[float] = []
        """When something ended the import: each of them ends it at once."""
        self.chunks: list[Sequence[Row]] = []
        self.written: list[Row] = []
        self.refused: list[int] = []
        self.failure: Exception | None = None
        self.is_unknown = False
        self.in_flight = 0
        self.most_in_flight = 0
        self.reports: list[dict[str, Any]] = []
        self.work = Import(
            NDJSONParser(), self.write, self.reports.append, counts=Counts(), chunk_rows=CHUNK_ROWS, request_id=""
        )
        self._writes = chain(script.writes, repeat((AT_ONCE, "written")))

    async def pieces(self) -> AsyncIterator[bytes]:
        for pause, lines in self.script.pieces:
            await pause.wait()
            yield b"".join(lines)
        if self.script.ending == "silence":
            await asyncio.sleep(3600)
        if self.script.ending == "disconnect":
            self.end()
            raise ClientDisconnect

    async def write(self, rows: Sequence[Row]) -> Written:
        self.chunks.append(rows)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        pause, outcome = next(self._writes)
        try:
            await pause.wait()
        except asyncio.CancelledError:
            if not self.script.is_sent:
                raise
            self.is_unknown = True
            raise OutcomeUnknownError from None
        finally:
            self.in_flight -= 1
        if outcome == "fails":
            self.end()
            self.failure = DatabaseUnavailableError()
            raise self.failure
        self.written += rows
        refused = [row.line for row in rows[:1]] if outcome == "refused" else []
        self.refused += refused
        return Written(
            created=len(rows) - len(refused), refusals=[Refusal(line, Problem(409, "refused")) for line in refused]
        )

    def end(self) -> None:
        self.ends.append(asyncio.get_running_loop().time())

    async def run(self) -> BaseException | None:
        """Return what the import raises."""
        loop = asyncio.get_running_loop()
        importing = asyncio.create_task(self.work.run(self.pieces(), IDLE_SECONDS))

        async def cancel(pause: Pause) -> None:
            await pause.wait()
            if importing.cancel():
                self.end()

        cancelling = asyncio.create_task(cancel(self.script.cancelled or Pause(3600.0, 0)))
        (error,) = await asyncio.gather(importing, return_exceptions=True)
        assert loop.time() <= min(self.ends, default=3600.0)
        cancelling.cancel()
        assert asyncio.all_tasks() <= {asyncio.current_task(), cancelling}
        assert not self.in_flight
        return error


pauses = st.builds(Pause, st.sampled_from([0.0, 0.25, 0.75, 1.0, 1.75, 3.0]), st.integers(0, 4))
scripts = st.builds(
    Script,
    pieces=st.lists(st.tuples(pauses, st.lists(st.sampled_from([ROW, ROW, INVALID, BLANK]), max_size=10)), max_size=5),
    ending=st.sampled_from(["end", "disconnect", "silence"]),
    writes=st.lists(st.tuples(pauses, st.sampled_from(["written", "refused", "fails"])), max_size=5),
    is_sent=st.booleans(),
    cancelled=st.none() | pauses,
)
WHOLE, TWO = (AT_ONCE, [ROW] * CHUNK_ROWS), (AT_ONCE, [ROW] * 2 * CHUNK_ROWS)


@settings(max_examples=60, deadline=None)
@given(scripts)
# A chunk fails while the next is parsed, while a piece is awaited, at the end of the file, and as its client leaves.
@example(Script([TWO], "end", [(Pause(0.0, 1), "fails")], False, None))
@example(Script([TWO], "end", [(Pause(0.25, 0), "fails")], False, None))
@example(Script([WHOLE, (Pause(1.0, 0), [ROW])], "end", [(Pause(0.25, 0), "fails")], False, None))
@example(Script([WHOLE], "end", [(Pause(0.25, 0), "fails")], False, None))
@example(Script([WHOLE, (Pause(0.25, 0), [])], "disconnect", [(Pause(0.25, 0), "fails")], False, None))
# A row is refused by the database, and the line behind it by the parser before.
@example(Script([(AT_ONCE, [ROW, INVALID])], "end", [(AT_ONCE, "refused")], False, None))
# Blank lines behind the last row are lines of the file.
@example(Script([WHOLE, (AT_ONCE, [BLANK, BLANK])], "end", [], False, None))
# The import ends while a chunk is written.
@example(Script([WHOLE], "silence", [(Pause(3.0, 0), "written")], True, None))
@example(Script([WHOLE], "silence", [(Pause(3.0, 0), "written")], False, None))
@example(Script([WHOLE], "disconnect", [(Pause(3.0, 0), "written")], True, None))
@example(Script([WHOLE], "end", [(Pause(3.0, 0), "written")], True, Pause(0.25, 0)))
@example(Script([TWO], "end", [(Pause(3.0, 0), "written")], False, Pause(0.25, 0)))
# A silence has ended it, and it is cancelled while it waits for the end of the chunk, written perhaps, or not.
@example(Script([(AT_ONCE, [ROW])], "silence", [(Pause(3.0, 0), "written")], True, Pause(2.0, 1)))
@example(Script([(AT_ONCE, [ROW])], "silence", [(Pause(3.0, 0), "written")], False, Pause(2.0, 1)))
def test_whatever_happens_whole_chunks_are_written_in_order_and_told(script: Script) -> None:
    trial = Trial(script)
    error = simulate(trial.run())
    counts = trial.work.counts
    lines = [line for _, lines in script.pieces for line in lines]
    rows = [number for number, line in enumerate(lines, 1) if line == ROW]
    invalid = [number for number, line in enumerate(lines, 1) if line == INVALID]

    # One chunk after the other, none behind one that failed, each a part of the file.
    begun = [row.line for rows in trial.chunks for row in rows]
    written = [row.line for row in trial.written]
    assert trial.most_in_flight <= 1
    assert all(0 < len(chunk) <= CHUNK_ROWS for chunk in trial.chunks)
    assert begun == rows[: len(begun)]
    assert begun[: len(written)] == written
    assert len(begun) - len(written) <= CHUNK_ROWS

    # The counts and the report are those of the chunks that were written.
    assert (counts.created, counts.refused) == (
        len(written) - len(trial.refused),
        len([line for line in invalid if line <= counts.lines]) + len(trial.refused),
    )
    assert max(written, default=0) <= counts.lines <= min([*rows[len(written) :], len(lines) + 1]) - 1
    refusals = [report["line"] for report in trial.reports if "problem" in report]
    assert refusals == sorted([*(line for line in invalid if line <= counts.lines), *trial.refused])

    # What ended it is told, and that a chunk may have been written.
    if error is None:
        assert (script.ending, trial.failure, trial.is_unknown) == ("end", None, False)
        assert (counts.lines, written) == (len(lines), rows)
    elif isinstance(error, ClientDisconnect):
        assert script.ending == "disconnect"
    elif isinstance(error, OutcomeUnknownError):
        assert trial.is_unknown
        assert error.__cause__ is None or isinstance(error.__cause__, asyncio.CancelledError | Problem)
    elif isinstance(error, Problem):
        assert (error.status, trial.is_unknown) == (408, False)
    elif isinstance(error, asyncio.CancelledError):
        assert (script.cancelled is not None, trial.is_unknown) == (True, False)
    else:
        assert error is trial.failure
