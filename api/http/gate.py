"""The gate: bounds the requests that a worker processes at once, and their time."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from api.errors import DeadlineExceededError, OverloadedError, Problem, StoppingError, problem_of
from api.http.request import fields_of, invalid_header, read_header

Result = TypeVar("Result")

_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


class Gate:
    """Admits requests of one worker: at most `max_requests` at once, each until the deadline that its client sets.

    `Request-Timeout: SECONDS` can only shorten a request: all other timeouts still apply. Without it a request costs
    no timer.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self.under_way = 0

    async def admit(self, handler: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        """Return the response of `handler`.

        Raises OverloadedError if too many requests are in flight, DeadlineExceededError after the deadline, and
        StoppingError if shutdown cancels the request. A write that was sent by then raises OutcomeUnknownError instead
        of the latter two.
        """
        if self.under_way >= self._max_requests:
            raise OverloadedError
        self.under_way += 1
        try:
            if b"request-timeout" in fields_of(request.scope):
                seconds = _read_seconds(read_header(request, b"request-timeout") or b"")
                return await _within(seconds, handler(request))
            return await handler(request)
        except asyncio.CancelledError:
            # Only shutdown cancels a request; tell the client.
            raise StoppingError from None
        finally:
            self.under_way -= 1


def gate_problems() -> list[Problem]:
    """Return the problems that a gate adds to those of an operation."""
    return [_malformed_timeout(), *map(problem_of, (OverloadedError, DeadlineExceededError, StoppingError))]


def _malformed_timeout() -> Problem:
    # A malformed deadline is refused, not ignored: its client relies on it.
    return invalid_header("request-timeout", "must be a number of seconds above 0, such as 2.5", "request_timeout")


def _read_seconds(value: bytes) -> float:
    if not _SECONDS.fullmatch(value) or not (seconds := float(value)):
        raise _malformed_timeout()
    return seconds


async def _within(seconds: float, result: Awaitable[Result]) -> Result:
    try:
        async with asyncio.timeout(seconds):
            return await result
    except TimeoutError:
        raise DeadlineExceededError from None
