"""Cross-origin requests (CORS): the origins whose pages may call the API from a browser."""

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.http.headers import REQUEST_HEADERS, RESPONSE_HEADERS

_ORDER = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|(?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?)(?::([0-9]{0,9}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_origins(text: str) -> list[str]:
    """Return the origins in CORS_ORIGINS, separated by commas or blanks, as browsers send them; or `*`.

    Raises ValueError, which quotes nothing: the text may contain a password by mistake.
    """
    origins = []
    for number, entry in enumerate(text.replace(",", " ").split(), start=1):
        try:
            origins.append(entry if entry == "*" else _as_sent(entry))
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
    if not origins:
        raise ValueError("there is no entry: name an origin such as https://app.example.com, or remove it")
    return origins


def _as_sent(text: str) -> str:
    """Return an origin as browsers send it: lower case, no default port. Raises ValueError with the remedy.

    The middleware compares texts, so an origin that no browser writes in this way would never match
    (https://url.spec.whatwg.org/#origin, https://url.spec.whatwg.org/#host-serializing).
    """
    if "*" in text:
        raise ValueError("has a wildcard, but an origin matches as a whole: list each one, or write * alone for all")
    if text.lower() == "null":
        raise ValueError("is null, which every sandboxed page sends: serve the page from an origin, and name that")
    if not text.isascii():
        raise ValueError("has a character outside ASCII: write the host in Punycode, xn--…, as browsers send it")
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        raise ValueError(
            "is not an origin such as https://app.example.com or http://localhost:3000: write http:// or https://, "
            "the host, and :PORT if it is not the default, without a user, a path or a / at the end"
        )
    scheme, host, port = match[1], match[2], int(match[3] or _DEFAULT_PORTS[match[1]])
    if not 1 <= port <= 65535:
        raise ValueError("has a port that does not exist: write one from 1 to 65535")
    return f"{scheme}://{_check_host(host)}" + (f":{port}" if port != _DEFAULT_PORTS[scheme] else "")


def _check_host(host: str) -> str:
    """Return the host as browsers write it. Raises ValueError for an address that they write in another way."""
    with suppress(ValueError):
        if host.startswith("[") and (address := IPv6Address(host[1:-1])).ipv4_mapped is None:
            return f"[{address.compressed}]"
        # A browser takes a host whose last part is a number for an IPv4 address.
        if not re.search(r"(?:^|[.])(?:[0-9]+|0x[0-9a-f]*)[.]?$|^\[", host) or str(IPv4Address(host)) == host:
            return host
    raise ValueError("has an address that no browser writes so: write four numbers, or IPv6 in brackets")


def allow_origins(app: ASGIApp, origins: list[str], methods: Iterable[str]) -> ASGIApp:
    """Return `app` with CORS for these origins and methods."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=sorted(methods, key=_ORDER.index),
        allow_headers=["Authorization", "Content-Type", "X-Request-Id", "traceparent", *REQUEST_HEADERS],
        expose_headers=list(RESPONSE_HEADERS),
    )
