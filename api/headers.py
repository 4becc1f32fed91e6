"""The headers that clients send and get, described once: for the documentation, and for what CORS lets browsers use."""

from collections.abc import Mapping
from typing import Any

SECURITY_HEADERS = [
    # Also to browsers that were led here by somebody else's page, an answer is data: never sniffed, rendered or framed,
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    # and never kept by anybody but who asked, who asks again (with If-None-Match) before using it again.
    (b"cache-control", b"private, no-cache"),
]
"""What every answer carries. Strict-Transport-Security is for whoever speaks TLS to the client."""

REQUEST_ID = "^(?!.*users_)[A-Za-z0-9._:/+=-]{1,64}$"
"""What names a request. It is logged: without "@" it is no address and no URL with a password, and no API key fits."""

REQUEST_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "If-Match": {
        "description": "Change the user only while its ETag is one of these (RFC 9110, section 13.1.1); else 412.",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "If-None-Match": {
        "description": "Answer 304 while the ETag is one of these (RFC 9110, section 13.1.2).",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "X-Request-Id": {
        "description": "A name for this request in the server's log: 1 to 64 of the characters `A-Za-z0-9._:/+=-`. "
        "Without it, or where it is something else, the server makes one.",
        "schema": {"type": "string", "examples": ["2b9ea715591e7aa5"]},
    },
}
"""By name, an OpenAPI Parameter Object without its name and place; none is required.

Examples are the schema's: Swagger UI would send one of the parameter itself with every request that is tried out.
"""

RESPONSE_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "X-Request-Id": {
        "description": "The name of the request in the server's log: its client's, or a new one.",
        "schema": {"type": "string", "pattern": REQUEST_ID},
        "example": "2b9ea715591e7aa5",
        "required": True,
    },
    "ETag": {
        "description": "The version of the user, a strong validator for If-Match and If-None-Match.",
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
        "example": '"1"',
        "required": True,
    },
    "Location": {
        "description": "The path of the new user.",
        "schema": {"type": "string", "format": "uri-reference"},
        "example": "/api/v1/users/5",
        "required": True,
    },
    "Link": {
        "description": 'The next page, `rel="next"` (RFC 8288). Only where this page is full.',
        "schema": {"type": "string"},
        "example": '</api/v1/users?after=100&limit=100>; rel="next"',
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "1",
        "required": True,
    },
    "WWW-Authenticate": {
        "description": "What is missing (RFC 6750, section 3).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="users-api"',
        "required": True,
    },
}
"""By name, an OpenAPI Header Object."""
