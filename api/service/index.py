"""GET /: leads to the documentation."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.http.operation import Content, Operation, ResponseDoc
from api.http.resource import Resource
from api.http.response import JSONBody

_BODY = b'{"documentation":"/docs","openapi":"/openapi.json"}'
_PATH = {"type": "string", "format": "uri-reference"}
_INDEX = Operation(
    summary="Where is the documentation?",
    description="Requires no authentication, as the documentation itself.",
    responses={
        200: ResponseDoc(
            "The paths of the documentation: a page for browsers, and an OpenAPI document for programs.",
            [
                Content(
                    {
                        "type": "object",
                        "properties": {"documentation": _PATH, "openapi": _PATH},
                        "required": ["documentation", "openapi"],
                    },
                    {"documentation": "/docs", "openapi": "/openapi.json"},
                )
            ],
        )
    },
    uses_database=False,
)


def index_route() -> BaseRoute:
    """Return the route of /."""
    return Route("/", Resource(gate=None, is_open=True, get=(get_index, _INDEX)))


async def get_index(request: Request) -> Response:
    """GET /: the paths of the documentation."""
    return JSONBody(_BODY)
