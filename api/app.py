"""The composition root: settings in, an ASGI application out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from api.auth.guard import Guard
from api.auth.scopes import Scopes
from api.database.fetch import PooledDatabase
from api.database.options import batch_limits, database_options, replica_options
from api.database.replica import Replica
from api.environment import SettingsError
from api.http.cors import allow_origins
from api.http.gate import Gate
from api.http.resource import Routes, resources
from api.openapi.document import document
from api.openapi.pages import documentation
from api.resources.description import Description, load, make_routes, ping, words_of
from api.resources.idempotency import keep_erasing
from api.resources.services import Services
from api.service.index import index_route
from api.service.metrics import metrics_route
from api.service.probes import Probes
from api.service.read_after import replicated
from api.settings import AUTHENTICATION_MISSING, Settings
from api.telemetry.metrics import Metrics
from api.telemetry.middleware import Telemetry

if TYPE_CHECKING:
    from api.auth.tokens import Tokens
    from api.telemetry.tracing import Tracing


RESOURCES = load("users")
"""Every resource, by its package. What the rest of the service does for one is derived from its description."""


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    tracing: "Tracing | None" = None,
    *,
    described: Sequence[Description] = RESOURCES,
) -> ASGIApp:
    """Return the application. Nothing is opened before its lifespan starts.

    Without `metrics` the application counts only its own requests; without `tracing` it makes no traces. Raises
    SettingsError if authentication is not configured and AUTH is not off.
    """
    if not settings.authentication_configured and settings.auth != "off":
        raise SettingsError(AUTHENTICATION_MISSING)

    metrics = metrics or Metrics()
    gate = Gate(settings.requests_max_under_way)
    metrics.watch(lambda: {("users_api_requests_under_way",): gate.under_way})

    database = PooledDatabase(database_options(settings), metrics=metrics, tracing=tracing)
    databases: list[PooledDatabase | Replica] = [database]
    documented = served = routes(settings, database, gate, described)
    scopes = scopes_of(described)
    if options := replica_options(settings):
        pool = PooledDatabase(options, metrics=metrics, tracing=tracing)
        replica = Replica(pool, database, settings.replica_wait_seconds, batch_limits(settings))
        databases.append(replica)
        reads = make_routes(described, replace(_services(settings, database, gate), database=replica))
        served = replicated(documented, reads, replica)

    others = documentation(partial(document, documented, scopes, words_of(described)))
    if settings.metrics_port is None:
        others.append(metrics_route(metrics.registry(), sample=metrics.sample))

    tokens = _tokens(settings)
    background: list[Callable[[], Coroutine[Any, Any, None]]] = [metrics.keep_sampling, partial(keep_erasing, database)]
    if tokens:
        # Startup does not wait for the issuer: a failure to fetch its keys is logged.
        background.append(tokens.keys.keep_fresh)

    app: ASGIApp = Routes([*served, *others], _lifespan(databases, background, tracing))
    if settings.authentication_configured:
        open_paths = [path for path, resource in resources([*documented, *others]) if resource.is_open]
        app = Guard(app, keys=settings.keys, tokens=tokens, scopes=scopes, open_paths=open_paths)
    if settings.origins:
        # Outside the guard: preflight requests carry no credentials.
        methods = {method for _, resource in resources(documented) for method in resource.allowed}
        app = allow_origins(app, settings.origins, methods)
    return Telemetry(
        app,
        metrics,
        tracing,
        slow_request_seconds=settings.slow_request_seconds,
        access_log=settings.access_log,
        server_timing=settings.server_timing,
    )


def routes(
    settings: Settings, database: PooledDatabase, gate: Gate | None = None, described: Sequence[Description] = RESOURCES
) -> list[BaseRoute]:
    """Return the documented routes of the API. Opens nothing."""
    services = _services(settings, database, gate or Gate(settings.requests_max_under_way))
    # The probe sends the smallest statements that requests use, so it also fails if the schema is missing.
    probes = Probes(database, partial(ping, described, database), settings.readiness_probe_seconds)
    return [*make_routes(described, services), *probes.routes(), index_route()]


def describe(settings: Settings, described: Sequence[Description] = RESOURCES) -> dict[str, Any]:
    """Return the OpenAPI document. Opens nothing."""
    documented = routes(settings, PooledDatabase(database_options(settings)), described=described)
    return document(documented, scopes_of(described), words_of(described))


def scopes_of(described: Sequence[Description] = RESOURCES) -> Scopes:
    """Return the scopes of the resources."""
    return Scopes({each.name: each.path for each in described})


def _services(settings: Settings, database: PooledDatabase, gate: Gate) -> Services:
    return Services(
        database=database,
        primary=database,
        gate=gate,
        batch_limits=batch_limits(settings),
        bulk_max_requests=settings.bulk_max_requests,
        bulk_idle_seconds=settings.bulk_idle_seconds,
    )


def _tokens(settings: Settings) -> "Tokens | None":
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url:
        from api.auth.tokens import Tokens  # with PyJWT and cryptography, a tenth of the time in which a server starts

        return Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url)
    return None


def _lifespan(
    databases: Sequence[PooledDatabase | Replica],
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    tracing: "Tracing | None",
) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Return the lifespan: it opens and closes the databases, and runs `background` in between."""

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await asyncio.gather(*(each.open() for each in databases))
        tasks = [asyncio.create_task(run()) for run in background]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*(each.close() for each in databases))
            if tracing is not None:
                await tracing.close()

    return lifespan
