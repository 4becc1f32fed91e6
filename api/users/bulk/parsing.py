"""NDJSON and CSV as they arrive, in pieces of any size, become users to import, each held to what POST asks for.

What is wrong with a line is that line's refusal, and the rest goes on: no more of the input is kept than one line or,
where a quoted CSV field runs over several, MAX_RECORD_BYTES.
"""

import codecs
import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from api.errors import Problem
from api.http.request import MAX_BODY_BYTES, unprocessable
from api.users.schemas import UserCreate

MAX_RECORD_BYTES = MAX_BODY_BYTES
"""What POST takes for one user."""


class Row(NamedTuple):
    """A user to import, and the line of the file, from 1, that it begins in. `set_name`: the name was given."""

    line: int
    email: str
    name: str | None
    set_name: bool


class Refusal(NamedTuple):
    """What is wrong with the record that begins in a line."""

    line: int
    problem: Problem


class Parser(Protocol):
    """A format. `line` is the last one that was parsed."""

    line: int

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """Parse what is whole now. Raises Problem where the file as a whole cannot be read."""

    def end(self) -> Iterator[Row | Refusal]:
        """Parse what is left at the end of the file. Raises Problem as feed does."""


class NDJSONParser:
    """A JSON object a line, as the body of POST is. Blank lines are passed over."""

    def __init__(self) -> None:
        self.line = 0
        self._lines = _Lines()

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """As Parser says; never raises."""
        return self._parse(self._lines.feed(data))

    def end(self) -> Iterator[Row | Refusal]:
        """As Parser says; never raises."""
        return self._parse(self._lines.end())

    def _parse(self, lines: Iterable[bytes | None]) -> Iterator[Row | Refusal]:
        for line in lines:
            self.line += 1
            if line is None:
                yield Refusal(self.line, record_too_long())
                continue
            if not line.strip():
                continue
            try:
                user = UserCreate.model_validate_json(line)
            except ValidationError as error:
                yield Refusal(self.line, unprocessable(error, "body"))
            else:
                yield Row(self.line, user.email, user.name, "name" in user.model_fields_set)


_NOTHING_SEEN = (0, -1, 0)
"""Lines, bytes with the line feeds between them, and quotes of a record whose end has yet to come."""


class CSVParser:
    """Comma-separated values (RFC 4180). The first line names the columns: `email`, and `name` where there is one.

    Other columns and blank lines are passed over. An empty name is no name.
    """

    def __init__(self) -> None:
        self.line = 0
        self._lines = _Lines()
        self._pending: list[bytes | None] = []  # the lines behind `line` that have come
        self._open = _NOTHING_SEEN
        self._columns: list[str] = []

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """As Parser says."""
        self._pending += self._lines.feed(data)
        return self._parse(is_end=False)

    def end(self) -> Iterator[Row | Refusal]:
        """As Parser says."""
        self._pending += self._lines.end()
        yield from self._parse(is_end=True)
        if not self._columns:
            raise no_columns("the file is empty")

    def _parse(self, *, is_end: bool) -> Iterator[Row | Refusal]:
        lines, position = self._pending, 0
        while position < len(lines):
            try:
                cells: list[str] | Problem
                cells, taken = self._read_record(position, is_end=is_end)
            except Problem as problem:
                if not self._columns:
                    raise no_columns(problem.errors[0]["msg"] if problem.errors else problem.detail) from None
                # Where a quote is not closed, the next line may well be a record again: one line is given up.
                cells, taken = problem, 1
            if not taken:
                break
            number = self.line + 1
            position += taken
            self.line += taken
            if isinstance(cells, Problem):
                yield Refusal(number, cells)
            elif cells != [""]:
                if self._columns:
                    yield self._read_user(number, cells)
                else:
                    self._columns = _read_columns(cells)
        self._pending = lines[position:]

    def _read_record(self, position: int, *, is_end: bool) -> tuple[list[str], int]:
        """The cells of the record at a position of `_pending`, and the number of its lines: 0 where more are due."""
        line = self._pending[position]
        if line is None:
            raise record_too_long()
        if b'"' not in line:
            return _decode(line).split(","), 1
        # Where it is one that was open before, only what has come since is looked at: it may come line by line.
        seen, size, quotes = self._open
        self._open = _NOTHING_SEEN
        for at in range(position + seen, len(self._pending)):
            line = self._pending[at]
            if line is None or (size := size + 1 + len(line)) > MAX_RECORD_BYTES:
                raise _malformed("a quote is not closed")
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                record: list[bytes] = self._pending[position : at + 1]  # type: ignore[assignment]
                return _split(b"\n".join(record)), len(record)
        if is_end:
            raise _malformed("a quote is not closed")
        self._open = len(self._pending) - position, size, quotes
        return [], 0

    def _read_user(self, number: int, cells: list[str]) -> Row | Refusal:
        if len(cells) != len(self._columns):
            return Refusal(number, _malformed(f"it has {len(cells)} columns, and the first line {len(self._columns)}"))
        sent: dict[str, str | None] = dict(zip(self._columns, cells, strict=True))
        if has_name := "name" in sent:
            sent["name"] = sent["name"] or None
        try:
            user = UserCreate.model_validate(sent)
        except ValidationError as error:
            return Refusal(number, unprocessable(error, "body"))
        return Row(number, user.email, user.name, has_name)


