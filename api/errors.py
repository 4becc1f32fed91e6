"""Errors and their responses: RFC 9457 problem details, from one table of exceptions and one of constraint names."""

import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import asyncpg
import orjson
from starlette.responses import Response

from api.context import request_id, serving

logger = logging.getLogger("api")


class Problem(Exception):
    """An error response (RFC 9457).

    `kind` is the last part of the problem's type, None for `about:blank`; `errors` are the validation errors of a 422.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        kind: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.headers = headers
        self.errors = errors


class DatabaseUnavailableError(Exception):
    """No connection, or no reply to a read, in time. Nothing was changed.

    Raised from the error of PostgreSQL or the network. The message, for the log, is a remedy for the operator.
    """


class StatementFailedError(DatabaseUnavailableError):
    """The database answered a statement with an error that no client can mend, such as a missing table."""


class OutcomeUnknownError(Exception):
    """A write was sent, but its result never arrived: it may have happened. Raised from the error that cut it off."""


class MigrationError(Exception):
    """A failed migration: the message names the file, the cause and the remedy, and holds no password and no URL."""


class RefusedError(Exception):
    """A rule of the database, such as a trigger or a policy, left the row of a write out without an error."""


class OverloadedError(Exception):
    """Too many requests are in flight, or wait for the database: nothing was sent."""


class StatementTimeoutError(Exception):
    """A read took longer than STATEMENT_TIMEOUT_SECONDS and was cancelled."""


class DeadlineExceededError(Exception):
    """The request's own deadline passed before a write was sent, or a read completed."""


class StoppingError(Exception):
    """Shutdown cancelled the request: nothing was changed."""


# RFC 9110's names, which Python has from 3.13 on.
_TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}

_RETRY_AFTER = {"Retry-After": "1"}

_LOCKED = Problem(503, "Another transaction holds the row; nothing was changed", "locked", headers=_RETRY_AFTER)

_UNAVAILABLE = Problem(503, "The database cannot be reached", "unavailable", headers=_RETRY_AFTER)

_REFUSED = Problem(409, "A rule of the database refuses the change; nothing was changed", "refused-by-database")

# Failures of the database and of serving. Any other exception is a bug and becomes an opaque 500.
_EXCEPTIONS: dict[type[Exception], Problem] = {
    DatabaseUnavailableError: _UNAVAILABLE,
    StatementFailedError: _UNAVAILABLE,
    OutcomeUnknownError: Problem(
        503,
        "The change was sent, but its outcome is unknown: read before retrying",
        "outcome-unknown",
        headers=_RETRY_AFTER,
    ),
    RefusedError: _REFUSED,
    OverloadedError: Problem(503, "Too many requests are waiting", "overloaded", headers=_RETRY_AFTER),
    asyncpg.LockNotAvailableError: _LOCKED,
    # After the retries of fetch.py.
    asyncpg.TransactionRollbackError: _LOCKED,
    asyncpg.SerializationError: _LOCKED,
    asyncpg.DeadlockDetectedError: _LOCKED,
    StatementTimeoutError: Problem(504, "The database did not answer in time"),
    DeadlineExceededError: Problem(
        504, "Request-Timeout passed before there was an answer; nothing was changed", "deadline-exceeded"
    ),
    StoppingError: Problem(503, "The server is stopping; nothing was changed", "stopping", headers=_RETRY_AFTER),
}
_ONLY_WRITES = (OutcomeUnknownError, RefusedError, asyncpg.LockNotAvailableError)
_ONLY_READS = (StatementTimeoutError,)


def database_problems(*, writes: bool) -> list[Problem]:
    """Return the problems of any read or write statement. api.http.gate adds its own."""
    others = _ONLY_READS if writes else _ONLY_WRITES
    never = [_EXCEPTIONS[each] for each in (DeadlineExceededError, StoppingError, *others)]
    return [problem for problem in dict.fromkeys(_EXCEPTIONS.values()) if problem not in never]


def problem_of(error: type[Exception]) -> Problem:
    """Return the problem of an exception in the table: for the documentation, not to be raised."""
    return _EXCEPTIONS[error]


def internal_error() -> Problem:
    """The problem of an exception that no table has."""
    return Problem(500, "Internal server error; the log has it under this request_id")


# The values are functions: a problem that is raised repeatedly would accumulate the tracebacks and frames of every
# request.
_CONSTRAINTS: dict[str, Callable[[], Problem]] = {}


def register_constraint(name: str, problem: Callable[[], Problem]) -> None:
    """Map a violation of the constraint `name` to `problem()`. Other violations are `refused-by-database`."""
    _CONSTRAINTS[name] = problem


def to_response(error: Exception) -> Response:
    """Return the response to a request that ended in `error`."""
    name = request_id()
    problem = to_problem(error, name)
    for request in serving.get():
        request.problem = problem.kind
    body = orjson.dumps(problem_body(problem, name))
    response = Response(body, problem.status, problem.headers, "application/problem+json")
    if not serving.get():  # Input that is not HTTP has no RequestContext, which adds the header.
        response.raw_headers.append((b"x-request-id", name.encode()))
    return response


