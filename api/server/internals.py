"""The private parts of uvicorn that this package relies on.

uvicorn documents `Config`, `Server` and `run`. These parts are beyond that and may change in any release, so
pyproject.toml allows one minor version. tests/server/test_internals.py lists every method and attribute that is relied
on, with the digest of its source, and fails when another version differs in one. Of httptools only documented methods
are used.

- `HttpToolsProtocol`, with its `FlowControl`: the limits of `HTTPProtocol` have to know what the parser has read.
- `RequestResponseCycle`: `Cycle` sends head and body by one system call.
- `ServerState` and `Config.encoded_headers`: `Connection: close` is added to every response when a server drains.
- `Server`: draining delays the end of its main loop, which `on_tick` decides ten times a second.
"""

import sys

from uvicorn.supervisors import ChangeReload, Multiprocess

if sys.platform != "win32":  # where httptools is no dependency, and uvicorn's own protocol serves
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = [
    "STATUS_LINE",
    "ChangeReload",
    "HttpToolsProtocol",
    "Multiprocess",
    "RequestResponseCycle",
]
