"""NDJSON and CSV, line by line: which lines are refused and why, wherever the input is split."""

import csv
import io
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import Problem
from api.users.bulk.parsing import MAX_RECORD_BYTES, CSVParser, NDJSONParser, Parser, Refusal, Row

ADA, BOB = b'{"email":"ada@example.com","name":"Ada"}', b'{"email":"bob@example.com"}'
ADA_CSV = b"ada@example.com,Ada"


def parse(make: Callable[[], Parser], pieces: Iterable[bytes]) -> list[Row | Refusal]:
    parser = make()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + list(parser.end())


def told(events: Iterable[Row | Refusal]) -> list[tuple[int, object]]:
    """Each event as its line and what came of it: the address, or the status with the first fault."""
    return [
        (event.line, event.email)
        if isinstance(event, Row)
        else (event.line, (event.problem.status, [fault["loc"] for fault in event.problem.errors or ()]))
        for event in events
    ]


A, B = "ada@example.com", "bob@example.com"
BODY, EMAIL, NAME = (422, [["body"]]), (422, [["body", "email"]]), (422, [["body", "name"]])
EMAIL_AND_NAME = (422, [["body", "email"], ["body", "name"]])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (b"", []),
        (b"\n\r\n  \n", []),
        (ADA, [(1, A)]),
        (ADA + b"\n" + BOB + b"\n", [(1, A), (2, B)]),
        (b"\xef\xbb\xbf" + ADA + b"\r\n\r\n" + BOB, [(1, A), (3, B)]),
        (b"{\n" + ADA, [(1, BODY), (2, A)]),
        (b"\n\xef\xbb\xbf" + ADA + b"\n\xef\xbb\xbf" + ADA, [(2, BODY), (3, BODY)]),
        (b'{"email":"ada@example.com","x":NaN}\n{"x":[-Infinity],"email":"bob@example.com"}', [(1, BODY), (2, BODY)]),
        (b'{"email":"ada@example.com","name":"NaN Infinity"}', [(1, A)]),
        # Two lines that are one list together, and two users on one line.
        (b'{"email":"ada@example.com"\n"name":"Ada"}\n' + ADA + b"," + ADA, [(1, BODY), (2, BODY), (3, BODY)]),
        (b"[]\nnull\n1\n\"x\"\n" + BOB, [*((n, BODY) for n in range(1, 5)), (5, B)]),
        (b'{"email":"\xff@example.com"}\n' + BOB, [(1, BODY), (2, B)]),
        (ADA.decode().encode("utf-16") + b"\n" + BOB, [(1, BODY), (2, B)]),
        (b'{"email":"ada@example.com","name":"\\u0000"}\n' + BOB, [(1, NAME), (2, B)]),
        (b'{"email":"ada\x00@example.com"}\n' + BOB, [(1, BODY), (2, B)]),
        (b"x" * 10_000_000 + b"\n" + BOB, [(1, (413, [])), (2, B)]),
        (b"x" * 10_000_000, [(1, (413, []))]),
        (b"x" * 70_000 + b"\n" + BOB + b"\n\n" + ADA + b"\n", [(1, (413, [])), (2, B), (4, A)]),
        # A line of the greatest length, and one above it.
        (b'{"name":"' + b"x" * (MAX_RECORD_BYTES - 11) + b'"}\n' + BOB, [(1, EMAIL_AND_NAME), (2, B)]),
        (b'{"name":"' + b"x" * (MAX_RECORD_BYTES - 10) + b'"}\n' + BOB, [(1, (413, [])), (2, B)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 65536, 1000])
