"""Debian's nginx in front of a server."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import lacking
from tests.support.waiting import wait_until

_NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
_CONFIGURATION = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{servers}
}}
"""


@contextmanager
def nginx(directory: Path, port: int, servers: str) -> Iterator[tuple[str, int]]:
    """Run nginx with the content of its `http` block, which listens on a port of 127.0.0.1: the value."""
    if _NGINX is None:
        lacking("no nginx: apt-get install nginx-light")
    configuration = directory / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory, servers=servers))
    process = subprocess.Popen([_NGINX, "-p", directory, "-c", configuration, "-e", directory / "error.log"])
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (directory / "error.log").read_text()
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
