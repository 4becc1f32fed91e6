"""How many requests a worker takes on at once, and how long one of them may take."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from api.errors import DeadlineExceededError, OverloadedError, Problem, StoppingError, problem_of

Result = TypeVar("Result")

_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


class Gate:
    """Lets requests of one worker in: at most `most` at once, each for as long as its client says.

    `Request-Timeout: SECONDS` shortens what the other time-outs add up to, and never lengthens it: they go on. Without
    it a request costs no timer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.under_way = 0

    async def admit(self, handler: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        """The handler's response.

        Raises OverloadedError where too many are under way, DeadlineExceededError, and StoppingError where the server
        cancels what is under way; a write that was sent by then raises OutcomeUnknownError instead of the two.
        """
        if self.under_way >= self._most:
            raise OverloadedError
        self.under_way += 1
        try:
            for name, value in request.scope["headers"]:
                if name == b"request-timeout":
                    return await _within(_read_seconds(value), handler(request))
            return await handler(request)
        except asyncio.CancelledError:
            # Nobody but the server cancels a request, when it has waited long enough for it. The client hears of it.
            raise StoppingError from None
        finally:
            self.under_way -= 1


def gate_refusals() -> list[Problem]:
    """What a gate adds to the refusals of an operation."""
    return [_malformed_timeout(), problem_of(OverloadedError), *map(problem_of, (DeadlineExceededError, StoppingError))]


def _malformed_timeout() -> Problem:
    # Not ignored: who sets a deadline must know that it does not hold.
    fault = {
        "loc": ["header", "request-timeout"],
        "msg": "must be a number of seconds above 0, such as 2.5",
        "type": "request_timeout",
    }
    return Problem(422, "The request is not valid; see errors", "invalid", errors=[fault])


def _read_seconds(value: bytes) -> float:
    if not _SECONDS.fullmatch(value) or not (seconds := float(value)):
        raise _malformed_timeout()
    return seconds


async def _within(seconds: float, answer: Awaitable[Result]) -> Result:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise DeadlineExceededError from None
