"""The application, wired in one place: settings in, an ASGI application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from api.batching import Limits
from api.database import Database
from api.http import JSONBody, Resource, respond_not_found
from api.operation import Answer, Content, Operation
from api.settings import Settings, load_settings
from api.users.bulk import Bulk
from api.users.handlers import Users

_HEALTH = Operation(
    summary="Is the service up?",
    description="Never touches the database, which may be asleep.",
    answers={200: Answer("It is.", [Content({"const": {"status": "healthy"}}, {"status": "healthy"})])},
    uses_database=False,
    tag="service",
)


def create_app(settings: Settings) -> Router:
    """The application. Nothing is opened before its lifespan begins."""
    database = Database(settings)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await database.open()
        try:
            yield
        finally:
            await database.close()

    limits = Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )
    users = Users(database, limits if settings.batching else None)
    bulk = Bulk(database, settings)
    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    return Router(
        routes=[*users.routes(), *bulk.routes(), Route("/health", Resource(is_open=True, get=(get_health, _HEALTH)))],
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
