"""What a check finds: its colour, what it saw, and on yellow and red what to do about it."""

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
    milliseconds: float | None  # None where it was skipped
    detail: str
    remedy: str | None


def green(detail: str) -> Finding:
    """As it should be."""
    return Finding("green", detail)


def yellow(detail: str, remedy: str) -> Finding:
    """The service works, and somebody should know, or mend it before it grows."""
    return Finding("yellow", detail, remedy)


def red(detail: str, remedy: str) -> Finding:
    """The service, its migrations or its security do not work so."""
    return Finding("red", detail, remedy)


def skipped(detail: str) -> Finding:
    """Not tried, and therefore not known."""
    return Finding("skipped", detail)
