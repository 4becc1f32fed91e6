"""Search for secrets in logs, problems and output: passwords, keys, tokens, URLs with a password, email addresses.

conftest.py fails the test during which one appears: in a log record of the service or its libraries, at any level; in a
problem response; or in what a command prints.
"""

import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.telemetry.logs import json_formatter

_SECRETS = {
    "a password": re.compile(r"sesame"),  # part of every password in the tests
    "a URL with a password": re.compile(r"\b[a-z][a-z+]*://[^\s/@:]*:[^\s/@]+@", re.IGNORECASE),
    "an API key": re.compile(r"\busers_[A-Za-z0-9_-]{20,}"),
    "a token": re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    "an email address": re.compile(r"[A-Za-z0-9._%+-]@[A-Za-z0-9-]+\.[A-Za-z]"),
}
_NOT_OURS = ("httpx", "httpcore", "hypothesis", "faker", "schemathesis", "playwright")  # the clients of the tests

found: list[str] = []
"""The secrets found since the last test, each with its place."""


def secrets_in(text: str) -> list[str]:
    """Return the kinds of secrets in `text`."""
    return [name for name, pattern in _SECRETS.items() if pattern.search(text)]


def search(text: str, where: str) -> None:
    """Add the secrets in `text` to `found`."""
    found.extend(f"{name} in {where}: {text}" for name in secrets_in(text))


class LogScan(logging.Handler):
    """Search every record as the service prints it, with its fields and its exception."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(json_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Search one record."""
        if not record.name.startswith(_NOT_OURS):
            search(self.format(record), f"the log ({record.name})")


def scan_answers(app: ASGIApp) -> ASGIApp:
    """Return the application with every problem and every response header searched."""

    async def scanned(scope: Scope, receive: Receive, send: Send) -> None:
        is_problem = False

        async def searching(message: Message) -> None:
            nonlocal is_problem
            if message["type"] == "http.response.start":
                headers = message["headers"]
                is_problem = (b"content-type", b"application/problem+json") in headers
                search(repr(headers), "the headers of a response")
            if is_problem:
                search(message.get("body", b"").decode(), "a problem")
            await send(message)

        await app(scope, receive, searching)

    return scanned
