"""HTTP resources: the ASGI application of one path, and the lookup of resources in routes."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.convertors import Convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from api.errors import Problem, to_response
from api.http.gate import Gate
from api.http.headers import SECURITY_HEADERS
from api.http.operation import Operation
from api.http.response import send_problem

Headers = Sequence[tuple[bytes, bytes]]
Handler = Callable[[Request], Awaitable[Response]]
Described = tuple[Handler, Operation | None]
"""A handler and its documentation; None leaves it out of /openapi.json."""


class Resource:
    """The ASGI application of one path: a handler for each method, and a problem for every exception.

    GET also serves HEAD (the server drops the body). Any other method is 405 with Allow. `is_open` means that no
    authentication is required; `headers` are added to every response; the `gate` bounds the requests, and None leaves
    them unbounded: for probes, documents, and what bounds itself. With `primary_only` a read replica serves no request.
    """

    def __init__(
        self,
        *,
        gate: Gate | None,
        is_open: bool = False,
        primary_only: bool = False,
        headers: Headers = SECURITY_HEADERS,
        **methods: Described,
    ) -> None:
        self.is_open = is_open
        self.primary_only = primary_only
        self._headers = headers
        self.gate = gate
        self.methods = {method.upper(): described for method, described in methods.items()}
        self._handlers = {method: handler for method, (handler, _) in self.methods.items()}
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]
        self.allowed = frozenset(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        request = Request(scope, receive, send)
        handler = self._handlers.get(scope["method"], self._refuse)
        try:
            response = await (self.gate.admit(handler, request) if self.gate else handler(request))
        except ClientDisconnect:
            return
        except Exception as error:  # The boundary: every exception becomes a problem.
            response = to_response(error)
        response.raw_headers.extend(self._headers)
        await response(scope, receive, send)

    async def _refuse(self, request: Request) -> Response:
        raise Problem(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(self.allowed))})


def resources(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, Resource]]:
    """Yield the path and the Resource of each route that has one."""
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            yield route.path_format, route.endpoint


class Routes(Router):
    """The application of `routes`: a path that is not exactly one of theirs is 404, and nothing redirects.

    It is Starlette's router without Starlette's application, which would add two layers of exception handlers to each
    request: Resource handles every exception already. Resources whose paths have no parameter, or whose last segment is
    the only one, are looked up; the other routes are tried in turn, behind them.
    """

    def __init__(
        self, routes: Sequence[BaseRoute], lifespan: Callable[[object], AbstractAsyncContextManager[None]] | None = None
    ) -> None:
        for route in routes:
            if isinstance(route, Route):
                # Starlette's pattern ends in `$`, which matches before a line feed too: /health%0A would be /health.
                route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
        super().__init__(routes, redirect_slashes=False, default=_respond_not_found, lifespan=lifespan)
        self._fixed: dict[str, Route] = {}
        self._by_directory: dict[str, tuple[Route, str, Convertor[Any]]] = {}
        for route in routes:
            if isinstance(route, Route) and isinstance(route.endpoint, Resource):
                directory = route.path.rpartition("/")[0]
                if not route.param_convertors:
                    self._fixed.setdefault(route.path, route)
                elif "{" not in directory and len(route.param_convertors) == 1:
                    ((name, convertor),) = route.param_convertors.items()
                    self._by_directory.setdefault(directory, (route, name, convertor))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        if scope["type"] == "http" and not scope.get("root_path"):
            path: str = scope["path"]
            params: dict[str, Any] = {}
            route = self._fixed.get(path)
            if route is None and (found := self._by_directory.get(path[: path.rfind("/")])):
                candidate, name, convertor = found
                if match := candidate.path_regex.match(path):
                    route = candidate
                    params[name] = convertor.convert(match[name])
            if route is not None:
                scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, params
                await route.endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


async def _respond_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await send_problem(Problem(404, "Not Found"), scope, receive, send)
