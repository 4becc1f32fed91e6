"""What the gate admits, and the deadlines of requests, over simulated time. With a database: test_gate.py."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api.errors import DeadlineExceededError, OverloadedError, Problem, StoppingError
from api.http.gate import Gate, gate_problems
from tests.support.simulated import SimulatedLoop

Handler = Callable[[Request], Awaitable[Response]]
BOUND = 3


def request(timeout: str | None = None) -> Request:
    headers = [] if timeout is None else [(b"request-timeout", timeout.encode())]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


def taking(seconds: float, ends: Exception | None = None) -> Handler:
    async def handle(_: Request) -> Response:
        await asyncio.sleep(seconds)
        if ends:
            raise ends
        return Response(b"done")

    return handle


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop()
    yield loop
    loop.close()


@pytest.mark.parametrize("ending", ["returned", "failed", "late", "cancelled"])
def test_a_request_has_its_place_until_it_ends(loop: SimulatedLoop, ending: str) -> None:
    """As many as the bound are admitted, and none beyond it."""
    gate = Gate(BOUND)

    async def run() -> None:
        under_way = [asyncio.create_task(gate.admit(taking(10), request())) for _ in range(BOUND - 1)]
        handler = taking(1, ValueError() if ending == "failed" else None)
        last = asyncio.create_task(gate.admit(handler, request("0.5" if ending == "late" else None)))
        await asyncio.sleep(0.1)
        assert gate.under_way == BOUND
        for _ in range(2):
            with pytest.raises(OverloadedError):
                await gate.admit(taking(1), request())
        if ending == "cancelled":
            last.cancel()
        await asyncio.wait([last])
        assert gate.under_way == BOUND - 1
        assert (await gate.admit(taking(1), request())).body == b"done"
        await asyncio.gather(*under_way)
        assert gate.under_way == 0

    loop.run_until_complete(run())


@pytest.mark.parametrize(("timeout", "seconds"), [("2.5", 2.5), ("2", 2.0), ("0.01", 0.01)])
def test_a_deadline_ends_a_request_at_its_time(loop: SimulatedLoop, timeout: str, seconds: float) -> None:
    gate = Gate(BOUND)

    async def run() -> None:
        assert (await gate.admit(taking(seconds * 0.9), request(timeout))).body == b"done"
        began = loop.time()
        with pytest.raises(DeadlineExceededError):
            await gate.admit(taking(seconds + 3600), request(timeout))
        assert loop.time() - began == pytest.approx(seconds)

    loop.run_until_complete(run())


def test_without_a_deadline_a_request_takes_its_time(loop: SimulatedLoop) -> None:
    response = loop.run_until_complete(Gate(BOUND).admit(taking(1e6), request()))
    assert response.body == b"done"


@pytest.mark.parametrize("timeout", ["999999999", "9.123456789", "01", "1.0"])
def test_deadlines_that_can_be_read(loop: SimulatedLoop, timeout: str) -> None:
    response = loop.run_until_complete(Gate(BOUND).admit(taking(0), request(timeout)))
    assert response.body == b"done"


@pytest.mark.parametrize(
    "timeout", ["", "0", "0.000000000", "1.", ".5", "9999999999", "1.1234567891", "1,5", " 1", "-1"]
)
def test_deadlines_that_cannot(loop: SimulatedLoop, timeout: str) -> None:
    """Its client relies on a deadline, so none is ignored; the handler does not run."""
    gate = Gate(BOUND)
    with pytest.raises(Problem) as refused:
        loop.run_until_complete(gate.admit(taking(0, AssertionError()), request(timeout)))
    assert refused.value.status == 422
    assert [error["loc"] for error in refused.value.errors or ()] == [["header", "request-timeout"]]
    assert gate.under_way == 0


@pytest.mark.parametrize("timeout", [None, "60"])
def test_a_request_that_is_cancelled_says_that_the_server_stops(loop: SimulatedLoop, timeout: str | None) -> None:
    async def run() -> None:
        task = asyncio.create_task(Gate(BOUND).admit(taking(10), request(timeout)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(StoppingError):
            await task

    loop.run_until_complete(run())


def test_the_problems_that_a_gate_adds() -> None:
    assert [(problem.status, problem.kind) for problem in gate_problems()] == [
        (422, "invalid"),
        (503, "overloaded"),
        (504, "deadline-exceeded"),
        (503, "stopping"),
    ]
