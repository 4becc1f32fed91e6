"""The problems of imports and exports."""

from api.errors import Problem


def too_many_at_once() -> Problem:
    """The problem of an import or export beside as many as BULK_MAX_REQUESTS allows."""
    detail = "Other imports and exports are running: try again when one has ended"
    return Problem(503, detail, "overloaded", headers={"Retry-After": "5"})


def client_silent(seconds: float) -> Problem:
    """The problem of a client that stops in the middle of what it sends."""
    return Problem(408, f"Nothing has come for {seconds:g} seconds", headers={"Connection": "close"})


def import_stopped() -> Problem:
    """The problem of an import that the server does not wait for any longer, when it stops."""
    detail = "The server is stopping; nothing behind the lines that are counted was written"
    return Problem(503, detail, "stopping", headers={"Retry-After": "1"})
