"""The problems of users.

POST, keyed creations and imports find a taken address in their statement. They violate the constraint only if another
session creates the address meanwhile; so does PATCH always. resource.py maps it to its problem.
"""

from api.errors import Problem
from api.resources.rows import Rows

USER = Rows("user", "/api/v1/users")
"""Each user is a versioned row."""

EMAIL_KEY = "users_email_key"
"""The unique index of addresses."""


def email_taken() -> Problem:
    """The problem of an address that belongs to another user."""
    return Problem(409, "Email already registered", "email-taken")
