"""Finds what must never be in a log or a refusal: passwords, keys, tokens, URLs that hold one, email addresses.

conftest.py fails the test during which one appeared: in what the service or a library of its logs, at any level; in a
problem that it answers with; or, in tests/cli/test_commands.py, in what a command prints.
"""

import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.telemetry.logs import json_formatter

_SECRETS = {
    "a password": re.compile(r"sesame"),  # what the passwords that tests use have in them
    "a URL with a password": re.compile(r"\b[a-z][a-z+]*://[^\s/@:]*:[^\s/@]+@", re.IGNORECASE),
    "an API key": re.compile(r"\busers_[A-Za-z0-9_-]{20,}"),
    "a token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "an email address": re.compile(r"[A-Za-z0-9._%+-]@[A-Za-z0-9-]+\.[A-Za-z]"),
}
_NOT_OURS = ("httpx", "httpcore", "hypothesis", "faker", "schemathesis", "playwright")  # what tests ask with

found: list[str] = []
"""What was found since the last test, with where it was."""


def secrets_in(text: str) -> list[str]:
    """Return the names of what `text` must not hold."""
    return [name for name, pattern in _SECRETS.items() if pattern.search(text)]


def search(text: str, where: str) -> None:
    """Keep in `found` what `text` must not hold."""
    found.extend(f"{name} in {where}: {text}" for name in secrets_in(text))


class LogScan(logging.Handler):
    """Searches every record as the service prints it, its fields and its exception included."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(json_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Search one record."""
        if not record.name.startswith(_NOT_OURS):
            search(self.format(record), f"the log ({record.name})")


def scan_answers(app: ASGIApp) -> ASGIApp:
    """The application, every problem of which is searched."""

    async def scanned(scope: Scope, receive: Receive, send: Send) -> None:
        is_problem = False

        async def searching(message: Message) -> None:
            nonlocal is_problem
            if message["type"] == "http.response.start":
                headers = message["headers"]
                is_problem = (b"content-type", b"application/problem+json") in headers
                search(repr(headers), "the headers of an answer")
            elif is_problem:
                search(message.get("body", b"").decode(), "a problem")
            await send(message)

        await app(scope, receive, searching)

    return scanned
