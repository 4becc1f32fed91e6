"""The problems of imports and exports."""

from api.errors import Problem
from api.http.request import MIN_BYTES_A_SECOND


def too_many_at_once() -> Problem:
    """The problem of an import or export beyond BULK_MAX_REQUESTS."""
    detail = "Other imports and exports are running: try again when one has ended"
    return Problem(503, detail, "overloaded", headers={"Retry-After": "5"})


def client_silent(seconds: float) -> Problem:
    """The problem of a client that stops sending in the middle of a body."""
    return Problem(408, f"Nothing has come for {seconds:g} seconds", headers={"Connection": "close"})


def client_slow(seconds: float) -> Problem:
    """The problem of a client that sends a body byte by byte."""
    detail = f"Less than {int(MIN_BYTES_A_SECOND * seconds)} bytes have come in {seconds:g} seconds"
    return Problem(408, detail, headers={"Connection": "close"})


def import_stopped() -> Problem:
    """The problem of an import that is cancelled because the server stops."""
    detail = "The server is stopping; nothing behind the lines that are counted was written"
    return Problem(503, detail, "stopping", headers={"Retry-After": "1"})
