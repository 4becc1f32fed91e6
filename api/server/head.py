"""The parts of a request's head that the parser leaves unchecked: target, Host and Transfer-Encoding (RFC 9112)."""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address

from api.errors import Problem

# RFC 3986, section 3.2.2: a name or an IPv4 address, or an IPv6 address in brackets. No user, and no empty name, which
# RFC 9110, section 4.2.1 forbids. Nothing repeats within a repetition, so that matching takes linear time.
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)


def parse_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a target that is not a plain path (RFC 9112, section 3.2). Raises Problem: 400."""
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _is_authority(absolute[1]):
        raise Problem(400, "The target of a request is a path, or a URL with a host and without a fragment")
    return absolute[2] or b"/", absolute[3] or b""


def check_framing(version: str, fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Check Host and Transfer-Encoding. Raises Problem: 400 or 501.

    The parser takes `gzip, chunked` as if it were `chunked`. Other codings it refuses only once the request is running.
    """
    hosts = [value for name, value in fields if name == b"host"]
    codings = b",".join([value for name, value in fields if name == b"transfer-encoding"]).lower()
    if version not in ("1.0", "1.1"):
        raise Problem(400, "This server speaks HTTP/1.1")
    # Section 3.2. A proxy in front may have chosen a different one of several.
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise Problem(400, "A request has one Host field")
    if hosts and not _is_authority(hosts[0]):
        raise Problem(400, "The Host field is a host, or a host and a port")
    if codings and version == "1.0":
        raise Problem(400, "HTTP/1.0 has no Transfer-Encoding")  # section 6.1
    if codings not in (b"", b"chunked"):
        raise Problem(501, "The only Transfer-Encoding is chunked")  # section 6.1


def _is_authority(text: bytes) -> bool:
    match = _AUTHORITY.fullmatch(text)
    if match is None or match[1] is None:
        return match is not None
    try:
        IPv6Address(match[1].decode())
    except ValueError:
        return False
    return True
