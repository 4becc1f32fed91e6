"""The request and response headers, described once: for the OpenAPI document and for CORS."""

from collections.abc import Mapping
from typing import Any

SECURITY_HEADERS = [
    # Browsers keep to the declared type: JSON is never rendered as a page, so it needs no content security policy.
    (b"x-content-type-options", b"nosniff"),
    # Only the client may cache it, and must revalidate (with If-None-Match) before reuse.
    (b"cache-control", b"private, no-cache"),
]
"""The headers of every response; /docs has more. Strict-Transport-Security belongs to the proxy that terminates TLS."""

REQUEST_ID = "^(?!.*users_)[A-Za-z0-9._:/+=-]{1,64}$"
"""The pattern of a request id.

Ids are logged: without "@" none is an email address or a URL with a password, and no API key matches.
"""

REQUEST_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "If-Match": {
        "description": "Requires that the {noun}'s ETag is one of these (RFC 9110, section 13.1.1); otherwise 412.",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "If-None-Match": {
        "description": "The response is 304 if the ETag is one of these (RFC 9110, section 13.1.2).",
        "schema": {"type": "string", "examples": ['"1"']},
    },
    "Request-Timeout": {
        "description": "The deadline in seconds, above 0. After it the response is 504, and the statement is cancelled."
        " It can shorten the server's own timeouts, but not lengthen them.",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "examples": ["2.5"]},
    },
    "Read-After": {
        "description": "The value from the response to a write: the read then sees that write, also on a read replica.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "description": "A key for this creation, chosen by the client. The same creation with the same key within 24 "
        "hours gets the first response again, another creation gets 422. So it is safe to repeat a creation whose "
        "outcome is unknown.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
            "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        },
    },
}
"""By name, an OpenAPI Parameter Object without `name` and `in`; none is required.

`{noun}`, `{names}` and `{path}` are those of the resources: api/openapi/document.py fills them in.

Examples are in the schema: Swagger UI would send an example of the parameter with every request.
"""

RESPONSE_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of the request in the server's log: the client's own, or a new one.",
        "schema": {"type": "string", "pattern": REQUEST_ID},
        "example": "2b9ea715591e7aa5",
        "required": True,
    },
    "ETag": {
        "description": "The version of the {noun}, a strong validator for If-Match and If-None-Match.",
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
        "example": '"1"',
        "required": True,
    },
    "Location": {
        "description": "The path of the new {noun}.",
        "schema": {"type": "string", "format": "uri-reference"},
        "example": "{path}/5",
        "required": True,
    },
    "Link": {
        "description": 'The next page, `rel="next"` (RFC 8288). Only if more {names} may follow.',
        "schema": {"type": "string"},
        "example": '<{path}?after=100&limit=100>; rel="next"',
    },
    "Read-After": {
        "description": "Only with a read replica: send it with a GET that must see this write.",
        "schema": {"type": "string"},
        "example": "0/16B3748",
    },
    "Idempotency-Replayed": {
        "description": "`true` if this is the stored response to an earlier request with the same Idempotency-Key.",
        "schema": {"type": "string", "const": "true"},
        "example": "true",
    },
    "Retry-After": {
        "description": "Seconds to wait before the next attempt.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "1",
        "required": True,
    },
    "WWW-Authenticate": {
        "description": "The reason why authentication or authorization failed (RFC 6750, section 3).",
        "schema": {"type": "string"},
        "example": 'Bearer realm="users-api"',
        "required": True,
    },
}
"""By name, an OpenAPI Header Object."""
