"""Conditional requests, as the functions decide them. Over HTTP, and with rows: tests/users/test_contract.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.errors import Problem
from api.http.conditions import check_conditions, etag, is_known, parse_entity_tags, read_condition

VERSION = 5


def request(**fields: str) -> Request:
    headers = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


# RFC 9110, sections 5.6.1 and 8.8.3: elements of a list may be empty, and a tag may have any of these characters.
OPAQUE = st.text(st.sampled_from([chr(code) for code in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100))]), max_size=4)
TAG = st.tuples(st.sampled_from(["", "W/"]), OPAQUE).map(lambda parts: f'{parts[0]}"{parts[1]}"')
AROUND = st.text(" \t,", max_size=3)
BETWEEN = st.tuples(AROUND, AROUND).map(",".join)


@given(st.lists(st.tuples(TAG, BETWEEN), max_size=3), TAG, AROUND, AROUND)
def test_a_list_of_tags_is_read_as_it_was_written(
    first: list[tuple[str, str]], last: str, before: str, behind: str
) -> None:
    header = before + "".join(tag + between for tag, between in first) + last + behind
    assert parse_entity_tags(header.encode("latin-1")) == [tag.encode("latin-1") for tag, _ in [*first, (last, "")]]


@pytest.mark.parametrize(
    "wrong",
    [
        *("x", '"', "*", "1", "W/", 'w/"3"', 'x"3"', '"3"x', '"2" "3"', '""3"'),
        *(f'"{character}"' for character in ("\0", "\x1f", " ", "\x7f")),
    ],
)
def test_a_list_that_is_not_valid_has_no_tags(wrong: str) -> None:
    for header in (wrong, f'"1", {wrong}', f'{wrong}, "1"'):
        assert parse_entity_tags(header.encode("latin-1")) == []


@pytest.mark.parametrize(
    ("if_match", "versions"),
    [
        ("*", None),
        (" *\t", None),
        ('"1"', [1]),
        ('"1", W/"2", "x", "3"', [1, 3]),
        ('"10"', [10]),
        (f'"{"9" * 18}"', [10**18 - 1]),
        (f'"{"9" * 19}"', []),  # no bigint
        (f'"{2**63}"', []),
        (f'"{"9" * 4301}"', []),  # which Python would refuse to read
        ('"0"', []),
        ('"01"', []),
        ('"1', []),
        ("", []),
    ],
)
def test_the_versions_that_a_change_requires(if_match: str, versions: list[int] | None) -> None:
    assert read_condition(request(if_match=if_match)) == versions


def test_a_change_without_a_condition() -> None:
    assert read_condition(request(accept="*/*")) is None


@pytest.mark.parametrize("if_none_match", ["*", '"1"', ""])
def test_a_change_on_if_none_match(if_none_match: str) -> None:
    for fields in ({}, {"if_match": "*"}, {"if_match": '"1"'}):
        with pytest.raises(Problem) as refused:
            read_condition(request(if_none_match=if_none_match, **fields))
        assert (refused.value.status, refused.value.kind) == (412, "version-mismatch")


@pytest.mark.parametrize(
    ("if_match", "matches"),
    [("*", True), (" * ", True), ('"4", "5"', True), ('"4"', False), ('W/"5"', False), ("", False), (None, True)],
)
@pytest.mark.parametrize(
    ("if_none_match", "known"),
    [("*", True), (" * ", True), ('"4", "5"', True), ('W/"5"', True), ('"4"', False), ("", False), (None, False)],
)
def test_the_conditions_of_a_read(if_match: str | None, matches: bool, if_none_match: str | None, known: bool) -> None:
    """If-Match comes first (RFC 9110, section 13.2.2)."""
    fields = {"if_match": if_match, "if_none_match": if_none_match}
    sent = request(**{name: value for name, value in fields.items() if value is not None})
    if matches:
        assert is_known(sent, VERSION, "user") == known
    else:
        with pytest.raises(Problem) as refused:
            is_known(sent, VERSION, "user")
        assert (refused.value.status, refused.value.kind) == (412, "version-mismatch")
        assert "The user has changed" in refused.value.detail


@pytest.mark.parametrize(
    ("fields", "if_there", "if_not"),
    [
        ({}, True, True),
        ({"if_match": "*"}, True, False),
        ({"if_match": " * "}, True, False),
        ({"if_match": '"1"'}, False, False),
        ({"if_match": ""}, False, False),
        ({"if_none_match": "*"}, False, True),
        ({"if_none_match": " * "}, False, True),
        ({"if_none_match": '"1"'}, True, True),
        ({"if_match": "*", "if_none_match": '"1"'}, True, False),
        ({"if_match": "*", "if_none_match": "*"}, False, False),
    ],
)
def test_the_conditions_on_a_resource_without_etag(fields: dict[str, str], if_there: bool, if_not: bool) -> None:
    """RFC 9110, sections 13.1.1 and 13.1.2."""
    for is_there, passes in ((True, if_there), (False, if_not)):
        if passes:
            check_conditions(request(**fields), is_there=is_there)
        else:
            with pytest.raises(Problem) as refused:
                check_conditions(request(**fields), is_there=is_there)
            assert (refused.value.status, refused.value.kind) == (412, "version-mismatch")


def test_the_etag_of_a_version() -> None:
    assert etag(10**18) == b'"1000000000000000000"'
