"""The server of `serve`: one process, or a supervisor and its workers."""

import sys
from socket import socket

import uvicorn

from api.server.internals import ChangeReload, Multiprocess
from api.server.lifecycle import Server
from api.server.supervisor import Supervisor
from api.settings import Settings
from api.telemetry.logs import log_config

_WINDOWS = sys.platform == "win32"


def run_server(settings: Settings, sockets: list[socket], *, workers: int, reload: bool) -> int:
    """Serve the API on bound sockets until a signal ends it. Returns the exit code."""
    config = uvicorn.Config(
        "api.server.workers:app_from_environment",
        factory=True,
        workers=workers,
        reload=reload,
        # Both by name: where they are missing, uvicorn's "auto" falls back silently to slower ones.
        loop="auto" if _WINDOWS else "uvloop",
        http="auto" if _WINDOWS else "api.server.protocol:HTTPProtocol",
        lifespan="on",
        log_config=log_config(settings.log_level),
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Above the idle timeout of common load balancers (60 s): a connection that we close first is a 502 there.
        timeout_keep_alive=75,
    )
    drain, grace = settings.drain_seconds, settings.grace_seconds
    if reload:  # for a developer, who waits for each restart
        server = Server(config, drain_seconds=0, grace_seconds=grace)
        ChangeReload(config, target=server.run, sockets=sockets).run()
    elif workers == 1:
        Server(config, drain_seconds=drain, grace_seconds=grace).run(sockets)
    elif _WINDOWS:  # It lacks the signals that our supervisor uses.
        Multiprocess(config, sockets=sockets).run()
    else:
        return Supervisor(config, sockets, grace_seconds=grace).run()
    return 0