def test_ndjson(file: bytes, expected: list[tuple[int, object]], piece: int) -> None:
    assert told(parse(NDJSONParser, cut(file, piece))) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b"", []),
        (ADA_CSV, [(2, A)]),
        (b"\r\n" + ADA_CSV + b"\r\n\n" + ADA_CSV + b"\n", [(3, A), (5, A)]),
        (b"ada@example.com\n" + ADA_CSV + b",more\n" + ADA_CSV, [(2, BODY), (3, BODY), (4, A)]),
        (b"nobody,Ada\n,Ada\n" + ADA_CSV, [(2, EMAIL), (3, EMAIL), (4, A)]),
        # A quoted field may hold commas, quotes and line ends; the record is the line's that it begins in.
        (b'ada@example.com,"Lovelace, ""Ada""\r\nCountess"\n' + ADA_CSV, [(2, A), (4, A)]),
        (b'nobody,"a\nb\nc"\n' + ADA_CSV, [(2, EMAIL), (5, A)]),
        # A quote that is not closed costs its own line alone, at the end of the file and in the middle.
        (b'ada@example.com,"Ada\n' + ADA_CSV, [(2, BODY), (3, A)]),
        (b'ada@example.com,"Ada\n' + ADA_CSV + b'\nbob@example.com,"Bob"', [(2, BODY), (3, A), (4, B)]),
        (b'ada@example.com,"Ada\n' + b"x" * MAX_RECORD_BYTES + b"\n" + ADA_CSV, [(2, BODY), (3, BODY), (4, A)]),
        # Line feeds count: else a quote and an endless number of them would be kept.
        (b'ada@example.com,"Ada' + b"\n" * (MAX_RECORD_BYTES - 21) + b'"\n' + ADA_CSV,
         [(2, NAME), (MAX_RECORD_BYTES - 18, A)]),
        (b'ada@example.com,"Ada' + b"\n" * (MAX_RECORD_BYTES - 20) + b'"\n' + ADA_CSV,
         [(2, BODY), (MAX_RECORD_BYTES - 18, BODY), (MAX_RECORD_BYTES - 17, A)]),
        (b'ada@example.com,"Ada"x\n' + ADA_CSV, [(2, BODY), (3, A)]),
        (b'ada@example.com,A"da\n' + ADA_CSV, [(2, BODY), (3, A)]),
        (b"\xff@example.com,Ada\n" + ADA_CSV, [(2, BODY), (3, A)]),
        (b'ada@example.com,"\xff"\n' + ADA_CSV, [(2, BODY), (3, A)]),
        (b"ada@example.com,A\0da\n" + ADA_CSV, [(2, NAME), (3, A)]),
        (b"x" * 10_000_000 + b"\n" + ADA_CSV, [(2, (413, [])), (3, A)]),
        (b'"' + b"x" * 10_000_000 + b"\n" + ADA_CSV, [(2, (413, [])), (3, A)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 65536, 1000])
def test_csv(rows: bytes, expected: list[tuple[int, object]], piece: int) -> None:
    assert told(parse(CSVParser, cut(b"\xef\xbb\xbfemail,name\r\n" + rows, piece))) == expected


def cut(file: bytes, size: int) -> list[bytes]:
    return [file[start : start + size] for start in range(0, len(file), size)]


@pytest.mark.parametrize(
    ("header", "line", "row"),
    [
        (b"email", b"ada@example.com", ("ada@example.com", None, False)),
        (b" Email , NAME ", b"ada@example.com,Ada", ("ada@example.com", "Ada", True)),
        (b'"name","email"', b',"ada@example.com"', ("ada@example.com", None, True)),
        (b"id,email,,name,name2", b"7,ada@example.com,x, Ada,y", ("ada@example.com", " Ada", True)),
        (b"\n\nemail,name", b'ada@example.com,"=1+1"', ("ada@example.com", "=1+1", True)),
    ],
)
def test_the_first_line_names_the_columns(header: bytes, line: bytes, row: tuple[str, str | None, bool]) -> None:
    (found,) = parse(CSVParser, [header + b"\n" + line])
    assert isinstance(found, Row)
    assert found[1:] == row


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\n\n",
        b"name",
        ADA_CSV + b"\n" + ADA_CSV,
        b"email;name\n",
        b"email,email",
        b"email,name,name\n",
        b'"email',
        "email,name\n".encode("utf-16"),
        b"\xff\n",
        b"x" * 100_000 + b"\nemail\n",
        # Its lines end as on the first Macs, which spreadsheets still offer: it would pass for a header without users.
        b"email,name\r" + ADA_CSV + b"\r",
        b"email\rada@example.com\r",
        b'email,"name"\r' + ADA_CSV + b"\r",
    ],
)
def test_without_its_columns_a_file_is_no_csv(file: bytes) -> None:
    with pytest.raises(Problem, match="the first line must name the columns") as raised:
        parse(CSVParser, [file])
    assert raised.value.status == 422


