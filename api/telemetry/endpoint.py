"""GET /metrics."""

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.http import Resource
from api.telemetry.metrics import Metrics


def metrics_route(metrics: Metrics) -> BaseRoute:
    """The path that Prometheus asks, in either of the two formats that it speaks; whoever may read may ask too."""
    registry = metrics.registry()

    async def get_metrics(request: Request) -> Response:
        metrics.sample()
        try:
            encode, media_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # prometheus_client compares the version that is asked for, also one that is no number.
            encode, media_type = choose_encoder("")
        return Response(encode(registry), media_type=media_type)

    return Route("/metrics", Resource(get=(get_metrics, None)))
