"""A request takes as many CPU instructions as committed: creep that no timing would show fails here."""

import shutil
from collections.abc import Iterator

import pytest

from benchmarks import instructions
from benchmarks.database import Database, new_database
from tests.support import lacking

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
ITERATION = 85
"""The instructions of one iteration of an empty loop, about."""


@pytest.fixture(scope="module")
def expected() -> dict[str, int]:
    if shutil.which("valgrind") is None:
        lacking(instructions.MISSING)
    figures = instructions.committed()
    if figures is None:
        lacking(f"no figures of instructions for Python {instructions.PYTHON}: make instructions WRITE=1")
    return figures


@pytest.fixture(scope="module")
def durable(expected: dict[str, int]) -> Iterator[Database]:
    with new_database() as database:
        yield database


def test_a_request_takes_as_many_instructions_as_committed(durable: Database, expected: dict[str, int]) -> None:
    counted = instructions.count(durable)
    assert not (found := instructions.explain(counted, expected)), found


def test_a_loop_of_a_tenth_is_found_in_every_cell(durable: Database, expected: dict[str, int]) -> None:
    iterations = max(expected.values()) // 10 // ITERATION
    counted = instructions.count(durable, plant=iterations)
    found = instructions.differences(counted, expected)
    assert found.keys() == expected.keys()
    added = [counted[cell] - expected[cell] for cell in expected]
    assert added == pytest.approx([iterations * ITERATION] * len(added), rel=0.4)


def test_the_message_names_cell_instructions_and_share() -> None:
    expected = {"get alone": 100_000, "list alone": 100_000, "create alone": 100_000}
    counted = {"get alone": 110_000, "list alone": 102_900, "create alone": 96_000}
    first, second, remedy = instructions.explain(counted, expected).splitlines()
    assert first.startswith("get alone: 110,000 instructions a request, +10,000 (+10.0%")
    assert second.startswith("create alone: 96,000 instructions a request, -4,000 (-4.0%")
    assert remedy.endswith("make instructions WRITE=1")
    assert instructions.explain(expected, expected) == ""
