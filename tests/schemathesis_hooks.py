"""For schemathesis (tests/test_openapi.py): what no schema can say, and the descriptions say in words."""

import re
from typing import Any

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


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Change what the parameters of OpenAPI 3.1 cannot say, and what a client asks for itself."""
    if re.fullmatch("[0-9.]+", case.headers.get("Request-Timeout", "") if case.headers else ""):
        case.headers["Request-Timeout"] = "60"  # 0 is none, and one that is short rightly ends in a 504.
    # `skip` and `after` exclude each other.
    if case.meta is not None and case.meta.generation.mode.is_positive and "after" in (case.query or {}):
        case.query.pop("skip", None)