NASTY = [b'"', b",", b"\n", b"\r\n", b"a@b.co", b"\xff", b"\0", b"{", b"}", b'{"email":"a@b.co"}', b"x" * 70_000, b""]


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
def test_a_record_of_several_lines_may_arrive_line_by_line(at_a_time: int) -> None:
    """And another one behind it."""
    record = b'ada@example.com,"Ada\nLovelace\n""Countess"""\n'
    file = b"email,name\n" + record + record + b'"bob@example.com",Bob\n' + record
    lines = file.splitlines(keepends=True)
    events = parse(CSVParser, [b"".join(lines[n : n + at_a_time]) for n in range(0, len(lines), at_a_time)])
    assert told(events) == [(2, A), (5, A), (8, B), (9, A)]
    assert {event.name for event in events if isinstance(event, Row)} == {'Ada\nLovelace\n"Countess"', "Bob"}


def test_a_byte_order_mark_is_one_at_the_start_alone() -> None:
    mark = b"\xef\xbb\xbf"
    assert told(parse(NDJSONParser, [mark + ADA + b"\n", mark + ADA + b"\n"])) == [(1, A), (2, BODY)]


def test_a_name_that_is_not_there_is_no_empty_one() -> None:
    events = parse(NDJSONParser, [BOB + b"\n" + ADA + b'\n{"email":"bob@example.com","name":null}'])
    assert events == [Row(1, B, None, False), Row(2, A, "Ada", True), Row(3, B, None, True)]


def test_the_apostrophe_that_guards_a_cell_is_removed() -> None:
    file = b"email,name\n'=ada@example.com,''Ada\nbob@example.com,'"
    assert parse(partial(CSVParser, is_guarded=True), [file]) == [
        Row(2, "=ada@example.com", "'Ada", True),
        Row(3, B, None, True),
    ]
    assert parse(CSVParser, [file])[1:] == [Row(3, B, "'", True)]


@given(st.lists(st.sampled_from(NASTY)), st.lists(st.integers(0, 200_000)))
def test_where_it_is_cut_changes_nothing(parts: list[bytes], places: list[int]) -> None:
    for make, start in ((NDJSONParser, b""), (CSVParser, b"email,name\n")):
        file = start + b"".join(parts)
        edges = [0, *sorted(place % (len(file) + 1) for place in places), len(file)]
        pieces = [file[begin:end] for begin, end in pairwise(edges)]
        whole, in_pieces = parse(make, [file]), parse(make, pieces)
        assert told(in_pieces) == told(whole)
        lines = [event.line for event in whole]
        assert lines == sorted(set(lines))
        assert all(1 <= line <= file.count(b"\n") + 1 for line in lines)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)))
def test_what_the_csv_module_writes_is_read_back(names: list[str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["email", "name"])
    writer.writerows(["ada@example.com", name] for name in names)
    events = parse(CSVParser, [file.getvalue().encode()])
    assert [event.name for event in events if isinstance(event, Row)] == [name or None for name in names]


def test_memory_stays_bounded_in_a_line_that_never_ends() -> None:
    for parser in (NDJSONParser(), CSVParser()):
        list(parser.feed(b"email\n"))
        for _ in range(200):
            assert list(parser.feed(b'"' + b"x" * 65_000)) == []
        kept = parser._lines._rest, getattr(parser, "_pending", [])
        assert kept == (None, [])


def test_memory_stays_bounded_behind_a_quote_that_is_never_closed() -> None:
    parser = CSVParser()
    list(parser.feed(b'email\n"'))
    for _ in range(3):  # three times the bound
        list(parser.feed(b"\n" * 65_000))
        assert len(parser._pending) <= MAX_RECORD_BYTES
