"""A table of raw requests (raw_requests.py), sent to the application directly and through Debian's nginx."""

from collections.abc import Iterator
from itertools import count

import pytest

from api.app import create_app
from benchmarks.processes import free_port
from tests.server.raw_requests import CASES, Raw
from tests.support.database import execute
from tests.support.nginx import nginx
from tests.support.serving import serve, settings_for
from tests.support.sockets import exchange

MARKER = "the-next-one"
NEXT = f"GET /api/v1/users/0 HTTP/1.1\r\nhost: x\r\nx-request-id: {MARKER}\r\nconnection: close\r\n\r\n".encode()
"""A request behind each case: its answer, a 404 with its id, shows that both sides agree where the case ended."""
ALONE = Raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", (200,), None)
OWN_REFUSALS = {400, 405, 408, 411, 413, 414, 417, 501, 505}
"""The statuses with which nginx itself refuses a request that it does not hand on."""
SERVERS = """\
    large_client_header_buffers 8 36k;
    upstream api {{
        server {api};
        keepalive 1;  # so that a request which is not where it ends would spoil the next one
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
        }}
    }}
"""
_numbers = count(10_000)


class Answer:
    """One answer: its status, and the id that it names; nginx's own have none."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.id = self.fields.get("x-request-id")


def parse(data: bytes, *, is_head: bool) -> list[Answer]:
    """Split what came into answers, as a client that sent HEAD first, or none, would (RFC 9112, section 6.3)."""
    answers: list[Answer] = []
    while data.startswith(b"HTTP/"):
        head, _, data = data.partition(b"\r\n\r\n")
        answer = Answer(head)
        if answer.status == 100:
            continue
        if answer.fields.get("transfer-encoding") == "chunked":
            size = -1
            while size:
                line, _, data = data.partition(b"\r\n")
                size = int(line, 16)
                data = data[size + 2 :]
        elif answer.status not in (204, 304) and not (is_head and not answers):
            data = data[int(answer.fields["content-length"]) :]
        answers.append(answer)
    assert not data, f"no answer: {data[:100]!r}"
    return answers


def ask(address: tuple[str, int], case: Raw) -> list[Answer]:
    """Send a case and NEXT behind it; return the answers to the case."""
    sent = case.sent.replace(b"NEW", b"%d" % next(_numbers))
    answers = parse(exchange(address, sent + NEXT), is_head=sent.startswith(b"HEAD"))
    if answers and answers[-1].id == MARKER:
        assert answers.pop().status == 404
    assert not [answer for answer in answers if answer.id == MARKER], "the answer to the next request came too early"
    return answers


@pytest.fixture(scope="module")
def database(postgres: str, template: str) -> Iterator[str]:
    """One database for the table, with the user 1, whom no case changes."""
    execute(postgres, f"create database raw template {template}")
    url = postgres.replace("/postgres?", "/raw?")
    execute(url, "insert into users (email) values ('one@example.com')")
    yield url
    assert execute(url, "select id, version from users where id = 1") == [(1, 1)], "a refused request was served"
    execute(postgres, "drop database raw with (force)")


@pytest.fixture(scope="module")
def address(database: str) -> Iterator[tuple[str, int]]:
    with serve(create_app(settings_for(database))) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield host, int(port)


@pytest.fixture(scope="module")
def behind_nginx(address: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    directory, port = tmp_path_factory.mktemp("nginx"), free_port()
    with nginx(directory, port, SERVERS.format(port=port, api=f"{address[0]}:{address[1]}")) as front:
        yield front


@pytest.mark.parametrize("name", CASES)
def test_directly(address: tuple[str, int], name: str) -> None:
    case = CASES[name]
    assert [answer.status for answer in ask(address, case)] == [*case.statuses]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.behind_nginx != ()])
def test_behind_nginx(behind_nginx: tuple[str, int], name: str) -> None:
    """Each answer is the expected one, or nginx refuses that request itself. The next client gets its own answer."""
    case = CASES[name]
    answers = ask(behind_nginx, case)
    statuses = tuple(answer.status for answer in answers)
    expected = [case.statuses, case.behind_nginx or case.statuses]
    if statuses not in expected:
        assert answers[-1].id is None
        assert statuses[-1] in OWN_REFUSALS
        assert statuses[:-1] in [each[: len(statuses) - 1] for each in expected if len(each) >= len(statuses)]
    assert [answer.status for answer in ask(behind_nginx, ALONE)] == [200]


def test_the_table_is_large() -> None:
    assert len(CASES) >= 150
