"""Serve a part of this service's stack by the command that serves the whole, for `benchmarks.profile`.

    python -m benchmarks.stacks constant --port 8000

constant: a bare ASGI callable. starlette: the routes on Starlette with a constant answer. handler: the whole
application, whose statements return at once without PostgreSQL. batching: the same with batches that gather for
STATEMENT_SECONDS. service: the whole, with PostgreSQL. --stock: under uvicorn's own HTTP protocol.
"""

import asyncio
import os
from typing import Any

import click
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import api.server.protocol
import api.server.workers
from api.cli import main as users_api
from api.database.fetch import PooledDatabase
from api.database.statements import Statement
from benchmarks.peers.constant import BODY
from benchmarks.peers.constant import app as constant

STATEMENT_SECONDS = 0.001
"""The gathering time of a batch without PostgreSQL: about the time of a statement on the same machine."""


def starlette_constant() -> ASGIApp:
    """Return a Starlette application with the paths of users and one constant user."""

    async def answer(request: Request) -> Response:
        return Response(BODY, media_type="application/json")

    many, one = "/api/v1/users", "/api/v1/users/{id}"
    return Starlette(routes=[Route(one, answer), Route(many, answer), Route(f"{many}/", answer)])


def without_postgres(seconds: float) -> None:
    """Replace the execution of statements: return a user for every requested id after `seconds`."""

    async def fetch(self: PooledDatabase, statement: Statement, ids: str) -> list[dict[str, Any]]:
        if seconds:
            await asyncio.sleep(seconds)
        body = BODY.decode()
        return [{"id": int(user_id), "version": 1, "body": body} for user_id in ids[1:-1].split(",")]

    PooledDatabase.fetch = fetch  # type: ignore[method-assign, assignment]


@click.command()
@click.argument("stack", type=click.Choice(["constant", "starlette", "handler", "batching", "service"]))
@click.option("--stock", is_flag=True, help="Under uvicorn's own HttpToolsProtocol.")
@click.option("--port", required=True, type=int)
def main(stack: str, stock: bool, port: int) -> None:
    """Serve a part of the stack as `users-api serve` serves the whole, in one worker."""
    if stock:
        api.server.protocol.HTTPProtocol = HttpToolsProtocol  # type: ignore[misc, assignment]
    os.environ["BATCHING"] = "false" if stack == "handler" else "true"
    if stack == "constant":
        api.server.workers.app_from_environment = lambda: constant
    elif stack == "starlette":
        api.server.workers.app_from_environment = starlette_constant
    elif stack != "service":
        without_postgres(STATEMENT_SECONDS if stack == "batching" else 0.0)
    users_api(["serve", "--port", str(port)])


if __name__ == "__main__":
    main()
