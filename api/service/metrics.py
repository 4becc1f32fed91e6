"""GET /metrics."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.http.resource import Resource
from api.telemetry.families import render
from api.telemetry.metrics import Metrics


def metrics_route(metrics: Metrics) -> BaseRoute:
    """The path that Prometheus asks, in either of the two formats that it speaks; whoever may read may ask too."""
    registry = metrics.registry()

    async def get_metrics(request: Request) -> Response:
        metrics.sample()
        content, media_type = render(registry, request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    return Route("/metrics", Resource(get=(get_metrics, None)))
