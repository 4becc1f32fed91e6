"""GET /metrics."""

import gzip
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.http.resource import Resource
from api.telemetry.families import render


def metrics_route(
    registry: CollectorRegistry, *, sample: Callable[[], None] = lambda: None, compresses: bool = False
) -> BaseRoute:
    """Return the route of /metrics, in either format of Prometheus. With authentication it requires the read scope.

    `sample` is called before each response. With `compresses` a client that accepts gzip gets it; the API does without,
    since compression would block its event loop.
    """

    async def get_metrics(request: Request) -> Response:
        sample()
        content, media_type = render(registry, ", ".join(request.headers.getlist("accept")))
        if compresses and gzip_accepted(", ".join(request.headers.getlist("accept-encoding"))):
            return Response(gzip.compress(content), headers={"content-encoding": "gzip"}, media_type=media_type)
        return Response(content, media_type=media_type)

    return Route("/metrics", Resource(gate=None, get=(get_metrics, None)))
