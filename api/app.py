"""The application, wired in one place: settings in, an ASGI application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from api.auth import Guard
from api.batching import Limits
from api.database import Database
from api.documentation import documentation
from api.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from api.http import Resource, respond_not_found
from api.limits import Gate
from api.probes import Probes
from api.settings import NOBODY_TO_ASK, Settings, SettingsError, load_settings
from api.tokens import Tokens
from api.users.handlers import Users
from api.users.queries import select_users


def create_app(settings: Settings) -> ASGIApp:
    """The application. Nothing is opened before its lifespan begins.

    Raises SettingsError where nobody would be asked who they are, and AUTH=off does not say that this is meant.
    """
    if not settings.asks_for_credentials and settings.auth != "off":
        raise SettingsError(NOBODY_TO_ASK)
    database = Database(settings)
    tokens = None
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url:
        tokens = Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await database.open()
        if tokens is not None:
            tokens.keys.fetch()  # So that the log says at once when they cannot be had; starting does not wait for it.
        try:
            yield
        finally:
            await database.close()

    described = routes(settings, database)
    documents = documentation(described)
    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    app: ASGIApp = Router(
        routes=[*described, *documents], redirect_slashes=False, default=respond_not_found, lifespan=lifespan
    )
    if settings.asks_for_credentials:
        app = Guard(app, keys=settings.keys, tokens=tokens, open_paths=_open_paths([*described, *documents]))
    if settings.origins:
        # Outermost: a browser asks first, without credentials, whether it may ask.
        app = CORSMiddleware(
            app,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", *REQUEST_HEADERS],
            expose_headers=list(RESPONSE_HEADERS),
        )
    return app


def app_from_environment() -> ASGIApp:
    """The application with the environment's settings: what each uvicorn worker calls."""
    return create_app(load_settings())


def routes(settings: Settings, database: Database) -> list[BaseRoute]:
    """The paths of the API. Opens nothing."""
    limits = Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )
    users = Users(database, limits if settings.batching else None, Gate(settings.requests_max_under_way))
    probes = Probes(database, partial(select_users, database, ()), settings.readiness_probe_seconds)
    return [*users.routes(), *probes.routes()]


def _open_paths(routes: list[BaseRoute]) -> list[str]:
    return [
        route.path
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, Resource) and route.endpoint.is_open
    ]
