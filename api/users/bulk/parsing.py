"""Incremental parsers of NDJSON and CSV: pieces of any size in, rows to import out, each validated as POST does.

An invalid line is refused, and parsing continues. The parsers keep at most one line of the input or, if a quoted CSV
field spans several lines, MAX_RECORD_BYTES.
"""

import codecs
import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from api.errors import Problem
from api.http.request import MAX_BODY_BYTES, parse_json, unprocessable
from api.users.schemas import UserCreate

MAX_RECORD_BYTES = MAX_BODY_BYTES
"""The bound that POST sets for one user."""


class Row(NamedTuple):
    """A user to import. `line` is the first line of its record, from 1; `set_name` is true if the name was given."""

    line: int
    email: str
    name: str | None
    set_name: bool


class Refusal(NamedTuple):
    """The problem of a record. `line` is its first line."""

    line: int
    problem: Problem


class Parser(Protocol):
    """The parser of a format. `line` is the number of the last line that was parsed."""

    line: int

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """Parse the records that are complete. Raises Problem if the file as a whole cannot be parsed."""

    def end(self) -> Iterator[Row | Refusal]:
        """Parse the rest at the end of the file. Raises Problem as `feed` does."""


class NDJSONParser:
    """One JSON object per line, as in the body of POST. Blank lines are skipped."""

    def __init__(self) -> None:
        self.line = 0
        self._lines = _Lines()

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """See Parser; never raises."""
        return self._parse(self._lines.feed(data))

    def end(self) -> Iterator[Row | Refusal]:
        """See Parser; never raises."""
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
                user = parse_json(UserCreate, line)
            except Problem as problem:
                yield Refusal(self.line, problem)
            else:
                yield Row(self.line, user.email, user.name, "name" in user.model_fields_set)


_NOTHING_SEEN = (0, -1, 0)
"""The lines, bytes (with line feeds) and quotes of an incomplete record."""


class CSVParser:
    """Comma-separated values (RFC 4180). The first line names the columns: `email` and optionally `name`.

    Other columns and blank lines are skipped. An empty name means no name. With `is_guarded` an apostrophe at the start
    of a cell is removed, which export_users_csv_safe.sql has added.
    """

    def __init__(self, *, is_guarded: bool = False) -> None:
        self.line = 0
        self._is_guarded = is_guarded
        self._lines = _Lines()
        self._pending: list[bytes | None] = []  # the lines received after `line`
        self._open = _NOTHING_SEEN
        self._columns: list[str] = []

    def feed(self, data: bytes) -> Iterator[Row | Refusal]:
        """See Parser."""
        self._pending += self._lines.feed(data)
        return self._parse(is_end=False)

    def end(self) -> Iterator[Row | Refusal]:
        """See Parser."""
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
                # After a quote that is not closed, the next line may be a valid record: only one line is refused.
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
        """Return the cells of the record at a position of `_pending`, and its number of lines: 0 if incomplete."""
        line = self._pending[position]
        if line is None:
            raise record_too_long()
        if b'"' not in line:
            return _decode(line).split(","), 1
        # Of a record that was incomplete before, only the new lines are read: it may arrive line by line.
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
        if self._is_guarded:
            cells = [cell.removeprefix("'") for cell in cells]
        sent: dict[str, str | None] = dict(zip(self._columns, cells, strict=True))
        if has_name := "name" in sent:
            sent["name"] = sent["name"] or None
        try:
            user = UserCreate.model_validate(sent)
        except ValidationError as error:
            return Refusal(number, unprocessable(error, "body"))
        return Row(number, user.email, user.name, has_name)


def record_too_long() -> Problem:
    """The problem of a line, or of a CSV record of several lines, above MAX_RECORD_BYTES."""
    return Problem(413, f"A user must take at most {MAX_RECORD_BYTES} bytes")


def no_columns(reason: str) -> Problem:
    """The problem of a CSV file whose first line does not name the columns."""
    return _malformed(f"the first line must name the columns, with commas between them and email among them: {reason}")


def _malformed(reason: str) -> Problem:
    errors = [{"loc": ["body"], "msg": reason, "type": "csv_invalid"}]
    return Problem(422, f"This is not CSV in UTF-8: {reason}", "invalid", errors=errors)


class _Lines:
    """Splits the input into lines. A line longer than MAX_RECORD_BYTES becomes None and is never kept."""

    def __init__(self) -> None:
        self._rest: bytes | None = b""  # the start of the last line
        self._is_start = True

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the complete lines, without their line feeds."""
        lines = [line if len(line) <= MAX_RECORD_BYTES else None for line in data.split(b"\n")]
        lines[0] = _join(self._rest, lines[0])
        self._rest = lines.pop()
        if self._is_start and lines:
            self._is_start = False
            lines[0] = lines[0] and lines[0].removeprefix(codecs.BOM_UTF8)
        return lines

    def end(self) -> list[bytes | None]:
        """Return the last line if no line feed ended it."""
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
        # The whole file is this one line: it would be taken for a file without users.
        raise no_columns("lines must end in a line feed, not in a carriage return alone")
    columns = [cell.strip().lower() for cell in cells]
    for name in ("email", "name"):
        if columns.count(name) > 1:
            raise no_columns(f"{name} stands there twice")
    if "email" not in columns:
        raise no_columns("email is missing")
    return columns
