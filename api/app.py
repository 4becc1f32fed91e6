"""The application, wired in one place: settings in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from api.batching import Limits
from api.database import Database
from api.http import JSONBody, Resource, respond_not_found
from api.replica import Replica, replicated
from api.settings import Settings, load_settings
from api.users.handlers import Users


def create_app(settings: Settings) -> Router:
    """The application. Nothing is opened before its lifespan begins."""
    limits = Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )
    batching = limits if settings.batching else None
    database = Database(settings)
    databases = [database]
    routes = Users(database, batching).routes()
    if settings.read_database_url is not None:
        replica = Replica(settings, database, batching)
        databases.append(replica)
        routes = replicated(routes, Users(replica, batching).routes(), replica)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await asyncio.gather(*(each.open() for each in databases))
        try:
            yield
        finally:
            await asyncio.gather(*(each.close() for each in databases))

    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    return Router(
        routes=[*routes, Route("/health", Resource(get=get_health))],
        redirect_slashes=False,
        default=respond_not_found,
        lifespan=lifespan,
    )


def app_from_environment() -> Router:
    """The application with the environment's settings: what each uvicorn worker calls."""
    return create_app(load_settings())


async def get_health(request: Request) -> Response:
    """GET /health: the process serves. Never touches the database, which may be asleep."""
    return JSONBody(b'{"status":"healthy"}')
