"""The application, wired in one place: settings in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from api.auth import Guard
from api.batching import Limits
from api.database import Database
from api.documentation import documentation
from api.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from api.http import resources, respond_not_found
from api.limits import Gate
from api.probes import Probes
from api.replica import Replica, replicated
from api.settings import NOBODY_TO_ASK, Settings, SettingsError, load_settings
from api.tokens import Tokens
from api.users.bulk import Bulk
from api.users.handlers import Users
from api.users.queries import select_users


def create_app(settings: Settings) -> ASGIApp:
    """The application. Nothing is opened before its lifespan begins.

    Raises SettingsError where nobody would be asked who they are, and AUTH=off does not say that this is meant.
    """
    if not settings.asks_for_credentials and settings.auth != "off":
        raise SettingsError(NOBODY_TO_ASK)
    database = Database(settings)
    databases = [database]
    gate = Gate(settings.requests_max_under_way)
    described = served = routes(settings, database, gate)
    if settings.read_database_url is not None:
        replica = Replica(settings, database, _limits(settings))
        databases.append(replica)
        served = replicated(described, Users(replica, _limits(settings), gate).routes(), replica)
    tokens = None
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url:
        tokens = Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await asyncio.gather(*(each.open() for each in databases))
        # Starting does not wait for the issuer: the log says where its keys cannot be had.
        fetching = asyncio.create_task(tokens.keys.keep_fresh()) if tokens else None
        try:
            yield
        finally:
            if fetching:
                fetching.cancel()
            await asyncio.gather(*(each.close() for each in databases))

    documents = documentation(described)
    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    app: ASGIApp = Router(
        routes=[*served, *documents], redirect_slashes=False, default=respond_not_found, lifespan=lifespan
    )
    if settings.asks_for_credentials:
        open_paths = [path for path, resource in resources([*described, *documents]) if resource.is_open]
        app = Guard(app, keys=settings.keys, tokens=tokens, open_paths=open_paths)
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


def routes(settings: Settings, database: Database, gate: Gate | None = None) -> list[BaseRoute]:
    """The paths of the API. Opens nothing."""
    users = Users(database, _limits(settings), gate or Gate(settings.requests_max_under_way))
    # The smallest statement is one that requests use: it shows that the schema is there too.
    probes = Probes(database, partial(select_users, database, ()), settings.readiness_probe_seconds)
    return [*users.routes(), *Bulk(database, settings).routes(), *probes.routes()]


def _limits(settings: Settings) -> Limits | None:
    if not settings.batching:
        return None
    return Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )
