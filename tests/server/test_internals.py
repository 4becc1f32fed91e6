"""The private parts of uvicorn are what api/server was written against: see api/server/internals.py."""

import ast
import hashlib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
import uvicorn

from api.server.internals import STATUS_LINE


class Reliance(NamedTuple):
    """The members of one class of uvicorn that the code named by `by` relies on, and why.

    `methods` are those that ours copies, extends or depends on, each with the first 12 hexadecimal digits of its
    source's SHA-256. `attributes` are set by that class, and read or set by ours.
    """

    of: str
    by: str
    why: str
    methods: Mapping[str, str]
    attributes: Sequence[str] = ()


RELIANCES = (
    Reliance(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol",
        "api.server.protocol:HTTPProtocol",
        "The limits have to know what the parser has read. `data_received`, `on_headers_complete`, "
        "`on_message_complete` and `on_response_complete` are written anew, without WebSockets, root_path, "
        "limit_concurrency, reset_contextvars and a timer for each response. The others are extended, or run as they "
        "are.",
        {
            "__init__": "4f0899941034",
            "connection_made": "6efb565ff3d3",
            "connection_lost": "c91a4c9bf2e2",
            "data_received": "010a7ae59a5d",
            "on_message_begin": "96d377fdc7c2",
            "on_url": "37be44e962b0",
            "on_header": "65d62c044f61",
            "on_headers_complete": "1ea8589acfad",
            "on_body": "dba9c32aeba3",
            "on_message_complete": "1fbad42dc31f",
            "on_response_complete": "64e254f28e38",
            "shutdown": "d7351fa33f00",
            "_should_upgrade": "8fcad1ab8e09",
            "_unset_keepalive_if_required": "00a6a4e47214",
        },
        (
            "access_logger",
            "app",
            "connections",
            "cycle",
            "expect_100_continue",
            "flow",
            "headers",
            "logger",
            "loop",
            "parser",
            "pipeline",
            "scope",
            "server_state",
            "tasks",
            "timeout_keep_alive",
            "transport",
            "url",
            "ws_protocol_class",
        ),
    ),
    Reliance(
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle",
        "api.server.cycle:Cycle",
        "`send` is written anew: head and body are sent by one system call. So are `__init__`, without what is never "
        "used, and `run_asgi`. `receive` and `send_500_response` run as they are, on the same attributes.",
        {
            "__init__": "4d2f220910c3",
            "run_asgi": "0f33f2449a44",
            "send": "abdd8601b326",
            "receive": "8124ae006be7",
            "send_500_response": "37c64da40eed",
        },
        (
            "body",
            "chunked_encoding",
            "default_headers",
            "disconnected",
            "expected_content_length",
            "flow",
            "keep_alive",
            "logger",
            "message_event",
            "more_body",
            "response_complete",
            "response_started",
            "scope",
            "transport",
            "waiting_for_100_continue",
        ),
    ),
    Reliance(
        "uvicorn.protocols.http.flow_control:FlowControl",
        "api.server.protocol:HTTPProtocol",
        "A connection whose reading is paused waits for us, not for its client.",
        {
            "drain": "4bda6b61c277",
            "pause_reading": "7c27388bb984",
            "resume_reading": "a0429d30857e",
            "pause_writing": "93d4a08a9f2d",
            "resume_writing": "a343e8b0baf0",
        },
        ("read_paused", "write_paused"),
    ),
    Reliance(
        "uvicorn.server:ServerState",
        "api.server.lifecycle:Server",
        "`default_headers` go into every response, so `Connection: close` is added there when a server drains.",
        {"__init__": "8daf3a9b4e4e"},
        ("connections", "default_headers", "total_requests"),
    ),
    Reliance(
        "uvicorn.server:Server",
        "api.server.lifecycle:Server",
        "Draining delays the end of the main loop, which `on_tick` decides ten times a second; `shutdown` gets what is "
        "left of the grace. `handle_exit` is written anew: a graceful stop exits with 0.",
        {
            "__init__": "c150b55284f7",
            "run": "239e0133d430",
            "serve": "112ef41af521",
            "_serve": "4575b7a50adf",
            "startup": "2aa1d70a244b",
            "main_loop": "afccb353a119",
            "on_tick": "60ea49b06ccf",
            "shutdown": "9b33c5056299",
            "_wait_tasks_to_complete": "17209be1e991",
            "capture_signals": "e1bbcd4770d1",
            "handle_exit": "553276efa26e",
        },
        ("config", "force_exit", "lifespan", "server_state", "servers", "should_exit"),
    ),
    Reliance(
        "uvicorn.config:Config",
        "api.server.lifecycle:Server",
        "`on_tick` makes the default headers of `encoded_headers` once a second; `shutdown` reads "
        "`timeout_graceful_shutdown` when it begins.",
        {"configure_logging": "2636c3164cd0"},
        ("encoded_headers", "log_config", "timeout_graceful_shutdown"),
    ),
)

API = Path(__file__).parents[2] / "api"
OURS = [each for each in RELIANCES if issubclass(resolve_name(each.by), resolve_name(each.of))]
each_reliance = pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: reliance.of.partition(":")[2])


def digest(function: Any) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def assigned(owner: type) -> set[str]:
    """Return the attributes that the methods of a class assign to `self`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


@each_reliance
def test_methods_are_those_that_ours_were_written_against(reliance: Reliance) -> None:
    owner = resolve_name(reliance.of)
    found = {name: digest(getattr(owner, name)) for name in reliance.methods if hasattr(owner, name)}
    assert found == dict(reliance.methods), (
        f"uvicorn {uvicorn.__version__} has changed: compare these methods with {reliance.by}, then note their digests"
    )


@each_reliance
def test_attributes_exist(reliance: Reliance) -> None:
    assert set(reliance.attributes) <= assigned(resolve_name(reliance.of))


@pytest.mark.parametrize("reliance", OURS, ids=lambda reliance: reliance.by)
def test_every_inherited_member_that_ours_uses_or_overrides_is_listed(reliance: Reliance) -> None:
    theirs, ours = resolve_name(reliance.of), resolve_name(reliance.by)
    used: set[str] = set()
    for each in ours.__mro__[: ours.__mro__.index(theirs)]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        used.update(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
        )
        used.update(vars(each))
    members = assigned(theirs) | {name for name in vars(theirs) if callable(getattr(theirs, name))}
    assert used & members <= {*reliance.methods, *reliance.attributes}


def test_private_modules_of_uvicorn_are_imported_in_one_place() -> None:
    private = re.compile(r"(from|import) uvicorn\.")
    found = {str(path.relative_to(API)) for path in API.rglob("*.py") if private.search(path.read_text())}
    assert found == {"server/internals.py"}


def test_a_status_line_ends_with_a_line_break() -> None:
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
