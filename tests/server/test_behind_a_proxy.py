"""TLS ends in front of the service: nginx as docs/operations.md configures it, and which headers are believed."""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from api.app import create_app
from benchmarks.processes import free_port
from tests.support import ROOT
from tests.support.nginx import nginx
from tests.support.serving import serve, settings_for
from tests.support.sockets import read_all
from tests.support.users import USERS, create


def configuration(api: str, port: int, directory: Path) -> str:
    """The document's, with the addresses and the certificate of this test."""
    document = (ROOT / "docs/operations.md").read_text()
    text: str
    (text,) = re.findall(r"```text\n(upstream users-api \{.*?)```", document, re.DOTALL)
    for written, used in {
        "127.0.0.1:8000": api,
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen [::]:443 ssl;": f"listen [::1]:{port} ssl;" if has_ipv6() else "",
        "/etc/nginx/users-api": str(directory / "users-api"),
    }.items():
        assert text.count(written) >= 1, written
        text = text.replace(written, used)
    return text


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture
def front(database: str, tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """The port of nginx, and a client's TLS context."""
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost", "127.0.0.1", "::1")
    certificate.private_key_pem.write_to_path(tmp_path / "users-api.key")
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(tmp_path / "users-api.pem", append=number > 0)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with (
        serve(create_app(settings_for(database))) as url,
        nginx(tmp_path, port, configuration(url.removeprefix("http://"), port, tmp_path)),
    ):
        yield port, context


def test_the_configuration_of_the_document(front: tuple[int, ssl.SSLContext]) -> None:
    port, context = front
    for host in ("127.0.0.1", *(["[::1]"] if has_ipv6() else [])):
        with httpx.Client(base_url=f"https://{host}:{port}", verify=context) as client:
            user = create(client, f"{len(host)}@example.com")
            assert client.get(f"{USERS}/{user['id']}").json() == user
            assert client.get("/ready").status_code == 200


def test_an_import_is_neither_buffered_nor_bounded(front: tuple[int, ssl.SSLContext]) -> None:
    """Its answer begins before its body ends, and nginx's own bound of 1 MB does not hold."""
    port, context = front
    head = f"POST {USERS}/import HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n"
    lines, size = 1200, 1000
    body = b"".join(f'{{"email": "{n}@example.com", "name": 5}}'.encode().ljust(size - 1) + b"\n" for n in range(lines))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body[:size])
        begun = connection.recv(1 << 16)
        assert begun.startswith(b"HTTP/1.1 200 ")
        connection.sendall(body[size:])
        answer = begun + read_all(connection)
    (summary,) = re.findall(rb'\{"summary":.*\}', answer)
    assert json.loads(summary)["summary"]["lines"] == lines
    assert len(body) > 1 << 20


def test_no_header_of_a_proxy_is_believed(database: str) -> None:
    """Neither where the service is nor who the client is can be set by a header, so none has to be removed in front."""
    forged = {
        **{"forwarded": "for=192.0.2.1;host=evil.example;proto=https", "x-forwarded-for": "192.0.2.1"},
        **{"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-prefix": "/evil"},
        **{"x-real-ip": "192.0.2.1", "x-original-url": "/health", "x-rewrite-url": "/health"},
        **{"x-http-method-override": "DELETE", "x-forwarded-user": "root", "host": "evil.example"},
    }
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        for headers in ({}, forged):
            answer = client.post(USERS, json={"email": f"{len(headers)}@example.com"}, headers=headers)
            assert answer.headers["location"] == f"{USERS}/{answer.json()['id']}"
        for path in (f"{USERS}?limit=1", f"{USERS}/1", "/openapi.json", "/docs", "/nowhere"):
            plain, other = client.get(path), client.get(path, headers=forged)
            assert other.status_code == plain.status_code
            assert essence(other) == essence(plain)


def essence(answer: httpx.Response) -> tuple[str, dict[str, str]]:
    """The parts of a response that are the same for each request."""
    text = answer.text.replace(answer.headers["x-request-id"], "ID")
    return text, {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
