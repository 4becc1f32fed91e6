"""The finding of a check: its colour, the evidence, and on yellow and red the remedy."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["green", "yellow", "red", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. Neither text holds a password, nor a URL."""

    status: Status
    detail: str
    remedy: str | None = None  # one line, on every yellow and red


@dataclass(frozen=True, slots=True)
class Step:
    """One check of one URL, as `users-api doctor --json` shows it."""

    url: str  # DATABASE_URL or DIRECT_URL
    step: str
    status: Status
    milliseconds: float | None  # None if it was skipped
    detail: str
    remedy: str | None


def green(detail: str) -> Finding:
    """Return the finding that all is well."""
    return Finding("green", detail)


def yellow(detail: str, remedy: str) -> Finding:
    """Return the finding that the service works, with something that an operator should know or fix."""
    return Finding("yellow", detail, remedy)


def red(detail: str, remedy: str) -> Finding:
    """Return the finding that the service, its migrations or its security do not work."""
    return Finding("red", detail, remedy)


def skipped(detail: str) -> Finding:
    """Return the finding that the check was not tried."""
    return Finding("skipped", detail)
