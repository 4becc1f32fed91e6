"""For schemathesis (tests/openapi/test_document.py): what no schema can say, and the descriptions say in words."""

from typing import Any
from uuid import uuid4

import schemathesis
from email_validator import EmailNotValidError, validate_email
from hypothesis import strategies as st


def _is_valid(address: str) -> bool:
    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


# An address is what email-validator takes: no quoted local part, no special-use domain.
schemathesis.openapi.format("idn-email", st.emails().filter(_is_valid))


# Parameters of GET /api/v1/users that fit together; those of two ways exclude each other.
_WAYS = ({"email"}, {"q"}, {"created_after", "created_before"}, {"order"}, {"after"}, {"skip"})


@schemathesis.serializer("application/x-ndjson")
def _as_it_is(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Keep what is meant to be valid to what the descriptions say, and OpenAPI 3.1 cannot."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.headers and "Request-Timeout" in case.headers:
        case.headers["Request-Timeout"] = "60"  # 0 is none, and one that is short rightly ends in a 504
    if case.query and case.operation.label == "GET /api/v1/users":
        case.query.pop("cursor", None)  # none but a header Link names one
        way = next((way for way in _WAYS if way & case.query.keys()), set())
        for name in case.query.keys() - way - {"limit"}:
            del case.query[name]
    if case.headers and (key := case.headers.get("Idempotency-Key")):
        case.headers["Idempotency-Key"] = f"{key[:200]}-{uuid4()}"  # each names one creation
