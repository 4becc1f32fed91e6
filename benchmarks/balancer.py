"""HAProxy in front of the instances of the service."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import free_port, running, wait_until_serves
from benchmarks.systems import Server

MISSING = "haproxy is not installed: apt-get install haproxy (Debian, Ubuntu), brew install haproxy (macOS)"

# One thread, so that its limit is one core and can be seen. Each request goes to the instance with the fewest
# connections in use, over one that any client may have opened.
_CONFIGURATION = """\
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    balance leastconn
    http-reuse always
    option httpchk GET /ready
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen users-api
    bind 127.0.0.1:{port}
{servers}
"""


def find_haproxy() -> str | None:
    """Return HAProxy's path; Debian has it outside of an ordinary user's PATH."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin")


@contextmanager
def balanced(program: str, servers: Sequence[Server]) -> Iterator[Server]:
    """Start HAProxy in front of servers and wait until it serves. Raises processes.StartError."""
    port = free_port()
    addresses = [server.url.removeprefix("http://") for server in servers]
    lines = "\n".join(f"    server {n} {address} check inter 1s" for n, address in enumerate(addresses, 1))
    with TemporaryDirectory(prefix="users-api-bench-") as scratch:
        file, log = Path(scratch) / "haproxy.cfg", Path(scratch) / "log"
        file.write_text(_CONFIGURATION.format(port=port, servers=lines))
        with (
            log.open("wb") as output,
            running([program, "-db", "-f", str(file)], environment={}, directory=Path(scratch), log=output) as process,
        ):
            wait_until_serves(process, port, "/api/v1/users/1", log)
            yield Server(f"http://127.0.0.1:{port}", process, log)
