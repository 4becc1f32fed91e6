"""A bare ASGI callable that answers every request with one constant user: the capacity of the server in front of it.

It has no framework, no parsing and no database. No application under the same uvicorn is faster.

    uvicorn --factory benchmarks.peers.constant:create_app_from_environment
"""

from starlette.types import ASGIApp, Receive, Scope, Send

BODY = (
    b'{"id":1,"email":"user1@example.com","name":"User 1",'
    b'"created_at":"2026-01-31T09:30:00.123456+00:00","updated_at":"2026-01-31T09:30:00.123456+00:00"}'
)
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"%d" % len(BODY)), (b"content-type", b"application/json")],
}
_BODY = {"type": "http.response.body", "body": BODY}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request; nothing happens at start and stop."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send(_START)
    await send(_BODY)


def create_app_from_environment() -> ASGIApp:
    """Build the application for uvicorn's --factory."""
    return app
