"""What can fail, and what a client sees of it: RFC 9457 problem details, from one table of exceptions and one of
constraint names.
"""

import logging
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import asyncpg
import orjson
from starlette.responses import Response

from api.telemetry.context import serving

logger = logging.getLogger("api")


class Problem(Exception):
    """A refusal that the client is told of.

    `kind` is the last part of the problem's type, None where the status says it all; `errors` are the faults of a 422.
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
    """Nothing was changed: no connection could be had in time, or the answer to a read.

    Raised from what PostgreSQL or the network said; the message is what an operator can do about it, for the log.
    """


class OutcomeUnknownError(Exception):
    """A write was sent, and the answer never came: it may have happened. Raised from what cut it off."""


class OverloadedError(Exception):
    """Too many requests wait for the database already: nothing was sent."""


class StatementTimeoutError(Exception):
    """A read took longer than STATEMENT_TIMEOUT_SECONDS and was cancelled."""


# RFC 9110's names, which older Pythons do not have yet.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}

_RETRY_AFTER = {"Retry-After": "1"}

_LOCKED = Problem(503, "Somebody else holds the user; nothing was changed", "locked", headers=_RETRY_AFTER)

# What the client is told when the database is what failed. Anything that is not here is our bug: an opaque 500.
_EXCEPTIONS: dict[type[Exception], Problem] = {
    DatabaseUnavailableError: Problem(503, "The database cannot be reached", "unavailable", headers=_RETRY_AFTER),
    OutcomeUnknownError: Problem(
        503,
        "The change was sent, but its outcome is unknown: read before retrying",
        "outcome-unknown",
        headers=_RETRY_AFTER,
    ),
    OverloadedError: Problem(503, "Too many requests are waiting", "overloaded", headers=_RETRY_AFTER),
    asyncpg.LockNotAvailableError: _LOCKED,
    asyncpg.DeadlockDetectedError: _LOCKED,
    StatementTimeoutError: Problem(504, "The database did not answer in time"),
}
_ONLY_WRITES = (OutcomeUnknownError, asyncpg.LockNotAvailableError)
_ONLY_READS = (StatementTimeoutError,)


def database_refusals(*, writes: bool) -> list[Problem]:
    """What any statement, a read or a write, can end in."""
    others = _ONLY_READS if writes else _ONLY_WRITES
    never = [_EXCEPTIONS[each] for each in others]
    return [problem for problem in dict.fromkeys(_EXCEPTIONS.values()) if problem not in never]


def internal_error() -> Problem:
    """The problem of what is not in these tables."""
    return Problem(500, "Internal server error; the log has it under this request_id")


def email_taken() -> Problem:
    """The problem of an address that another user has."""
    return Problem(409, "Email already registered", "email-taken")


def user_not_found() -> Problem:
    """The problem of an id that no user has."""
    return Problem(404, "User not found")


def version_mismatch() -> Problem:
    """The problem of an If-Match that names no current version."""
    return Problem(412, "The user has changed: its ETag is not one that If-Match names", "version-mismatch")


# A constraint that is not here is our bug too: a missing line must show. Functions, since a problem that is raised more
# than once would gather the tracebacks, and the frames, of every request that it refused.
_CONSTRAINTS: dict[str | None, Callable[[], Problem]] = {"users_email_key": email_taken}


def to_response(error: Exception) -> Response:
    """The answer to a request that ended in `error`; what is unknown is logged whole and told opaquely."""
    served = serving.get()  # nobody, where the head of a request could not be read
    request_id = served[0].id if served else secrets.token_hex(8)
    problem = _to_problem(error)
    if problem is None:
        logger.error("request %s failed: %s\n%s", request_id, describe(error), _frames(error))
        problem = internal_error()
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        cause = describe(error.__cause__) if error.__cause__ else type(error).__name__
        logger.warning("request %s: %s: %s", request_id, problem.detail, "; ".join(filter(None, (cause, str(error)))))
    if served:
        served[0].problem = problem.kind
    body = orjson.dumps(problem_body(problem, request_id))
    return Response(body, problem.status, problem.headers, "application/problem+json")


def problem_body(problem: Problem, request_id: str) -> dict[str, Any]:
    """Return the problem as RFC 9457 has it."""
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


def _to_problem(error: Exception) -> Problem | None:
    if isinstance(error, Problem):
        return error
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        refusal = _CONSTRAINTS.get(error.constraint_name)
        return refusal() if refusal else None
    return _EXCEPTIONS.get(type(error))


def describe(error: BaseException) -> str:
    """An exception for the log: never PostgreSQL's DETAIL, which quotes the row, or a value that it could not read."""
    if isinstance(error, asyncpg.DataError):
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
    if isinstance(error, asyncpg.PostgresError):
        constraint = f", constraint {error.constraint_name}" if error.constraint_name else ""
        return f"{type(error).__name__}: {error.args[0]} (SQLSTATE {error.sqlstate}{constraint})"
    return f"{type(error).__name__}: {error}"


def _frames(error: BaseException) -> str:
    """Where an exception came from, and its causes, without their texts, which `describe` has made safe."""
    lines = traceback.format_list(traceback.extract_tb(error.__traceback__))
    cause = error.__cause__ or error.__context__
    if cause is not None:
        lines += [f"caused by {describe(cause)}\n", _frames(cause)]
    return "".join(lines).rstrip()
