"""Problems: each exception has its answer and its line in the log, and what no table has is opaque."""

import json
import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import asyncpg
import pytest

from api import errors
from api.context import RequestContext, serving
from api.errors import (
    DatabaseUnavailableError,
    DeadlineExceededError,
    OutcomeUnknownError,
    OverloadedError,
    Problem,
    RefusedError,
    StatementFailedError,
    StatementTimeoutError,
    StoppingError,
    database_problems,
    problem_body,
    problem_of,
    register_constraint,
    to_problem,
    to_response,
)


def answered(code: str, **fields: str) -> asyncpg.PostgresError:
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"S": "ERROR", "C": code, "M": "no", **fields})
    return error


UNAVAILABLE = (503, "unavailable", "The database cannot be reached")
LOCKED = (503, "locked", "Another transaction holds the row; nothing was changed")
REFUSED = (409, "refused-by-database", "A rule of the database refuses the change; nothing was changed")
INTERNAL = (500, None, "Internal server error; the log has it under this request_id")
ANSWERS: list[tuple[Exception, tuple[int, str | None, str]]] = [
    (DatabaseUnavailableError(), UNAVAILABLE),
    (StatementFailedError(), UNAVAILABLE),
    (
        OutcomeUnknownError(),
        (503, "outcome-unknown", "The change was sent, but its outcome is unknown: read before retrying"),
    ),
    (RefusedError(), REFUSED),
    (OverloadedError(), (503, "overloaded", "Too many requests are waiting")),
    (answered("55P03"), LOCKED),
    (answered("40000"), LOCKED),
    (answered("40001"), LOCKED),
    (answered("40P01"), LOCKED),
    (StatementTimeoutError(), (504, None, "The database did not answer in time")),
    (
        DeadlineExceededError(),
        (504, "deadline-exceeded", "Request-Timeout passed before there was an answer; nothing was changed"),
    ),
    (StoppingError(), (503, "stopping", "The server is stopping; nothing was changed")),
    # In no table: PostgreSQL refuses it. Without a severity asyncpg raised it, and then it is a bug.
    (answered("P0001"), REFUSED),
    (answered("23514", n="a_rule_of_the_operators"), REFUSED),
    (answered("23514"), REFUSED),
    (asyncpg.DataError("invalid input for query argument $1"), INTERNAL),
    (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), INTERNAL),
    (LookupError("a bug"), INTERNAL),
]


@pytest.fixture
def request_in_flight() -> Iterator[RequestContext]:
    async def nobody(message: Any) -> None: ...

    request = RequestContext(b"mine", nobody)
    before = serving.set([request])
    yield request
    serving.reset(before)


@pytest.mark.parametrize(("error", "expected"), ANSWERS, ids=repr)
def test_the_answer_to_each_failure(
    error: Exception, expected: tuple[int, str | None, str], request_in_flight: RequestContext
) -> None:
    status, kind, detail = expected
    response = to_response(error)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert json.loads(bytes(response.body)) == {
        "type": f"urn:problem:users-api:{kind}" if kind else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": "mine",
    }
    assert request_in_flight.problem == kind


def test_no_row_is_without_a_case() -> None:
    assert set(errors._EXCEPTIONS) - {type(error) for error, _ in ANSWERS} == set()


def test_what_is_no_request_has_an_id_in_the_header_too() -> None:
    """A RequestContext adds the header to the answer of a request."""
    response = to_response(Problem(400, "not HTTP"))
    assert response.headers["x-request-id"] == json.loads(bytes(response.body))["request_id"]


def test_a_request_has_its_id_in_the_header_once(request_in_flight: RequestContext) -> None:
    assert "x-request-id" not in to_response(Problem(400, "no")).headers


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (404, "Not Found"),
        (413, "Content Too Large"),
        (416, "Range Not Satisfiable"),
        (422, "Unprocessable Content"),
    ],
)
def test_the_titles_are_those_of_rfc_9110(status: int, title: str) -> None:
    assert problem_body(Problem(status, "no"), "id")["title"] == title


