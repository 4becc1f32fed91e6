"""Content negotiation of bulk transfers, whatever the headers hold."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.errors import Problem
from api.users.bulk.formats import CSV, FORMATS, NDJSON, Format, choose_by_accept, choose_by_content

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
    else:
        with pytest.raises(Problem) as refused:
            choose_by_content(content_type, None)
        assert refused.value.status == 415
