"""The problems of users, and the constraint that maps to one.

PATCH violates the constraint. POST, keyed creations and imports find a taken address by a missing row: queries.py.
"""

from api.database.indexes import register_index
from api.errors import Problem, register_constraint


def email_taken() -> Problem:
    """The problem of an address that belongs to another user."""
    return Problem(409, "Email already registered", "email-taken")


def user_not_found() -> Problem:
    """The problem of an id without a user."""
    return Problem(404, "User not found")


register_constraint("users_email_key", email_taken)
register_index("users_email_key", "public.users (lower(email COLLATE pg_c_utf8))")
