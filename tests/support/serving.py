"""Serve an ASGI application as in production: by uvicorn with uvloop and httptools, on a free port."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import uvicorn
from starlette.types import Receive, Send

from api.server.protocol import HTTPProtocol
from api.settings import Settings
from tests.support.leaks import scan_answers
from tests.support.roles import READER, SERVER, as_role


def settings_for(url: str, **overrides: object) -> Settings:
    """Return settings for one database, whatever the environment holds; without credentials, authentication is off.

    The application gets the least privileged roles that docs/neon.md creates, and not the superuser of the tests.
    """
    if not {"api_keys", "jwt_issuer"} & overrides.keys():
        overrides.setdefault("auth", "off")
    if isinstance(replica := overrides.get("read_database_url"), str):
        overrides["read_database_url"] = as_role(replica, READER)
    return Settings(database_url=as_role(url, SERVER), direct_url=url, **overrides)  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """A server that ends within milliseconds: uvicorn naps for 0.1 s twice, which most tests would wait for."""

    async def main_loop(self) -> None:
        """Return when the server is to stop."""
        for counter in count():
            if await self.on_tick(counter):
                return
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does: the requests in progress have 5 s."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(5000):
            if not self.server_state.connections and not self.server_state.tasks:
                break
            await asyncio.sleep(0.001)
        for task in self.server_state.tasks:
            assert not task.done(), "the server waits for a request that has ended"
            task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def serve(app: Any, http: type[HTTPProtocol] = HTTPProtocol, host: str = "127.0.0.1") -> Iterator[str]:
    """Run `app` with its lifespan in a thread, and yield its base URL, such as `http://127.0.0.1:41234`."""
    server = _Server(
        uvicorn.Config(
            scan_answers(app),
            host=host,
            port=0,
            loop="uvloop",
            http=http,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the application did not start: see the log above")
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


async def live(receive: Receive, send: Send) -> None:
    """The lifespan of an application that opens nothing."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
