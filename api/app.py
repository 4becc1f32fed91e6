"""The application, wired in one place: settings in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from api.auth.guard import Guard
from api.auth.tokens import Tokens
from api.database.batching import Limits
from api.database.fetch import Database
from api.database.replica import Replica
from api.http.gate import Gate
from api.http.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from api.http.resource import resources, respond_not_found
from api.openapi.pages import documentation
from api.service.metrics import metrics_route
from api.service.probes import Probes
from api.service.read_after import replicated
from api.settings import NOBODY_TO_ASK, Settings, SettingsError
from api.telemetry.metrics import Metrics
from api.telemetry.middleware import Telemetry
from api.users.bulk.handlers import Bulk
from api.users.handlers import Users
from api.users.queries import select_users

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing


def create_app(settings: Settings, metrics: Metrics | None = None, tracing: "Tracing | None" = None) -> ASGIApp:
    """The application. Nothing is opened before its lifespan begins.

    Without `metrics` it counts for itself, without `tracing` it makes no traces. Raises SettingsError where nobody
    would be asked who they are, and AUTH=off does not say that this is meant.
    """
    if not settings.asks_for_credentials and settings.auth != "off":
        raise SettingsError(NOBODY_TO_ASK)
    metrics = metrics or Metrics()
    database = Database(settings, metrics=metrics, tracing=tracing)
    databases = [database]
    gate = Gate(settings.requests_max_under_way)
    metrics.watch(lambda: {("users_api_requests_under_way",): gate.under_way})
    described = served = routes(settings, database, gate)
    if settings.read_database_url is not None:
        replica = Replica(settings, database, _limits(settings), metrics, tracing)
        databases.append(replica)
        served = replicated(described, Users(replica, _limits(settings), gate).routes(), replica)
    tokens = None
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url:
        tokens = Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await asyncio.gather(*(each.open() for each in databases))
        tasks = [asyncio.create_task(metrics.keep_sampling())]
        if tokens:
            # Starting does not wait for the issuer: the log says where its keys cannot be had.
            tasks.append(asyncio.create_task(tokens.keys.keep_fresh()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*(each.close() for each in databases))
            if tracing is not None:
                await tracing.close()

    others = documentation(described)
    if settings.metrics_port is None:
        others.append(metrics_route(metrics.registry(), sample=metrics.sample))
    # Starlette's router without its application: that adds two layers to each request, a last resort for exceptions and
    # a table of handlers for them, and a Resource is both already.
    app: ASGIApp = Router(
        routes=[*served, *others], redirect_slashes=False, default=respond_not_found, lifespan=lifespan
    )
    if settings.asks_for_credentials:
        open_paths = [path for path, resource in resources([*described, *others]) if resource.is_open]
        app = Guard(app, keys=settings.keys, tokens=tokens, open_paths=open_paths)
    if settings.origins:
        # Outermost: a browser asks first, without credentials, whether it may ask.
        app = CORSMiddleware(
            app,
            allow_origins=settings.origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id", "traceparent", *REQUEST_HEADERS],
            expose_headers=list(RESPONSE_HEADERS),
        )
    return Telemetry(
        app,
        metrics,
        tracing,
        slow_request_seconds=settings.slow_request_seconds,
        access_log=settings.access_log,
        server_timing=settings.server_timing,
    )


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
