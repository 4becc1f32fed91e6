"""Rows without a database: which text is an id, and how a change ends that other sessions come in between."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from api.errors import Problem, RefusedError
from api.resources.cursors import MAX_ID
from api.resources.rows import id_of
from api.users.problems import USER
from api.users.queries import UserRemoval


def read_id(text: str) -> int:
    return USER.read_id(Request({"type": "http", "path_params": {"id": text}}))


@pytest.mark.parametrize("id", [1, MAX_ID])
def test_the_first_and_the_last_id(id: int) -> None:
    assert read_id(str(id)) == id


@pytest.mark.parametrize("text", ["0", str(MAX_ID + 1), "1" + "0" * 5000, "\u0661", "-1", "+1", "1_0", " 1", ""])
def test_a_text_that_is_no_id_is_not_found(text: str) -> None:
    """Also one of more digits than Python turns into a number."""
    with pytest.raises(Problem, match="User not found") as raised:
        read_id(text)
    assert raised.value.status == 404


def row(version: int, body: str | None = None) -> dict[str, Any]:
    return {"id": 1, "version": version, "body": body}


def apply(if_match: list[int] | None, writes: list[Any], reads: list[Any]) -> Any:
    """Apply a change; `writes` and `reads` are the rows that the statements return, of which each must be needed."""

    async def write(_: UserRemoval) -> Any:
        return writes.pop(0)

    async def select(_: int) -> Any:
        return reads.pop(0)

    try:
        return asyncio.run(USER.apply(write, UserRemoval(1, if_match), select))  # type: ignore[arg-type]
    finally:
        assert not writes
        assert not reads


@pytest.mark.parametrize("if_match", [None, [1]])
def test_a_change_that_happened_needs_no_read(if_match: list[int] | None) -> None:
    assert apply(if_match, [row(2, "{}")], []) == row(2, "{}")


@pytest.mark.parametrize(
    ("if_match", "writes", "reads", "status"),
    [
        (None, [None], [], 404),
        ([1], [None], [], 404),
        ([1], [row(2)], [], 412),
        # Another session has changed the row, or deleted it, while the statement waited for it.
        ([1], [row(1), row(2)], [row(2)], 412),
        ([1], [row(1), None], [None], 404),
        (None, [row(1), None], [None], 404),
    ],
)
def test_a_change_that_did_not_happen(if_match: list[int] | None, writes: Any, reads: Any, status: int) -> None:
    with pytest.raises(Problem) as raised:
        apply(if_match, writes, reads)
    assert raised.value.status == status


@pytest.mark.parametrize("if_match", [None, [1, 2]])
def test_a_change_is_repeated_as_long_as_others_come_in_between(if_match: list[int] | None) -> None:
    assert apply(if_match, [row(1), row(2), row(3, "{}")], [row(2), row(3)]) == row(3, "{}")


@pytest.mark.parametrize("if_match", [None, [1]])
def test_a_row_that_nothing_else_has_changed_was_refused(if_match: list[int] | None) -> None:
    with pytest.raises(RefusedError):
        apply(if_match, [row(1)], [row(1)])


def test_changes_are_told_apart_by_their_rows() -> None:
    """Those of different rows share a statement, and those of one row follow each other."""
    assert [id_of(UserRemoval(id, None)) for id in (1, MAX_ID)] == [1, MAX_ID]
