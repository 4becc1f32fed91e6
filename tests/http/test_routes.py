"""Routes finds the route that Starlette's own search finds, and takes a path as it is."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Scope

import api.resources.rows  # registers the convertor of ids
from api.http.resource import Resource, Routes

assert api.resources.rows
PATHS = [
    "/teams/{id:id}",
    "/teams",
    "/teams/",
    "/teams/import",
    "/teams/{id:id}/members/{member:id}",
    "/teams/{id:id}/members",
    "/versions/{number:int}",
    "/versions/{name}.json",
    "/files/{rest:path}",
    "/{page}",
    "/",
]


async def _respond(request: Request) -> Response:
    return Response()


ROUTES = [Route(path, Resource(gate=None, get=(_respond, None))) for path in PATHS]


async def route_of(router: Router, path: str, root_path: str = "") -> tuple[int, Any, Any]:
    """Return the status of the response, the template of the route that was found, and the parameters."""
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Message:
        raise AssertionError("nothing reads")

    scope: Scope = {"type": "http", "method": "GET", "path": path, "root_path": root_path, "headers": []}
    await router(scope, receive, send)
    route = scope.get("route")
    assert route is None or scope["endpoint"] is route.endpoint
    return statuses[0], route and route.path, scope.get("path_params")


@pytest.mark.parametrize(
    "path",
    [
        "/teams/5",
        "/teams/x",
        "/teams",
        "/teams/",
        "/teams/import",
        "/teams/5/members/7",
        "/teams/5/members",
        "/teams//members",
        "/versions/7",
        "/versions/7.json",
        "/versions/x",
        "/versions/",
        "/files/a/b",
        "/files/",
        "/about",
        "/",
        "",
        "*",
        "//",
        "/teams//5",
        "/teams/5/",
        "/teams\n",
        "/teams/5\n",
        "/teams/import\n",
        "/TEAMS",
        "/nothing/at/all",
    ],
)
@pytest.mark.parametrize("root_path", ["", "/v2"])
def test_the_route_of_a_path(path: str, root_path: str) -> None:
    async def find() -> None:
        served = f"{root_path}{path}"
        found = await route_of(Routes(ROUTES), served, root_path)
        # Routes has mended the patterns: Starlette's own search over them is the reference.
        assert found == await route_of(Router(ROUTES, redirect_slashes=False), served, root_path)

    asyncio.run(find())


def test_a_line_feed_is_a_part_of_the_path() -> None:
    assert asyncio.run(route_of(Routes(ROUTES), "/versions/7\n")) == (404, None, None)
    assert asyncio.run(route_of(Routes(ROUTES), "/teams\n")) == (200, "/{page}", {"page": "teams\n"})


def test_the_routes_of_the_service_are_looked_up() -> None:
    """Starlette's search, which costs a microsecond for each route that it tries, is left for deeper paths."""
    searched: list[str] = []

    class Watched(Route):
        def matches(self, scope: Scope) -> Any:
            searched.append(scope["path"])
            return super().matches(scope)

    routes = Routes([Watched(path, Resource(gate=None, get=(_respond, None))) for path in PATHS])
    for path in ("/teams/5", "/teams", "/teams/import", "/teams/5/members/7"):
        asyncio.run(route_of(routes, path))
    assert set(searched) == {"/teams/5/members/7"}