def test_a_problem_keeps_its_headers_and_validation_errors() -> None:
    assert to_response(Problem(405, "no", headers={"Allow": "GET"})).headers["allow"] == "GET"
    entries = [{"loc": ["body", "email"], "msg": "Field required"}]
    assert problem_body(Problem(422, "no", errors=entries), "id")["errors"] == entries
    assert "errors" not in problem_body(Problem(400, "no"), "id")


def test_the_problems_of_reads_and_of_writes() -> None:
    """What ends a request whatever it does is the gate's."""
    kinds = {writes: [problem.kind for problem in database_problems(writes=writes)] for writes in (True, False)}
    assert kinds == {
        True: ["unavailable", "outcome-unknown", "refused-by-database", "overloaded", "locked"],
        False: ["unavailable", "overloaded", None],
    }
    assert problem_of(StoppingError).kind == "stopping"


def test_a_registered_constraint_has_a_problem_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_CONSTRAINTS", {})
    register_constraint("users_email_key", lambda: Problem(409, "taken", "email-taken"))
    violation = answered("23505", n="users_email_key")
    assert to_problem(violation, "id").kind == "email-taken"
    # A problem that is raised again and again would keep the frames of each request.
    assert to_problem(violation, "id") is not to_problem(violation, "id")
    assert to_problem(answered("23505", n="another"), "id").kind == "refused-by-database"


# The log


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


DOWN = "The database cannot be reached"
RULE = "A rule of the database refuses the change; nothing was changed"


@pytest.mark.parametrize(
    ("error", "level", "line"),
    [
        # The operator's: with the cause, and the remedy if one is known.
        (
            caused(DatabaseUnavailableError("check the host"), TimeoutError("no answer")),
            logging.WARNING,
            f"{DOWN}: TimeoutError: no answer; check the host",
        ),
        (
            caused(DatabaseUnavailableError(""), TimeoutError("no answer")),
            logging.WARNING,
            f"{DOWN}: TimeoutError: no answer",
        ),
        (
            DatabaseUnavailableError("every connection is busy"),
            logging.WARNING,
            f"{DOWN}: DatabaseUnavailableError: every connection is busy",
        ),
        (
            caused(OutcomeUnknownError("unused"), ConnectionResetError("cut off")),
            logging.WARNING,
            "The change was sent, but its outcome is unknown: read before retrying: ConnectionResetError: cut off",
        ),
        (Problem(500, "no"), logging.WARNING, "no: Problem: no"),
        # A rule that the operator has made.
        (answered("P0001"), logging.INFO, f"{RULE}: RaiseError (SQLSTATE P0001)"),
        (RefusedError(), logging.INFO, f"{RULE}: RefusedError"),
    ],
    ids=repr,
)
def test_what_the_operator_can_mend_is_logged(
    error: Exception, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    to_problem(error, "mine")
    assert caplog.record_tuples == [("api", level, f"request mine: {line}")]


@pytest.mark.parametrize("status", [404, 409, 422, 499, 501])
def test_what_the_client_can_mend_is_not_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    to_problem(Problem(status, "no"), "mine")
    assert not caplog.records


def inner() -> None:
    raise LookupError("the first")


def outer(*, explicit: bool) -> None:
    try:
        inner()
    except LookupError as error:
        if explicit:
            raise ArithmeticError("the second") from error
        raise ArithmeticError("the second")  # noqa: B904


@pytest.mark.parametrize("explicit", [True, False])
def test_a_bug_is_logged_with_its_traceback_and_its_causes(explicit: bool, caplog: pytest.LogCaptureFixture) -> None:
    try:
        outer(explicit=explicit)
    except ArithmeticError as error:
        to_problem(error, "mine")
    ((logger, level, text),) = caplog.record_tuples
    assert (logger, level) == ("api", logging.ERROR)
    first, *lines = text.splitlines()
    assert first == "request mine failed: ArithmeticError: the second"
    told = [line.split(", ")[-1] for line in lines if line.startswith(("  File ", "caused by "))]
    assert told == [
        "in test_a_bug_is_logged_with_its_traceback_and_its_causes",
        "in outer",
        "caused by LookupError: the first",
        "in outer",
        "in inner",
    ]
