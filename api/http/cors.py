"""Cross-origin requests (CORS): the origins whose pages may call the API from a browser."""

import re
from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.http.headers import REQUEST_HEADERS, RESPONSE_HEADERS

_ORDER = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ORIGIN = re.compile(r"\*|https?://[^/?#\s@]+")


def parse_origins(text: str) -> list[str]:
    """Read CORS_ORIGINS: origins separated by commas or blanks, or `*`. Raises ValueError."""
    origins = text.replace(",", " ").split()
    for number, origin in enumerate(origins, start=1):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"entry {number} is not an origin such as https://app.example.com, without a path")
    return origins


def allow_origins(app: ASGIApp, origins: list[str], methods: Iterable[str]) -> ASGIApp:
    """Return `app` with CORS for these origins and methods."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=sorted(methods, key=_ORDER.index),
        allow_headers=["Authorization", "Content-Type", "X-Request-Id", "traceparent", *REQUEST_HEADERS],
        expose_headers=list(RESPONSE_HEADERS),
    )
