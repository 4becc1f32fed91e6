"""Conditional requests: ETags, If-Match and If-None-Match."""

import re

from starlette.requests import Request

from api.errors import Problem

_ETAG = re.compile(rb'(?:W/)?"([^"]*)"')
_VERSION = re.compile(rb"[1-9][0-9]{0,17}")
_CONDITIONS = frozenset({b"if-match", b"if-none-match"})


def etag(version: int) -> bytes:
    """The strong validator of a version (RFC 9110, section 8.8.3)."""
    return b'"%d"' % version


def read_if_match(request: Request) -> list[int] | None:
    """The versions that If-Match names; None where any will do.

    Weak tags never match (RFC 9110, section 13.1.1 asks for strong comparison), nor does a tag that is not ours.
    """
    header = _read_list(request, b"if-match")
    if header is None or header.strip() == b"*":
        return None
    return [int(tag[1]) for tag in _ETAG.finditer(header) if tag[0].startswith(b'"') and _VERSION.fullmatch(tag[1])]


def read_condition(request: Request) -> list[int] | None:
    """The versions that a change may find, by If-Match. Raises Problem: 412.

    If-None-Match must not be ignored (RFC 9110, section 13.1.2), and no change needs it.
    """
    if not _has_conditions(request):
        return None
    if _read_list(request, b"if-none-match") is not None:
        raise Problem(412, "A change is made conditional by If-Match, not by If-None-Match", "version-mismatch")
    return read_if_match(request)


def is_known(request: Request, version: int) -> bool:
    """Whether who asks for this version has it: If-None-Match names it, or any (RFC 9110, section 13.1.2).

    Raises Problem: 412, where If-Match names others.
    """
    if not _has_conditions(request):
        return False
    versions = read_if_match(request)
    if versions is not None and version not in versions:
        raise version_mismatch()
    header = _read_list(request, b"if-none-match") or b""
    return header.strip() == b"*" or any(tag[1] == b"%d" % version for tag in _ETAG.finditer(header))


def _has_conditions(request: Request) -> bool:
    return bool([name for name, _ in request.scope["headers"] if name in _CONDITIONS])


def _read_list(request: Request, name: bytes) -> bytes | None:
    """A header that is a list, and may come in several lines (RFC 9110, section 5.3); None where there is none."""
    lines = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(lines) if lines else None


def version_mismatch() -> Problem:
    """The problem of an If-Match that names no current version."""
    return Problem(412, "The user has changed: its ETag is not one that If-Match names", "version-mismatch")