def record_too_long() -> Problem:
    """The problem of a line, or of a CSV record of several, above MAX_RECORD_BYTES."""
    return Problem(413, f"A user must take at most {MAX_RECORD_BYTES} bytes")


def no_columns(reason: str) -> Problem:
    """The problem of a CSV file that does not begin with the names of its columns."""
    return _malformed(f"the first line must name the columns, with commas between them and email among them: {reason}")


def _malformed(reason: str) -> Problem:
    errors = [{"loc": ["body"], "msg": reason, "type": "csv_invalid"}]
    return Problem(422, f"This is not CSV in UTF-8: {reason}", "invalid", errors=errors)


class _Lines:
    """Splits what arrives into lines; one that is longer than MAX_RECORD_BYTES becomes None, and is never kept."""

    def __init__(self) -> None:
        self._rest: bytes | None = b""  # what came of the last line so far
        self._is_start = True

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that have ended, without their line feeds."""
        lines = [line if len(line) <= MAX_RECORD_BYTES else None for line in data.split(b"\n")]
        lines[0] = _join(self._rest, lines[0])
        self._rest = lines.pop()
        if self._is_start and lines:
            self._is_start = False
            lines[0] = lines[0] and lines[0].removeprefix(codecs.BOM_UTF8)
        return lines

    def end(self) -> list[bytes | None]:
        """The last line, where no line feed ended it."""
        return self.feed(b"\n") if self._rest != b"" else []


def _join(start: bytes | None, rest: bytes | None) -> bytes | None:
    if start is None or rest is None or len(start) + len(rest) > MAX_RECORD_BYTES:
        return None
    return start + rest


def _split(record: bytes) -> list[str]:
    try:
        (cells,) = csv.reader([_decode(record)], strict=True)
    except (csv.Error, ValueError):
        raise _malformed("its quotes are out of place") from None
    return cells


def _decode(line: bytes) -> str:
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None


def _read_columns(cells: list[str]) -> list[str]:
    if any("\r" in cell for cell in cells):
        # All of such a file is this one line, and would be taken for a file without a user.
        raise no_columns("lines must end in a line feed, not in a carriage return alone")
    columns = [cell.strip().lower() for cell in cells]
    for name in ("email", "name"):
        if columns.count(name) > 1:
            raise no_columns(f"{name} stands there twice")
    if "email" not in columns:
        raise no_columns("email is missing")
    return columns