def to_problem(error: Exception, request_id: str) -> Problem:
    """Return the problem of `error`.

    An unknown error is logged in full under `request_id`, and its problem is opaque.
    """
    problem = _find_problem(error)
    if problem is None:
        logger.error("request %s failed: %s", request_id, format_exception(error))
        return internal_error()
    # A 501 is about what the client sent.
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and problem.status != HTTPStatus.NOT_IMPLEMENTED:
        logger.warning("request %s: %s: %s", request_id, problem.detail, _explain(error))
    elif problem is _REFUSED:
        logger.info("request %s: %s: %s", request_id, problem.detail, describe(error))
    return problem


def problem_body(problem: Problem, request_id: str) -> dict[str, Any]:
    """Return the body of the problem (RFC 9457)."""
    body: dict[str, Any] = {
        "type": f"urn:problem:users-api:{problem.kind}" if problem.kind else "about:blank",
        "title": _TITLES.get(problem.status) or HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.errors is not None:
        body["errors"] = problem.errors
    return body


def _explain(error: Exception) -> str:
    """Return the cause of an error for the log, with the remedy if one is known."""
    if isinstance(error, DatabaseUnavailableError) and error.__cause__ is not None:
        return "; ".join(filter(None, (describe(error.__cause__), *error.args)))
    return describe(error.__cause__ or error)


def _find_problem(error: Exception) -> Problem | None:
    if isinstance(error, Problem):
        return error
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        registered = _CONSTRAINTS.get(error.constraint_name or "")
        return registered() if registered else _REFUSED
    problem = _EXCEPTIONS.get(type(error))
    # Of what PostgreSQL answers, fetch.py raises only refusals as they are. asyncpg's own errors have no severity: they
    # are bugs.
    if problem is None and isinstance(error, asyncpg.PostgresError) and error.severity is not None:
        return _REFUSED
    return problem


# A function can raise an error with the SQLSTATE of a warning, by which asyncpg chooses the class.
_OF_POSTGRESQL = (asyncpg.PostgresError, asyncpg.PostgresWarning)
# The classes in which PostgreSQL's own messages, and those of poolers, name objects and never values.
_NAMES_OBJECTS = ("08", "25", "26", "28", "3D", "3F", "42", "53", "55", "57")
# Neon's proxy and some poolers use these. PostgreSQL does too, with any text; it also names its function.
_OF_PROXIES = ("58", "XX")
_FUNCTION = re.compile(r"^PL/\w+ function ([\w.]+)\(", re.MULTILINE)
_NAME = re.compile(r"[\w.$]+")


def describe(error: BaseException) -> str:
    """Describe an exception for the log.

    Of an error that a function, a constraint or a type of the operator's can have raised it has no text, which may
    quote a row: only the SQLSTATE, and the names of the table, the constraint and the function.
    """
    if not isinstance(error, _OF_POSTGRESQL):
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    if error.severity is None and isinstance(error.__cause__, _OF_POSTGRESQL):
        # asyncpg's own error, of a connection that was closed after one of the server's, quotes that.
        return f"{type(error).__name__}: {describe(error.__cause__)}"
    function = _FUNCTION.search(error.context or "")
    names = {
        "SQLSTATE": error.sqlstate,
        "table": error.table_name,
        "constraint": error.constraint_name,
        "function": function and function[1],
    }
    # RAISE can set the first three to anything.
    known = ", ".join(f"{kind} {name}" for kind, name in names.items() if name and _NAME.fullmatch(name))
    text = f": {error.args[0]}" if error.args and _is_safe(error) else ""
    return f"{type(error).__name__}{text} ({known})"


def _is_safe(error: asyncpg.PostgresError | asyncpg.PostgresWarning) -> bool:
    """Return whether the message comes from a pooler, a proxy, or PostgreSQL itself, and quotes no row."""
    if error.context:  # a function raised it, or COPY, which quotes its line
        return False
    group = (error.sqlstate or "")[:2]
    return group in _NAMES_OBJECTS or (group in _OF_PROXIES and error.server_source_function is None)


def format_exception(error: BaseException) -> str:
    """Return the description of an exception and its traceback, those of its causes and of a group's exceptions."""
    return f"{describe(error)}\nTraceback (most recent call last):\n{_frames(error)}".rstrip()


def _frames(error: BaseException, *, quotes_value: bool = False) -> str:
    lines = traceback.format_list(traceback.extract_tb(error.__traceback__))
    # asyncpg's DataError comes from the exception of a codec, which may quote the same value. Its causes have no text.
    quotes_value = quotes_value or isinstance(error, asyncpg.DataError)
    causes = [("caused by", error.__cause__ or error.__context__)]
    if isinstance(error, BaseExceptionGroup):
        causes += [("with", each) for each in error.exceptions]
    for link, cause in causes:
        if cause is not None:
            named = type(cause).__name__ if quotes_value else describe(cause)
            lines += [f"{link} {named}\n", _frames(cause, quotes_value=quotes_value)]
    return "".join(lines)
