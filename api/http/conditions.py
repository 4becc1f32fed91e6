"""Conditional requests: ETags, If-Match and If-None-Match.

GET compares versions here; PATCH and DELETE compare them in their statement.
"""

import re

from starlette.requests import Request

from api.errors import Problem

_ETAG = re.compile(rb'(?:W/)?"([^"]*)"')
_VERSION = re.compile(rb"[1-9][0-9]{0,17}")
_CONDITIONS = frozenset({b"if-match", b"if-none-match"})


def etag(version: int) -> bytes:
    """Return the strong validator of a version (RFC 9110, section 8.8.3)."""
    return b'"%d"' % version


def read_if_match(request: Request) -> list[int] | None:
    """Return the versions in If-Match, None if every version matches.

    Weak tags never match: RFC 9110, section 13.1.1 requires strong comparison. Nor do tags of another format.
    """
    header = _read_list(request, b"if-match")
    if header is None or header.strip() == b"*":
        return None
    return [int(tag[1]) for tag in _ETAG.finditer(header) if tag[0].startswith(b'"') and _VERSION.fullmatch(tag[1])]


def read_condition(request: Request) -> list[int] | None:
    """Return the versions that a change requires, None for any. Raises Problem: 412 if If-None-Match is sent.

    If-None-Match must not be ignored (RFC 9110, section 13.1.2), and no change needs it.
    """
    if not _has_conditions(request):
        return None
    if _read_list(request, b"if-none-match") is not None:
        raise Problem(412, "A change is made conditional by If-Match, not by If-None-Match", "version-mismatch")
    return read_if_match(request)


def is_known(request: Request, version: int, noun: str) -> bool:
    """Return whether If-None-Match matches `version` (RFC 9110, section 13.1.2); `noun` names the row.

    Raises Problem: 412 if If-Match does not match it.
    """
    if not _has_conditions(request):
        return False
    versions = read_if_match(request)
    if versions is not None and version not in versions:
        raise version_mismatch(noun)
    header = _read_list(request, b"if-none-match") or b""
    return header.strip() == b"*" or any(tag[1] == b"%d" % version for tag in _ETAG.finditer(header))


def _has_conditions(request: Request) -> bool:
    return bool([name for name, _ in request.scope["headers"] if name in _CONDITIONS])


def _read_list(request: Request, name: bytes) -> bytes | None:
    """Return a list header, its lines joined (RFC 9110, section 5.3), or None."""
    lines = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(lines) if lines else None


def version_mismatch(noun: str) -> Problem:
    """The problem of an If-Match without the current version."""
    return Problem(412, f"The {noun} has changed: its ETag is not one that If-Match names", "version-mismatch")
