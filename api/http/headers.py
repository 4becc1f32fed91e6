"""The headers that clients send and get, described once: for the documentation, and for what CORS lets browsers use."""

from collections.abc import Mapping
from typing import Any

SECURITY_HEADERS = [
    # Never taken for anything but what it says it is: so it is no document, and needs no policy for one.
    (b"x-content-type-options", b"nosniff"),
    # Never kept by anybody but who asked, who asks again (with If-None-Match) before using it again.
    (b"cache-control", b"private, no-cache"),
]
"""What every answer carries, /docs more. Strict-Transport-Security is for whoever speaks TLS to the client."""

REQUEST_ID = "^(?!.*users_)[A-Za-z0-9._:/+=-]{1,64}$"
"""What names a request. It is logged: without "@" it is no address and no URL with a password, and no API key fits."""

REQUEST_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "If-Match": {
        "description": "Only while the user's ETag is one of these (RFC 9110, section 13.1.1); else 412.",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "If-None-Match": {
        "description": "Answer 304 while the ETag is one of these (RFC 9110, section 13.1.2).",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "Request-Timeout": {
        "description": "Seconds, above 0, after which no answer is of use: then 504, and the statement is cancelled. "
        "Shortens the server's own time-outs, and never lengthens them.",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "examples": ["2.5"]},
    },
    "Read-After": {
        "description": "What the answer to a write said: the answer then shows that write, also behind a read replica.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "description": "A name for this creation, of the caller's choice. Sent again within 24 hours, the same one "
        "gets the first answer again, and another one 422: so it is safe to send again where its outcome is unknown.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
            "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        },
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
    "Read-After": {
        "description": "Only behind a read replica: send it with a GET that has to see this write.",
        "schema": {"type": "string"},
        "example": "0/16B3748",
    },
    "Idempotency-Replayed": {
        "description": "`true` where this answer was given before, to the same Idempotency-Key.",
        "schema": {"const": "true"},
        "example": "true",
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
