"""The application, wired in one place: settings in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from api.auth import Guard
from api.batching import Limits
from api.database import Database
from api.documentation import documentation
from api.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from api.http import JSONBody, Resource, respond_not_found
from api.operation import Answer, Content, Operation
from api.settings import NOBODY_TO_ASK, Settings, SettingsError, load_settings
from api.telemetry.endpoint import metrics_route
from api.telemetry.metrics import Metrics
from api.telemetry.middleware import Telemetry
from api.telemetry.setup import metrics_from_environment, tracing_from_environment
from api.tokens import Tokens
from api.users.handlers import Users

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

_HEALTH = Operation(
    summary="Is the service up?",
    description="Never touches the database, which may be asleep.",
    answers={200: Answer("It is.", [Content({"const": {"status": "healthy"}}, {"status": "healthy"})])},
    uses_database=False,
    tag="service",
)


def create_app(settings: Settings, metrics: Metrics | None = None, tracing: "Tracing | None" = None) -> ASGIApp:
    """The application. Nothing is opened before its lifespan begins.

    Without `metrics` it counts for itself, without `tracing` it makes no traces. Raises SettingsError where nobody
    would be asked who they are, and AUTH=off does not say that this is meant.
    """
    if not settings.asks_for_credentials and settings.auth != "off":
        raise SettingsError(NOBODY_TO_ASK)
    metrics = metrics or Metrics()
    database = Database(settings, metrics, tracing)
    tokens = None
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url:
        tokens = Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await database.open()
        if tokens is not None:
            tokens.keys.fetch()  # So that the log says at once when they cannot be had; starting does not wait for it.
        sampling = asyncio.create_task(metrics.keep_sampling())
        try:
            yield
        finally:
            sampling.cancel()
            await database.close()
            if tracing is not None:
                await tracing.close()

    described = routes(settings, database)
    others = documentation(described)
    if settings.metrics_port is None:
        others.append(metrics_route(metrics))
    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    app: ASGIApp = Router(
        routes=[*described, *others], redirect_slashes=False, default=respond_not_found, lifespan=lifespan
    )
    if settings.asks_for_credentials:
        app = Guard(app, keys=settings.keys, tokens=tokens, open_paths=_open_paths([*described, *others]))
    if settings.origins:
        # Outermost: a browser asks first, without credentials, whether it may ask.
        app = CORSMiddleware(
            app,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "traceparent", *REQUEST_HEADERS],
            expose_headers=list(RESPONSE_HEADERS),
        )
    return Telemetry(app, settings, metrics, tracing)


def app_from_environment() -> ASGIApp:
    """The application with the environment's settings: what each uvicorn worker calls."""
    return create_app(load_settings(), metrics_from_environment(), tracing_from_environment())


def routes(settings: Settings, database: Database) -> list[BaseRoute]:
    """The paths of the API. Opens nothing."""
    limits = Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )
    users = Users(database, limits if settings.batching else None)
    return [*users.routes(), Route("/health", Resource(is_open=True, get=(get_health, _HEALTH)))]


async def get_health(request: Request) -> Response:
    """GET /health: the process serves. Never touches the database, which may be asleep."""
    return JSONBody(b'{"status":"healthy"}')


def _open_paths(routes: list[BaseRoute]) -> list[str]:
    return [
        route.path
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, Resource) and route.endpoint.is_open
    ]
