"""The problems of users, and the constraint that maps to one.

POST, keyed creations and imports find a taken address in their statement. They violate the constraint only if another
session creates the address meanwhile; so does PATCH always.
"""

from api.database.indexes import register_index
from api.errors import Problem, register_constraint

EMAIL_KEY = "users_email_key"
"""The unique index of addresses."""


def email_taken() -> Problem:
    """The problem of an address that belongs to another user."""
    return Problem(409, "Email already registered", "email-taken")


def user_not_found() -> Problem:
    """The problem of an id without a user."""
    return Problem(404, "User not found")


register_constraint(EMAIL_KEY, email_taken)
register_index(EMAIL_KEY, "public.users (lower(email COLLATE pg_c_utf8))")
