"""Conditional requests: ETags, If-Match and If-None-Match.

GET compares versions here; PATCH and DELETE compare them in their statement.
"""

import re

from starlette.requests import Request

from api.errors import Problem
from api.http.request import fields_of, read_list

# RFC 9110, section 8.8.3, with the commas before it and up to the one behind it. `W` is case-sensitive.
_ENTITY_TAG = re.compile(rb'[ \t,]*((?:W/)?"[!#-~\x80-\xff]*")[ \t]*(?=,|\Z)')
_REST = re.compile(rb"[ \t,]*")
_VERSION = re.compile(rb'"([1-9][0-9]{0,17})"')


def etag(version: int) -> bytes:
    """Return the strong validator of a version (RFC 9110, section 8.8.3)."""
    return b'"%d"' % version


def parse_entity_tags(header: bytes) -> list[bytes]:
    """Return the entity tags of If-Match or If-None-Match; none if the header as a whole is not valid."""
    tags, position = [], 0
    while tag := _ENTITY_TAG.match(header, position):
        tags.append(tag[1])
        position = tag.end()
    return tags if _REST.fullmatch(header, position) else []


def read_condition(request: Request) -> list[int] | None:
    """Return the versions that a change requires, None for any. Raises Problem: 412 if If-None-Match is sent.

    If-None-Match must not be ignored (RFC 9110, section 13.1.2), and no change needs it. Weak tags in If-Match never
    match: section 13.1.1 requires strong comparison. Nor do tags of another format, or of a header that is not valid.
    """
    if not _has_conditions(request):
        return None
    if read_list(request, b"if-none-match") is not None:
        raise Problem(412, "A change is made conditional by If-Match, not by If-None-Match", "version-mismatch")
    header = read_list(request, b"if-match")
    if header is None or header.strip() == b"*":
        return None
    return [int(version[1]) for tag in parse_entity_tags(header) if (version := _VERSION.fullmatch(tag))]


def is_known(request: Request, version: int, noun: str) -> bool:
    """Return whether If-None-Match matches `version` (RFC 9110, section 13.1.2); `noun` names the row.

    Raises Problem: 412 if If-Match does not match it.
    """
    return _has_conditions(request) and is_current(request, etag(version), version_mismatch(noun))


def is_current(request: Request, tag: bytes, mismatch: Problem) -> bool:
    """Return whether If-None-Match matches a strong tag. Raises `mismatch` if If-Match does not match it."""
    if_match, if_none_match = (read_list(request, name) for name in (b"if-match", b"if-none-match"))
    if if_match is not None and if_match.strip() != b"*" and tag not in parse_entity_tags(if_match):
        raise mismatch
    if if_none_match is None:
        return False
    return if_none_match.strip() == b"*" or tag in [
        each.removeprefix(b"W/") for each in parse_entity_tags(if_none_match)
    ]


def check_conditions(request: Request, *, is_there: bool) -> None:
    """Check the conditions of a POST to a resource without ETag. Raises Problem: 412.

    They are about that resource, such as a collection, and not about the row that is created: RFC 9110, sections 13.1.1
    and 13.1.2. `*` matches if the resource has a representation (`is_there`), a tag never does.
    """
    if not _has_conditions(request):
        return
    if_match, if_none_match = (read_list(request, name) for name in (b"if-match", b"if-none-match"))
    if if_match is not None and not (is_there and if_match.strip() == b"*"):
        raise Problem(412, "If-Match names an ETag, and this resource has none", "version-mismatch")
    if if_none_match is not None and is_there and if_none_match.strip() == b"*":
        raise Problem(
            412, "If-None-Match: * asks for a resource that does not exist, and this one does", "version-mismatch"
        )


def _has_conditions(request: Request) -> bool:
    fields = fields_of(request.scope)
    return b"if-match" in fields or b"if-none-match" in fields


def version_mismatch(noun: str) -> Problem:
    """The problem of an If-Match without the current version."""
    return Problem(412, f"The {noun} has changed: its ETag is not one that If-Match names", "version-mismatch")
