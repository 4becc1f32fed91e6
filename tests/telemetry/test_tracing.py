"""Traces: a span for each request and each statement, and links between a shared statement and its requests."""

import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry import baggage, context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from api.app import create_app
from api.telemetry.otel import tracing_from_environment
from api.telemetry.tracing import Tracing
from benchmarks.processes import free_port
from tests.support.commands import USERS_API, environment, on, served
from tests.support.database import locked, wait_until_waiting
from tests.support.logs import TRACE, TRACEPARENT, Log
from tests.support.metrics import scrape
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until

USERS = "/api/v1/users"


class Traced:
    """A client of a traced application, and its spans."""

    def __init__(self, url: str, exporter: InMemorySpanExporter) -> None:
        self.url = url
        self._exporter = exporter

    def spans(self, kind: SpanKind, number: int) -> Sequence[ReadableSpan]:
        """Those of a kind, once there are so many; not those of requests for the metrics."""
        wait_until(lambda: len(self._of(kind)) == number)
        return self._of(kind)

    def _of(self, kind: SpanKind) -> Sequence[ReadableSpan]:
        found = self._exporter.get_finished_spans()
        return [span for span in found if span.kind is kind and span.name != "GET /metrics"]


def tracing(sampler: Sampler | None = None) -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


@pytest.fixture
def traced(database: str, batching: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    monkeypatch.setattr("api.database.slots.SLOT_SECONDS", 60.0)
    settings = settings_for(database, batching=batching, batch_in_flight=1, slow_request_seconds=0)
    ours, exporter = tracing()
    with serve(create_app(settings, tracing=ours)) as url:
        yield Traced(url, exporter)


def test_a_request_and_its_statement(traced: Traced, log: Log) -> None:
    answer = httpx.get(f"{traced.url}{USERS}/7", headers={"traceparent": TRACEPARENT, "x-request-id": "mine"})
    assert answer.status_code == 404
    (request,), (statement,) = traced.spans(SpanKind.SERVER, 1), traced.spans(SpanKind.CLIENT, 1)
    assert request.name == f"GET {USERS}/{{id}}"
    assert request.parent is not None
    assert (format_trace_id(request.parent.trace_id), format_span_id(request.parent.span_id)) == (
        TRACE,
        TRACEPARENT[36:52],
    )
    attributes = dict(request.attributes or {})
    assert attributes.pop("users_api.batch_seconds") == 0
    assert attributes.pop("users_api.queue_seconds") > 0  # type: ignore[operator]
    assert attributes == {
        "http.request.method": "GET",
        "http.route": f"{USERS}/{{id}}",
        "http.response.status_code": 404,
        "url.path": f"{USERS}/7",
        "url.scheme": "http",
        "users_api.request_id": "mine",
    }
    assert request.status.status_code is StatusCode.UNSET
    assert statement.name == "users/select_users"
    assert statement.attributes == {"db.system.name": "postgresql", "db.query.summary": "users/select_users"}
    assert statement.parent == request.context
    assert not statement.links
    assert not request.links
    assert request.start_time <= statement.start_time < statement.end_time <= request.end_time  # type: ignore[operator]
    (line,) = log.about("slow request")
    assert line["trace_id"] == TRACE


def test_a_shared_statement_is_linked_with_each_of_its_requests(traced: Traced, database: str, batching: bool) -> None:
    with ThreadPoolExecutor() as threads, locked(database):
        answers = [threads.submit(httpx.get, f"{traced.url}{USERS}/1", timeout=60)]
        wait_until_waiting(database, 1)
        answers += [threads.submit(httpx.get, f"{traced.url}{USERS}/{n}", timeout=60) for n in (2, 3, 4)]
        wait_until(lambda: scrape(traced.url).value("users_api_requests_under_way") == 4)
    assert {answer.result().status_code for answer in answers} == {404}
    requests = traced.spans(SpanKind.SERVER, 4)
    assert len({span.context.trace_id for span in requests if span.context}) == 4
    statements = traced.spans(SpanKind.CLIENT, 2 if batching else 4)
    if not batching:
        assert sorted(str(span.parent) for span in statements) == sorted(str(span.context) for span in requests)
        return
    alone, shared = statements
    assert not alone.links
    assert (shared.attributes or {})["db.operation.batch.size"] == 3
    sharing = [span for span in requests if span.context != alone.parent]
    assert sorted(str(link.context) for link in shared.links) == sorted(str(span.context) for span in sharing)
    assert [[link.context for link in span.links] for span in sharing] == [[shared.context]] * 3
    assert shared.parent == shared.links[0].context


def test_what_nobody_samples_has_no_span(database: str) -> None:
    ours, exporter = tracing(ParentBased(ALWAYS_OFF))
    with serve(create_app(settings_for(database), tracing=ours)) as url:
        httpx.get(f"{url}{USERS}/1")
        httpx.get(f"{url}{USERS}/1", headers={"traceparent": f"{TRACEPARENT[:-2]}00"})
        assert not exporter.get_finished_spans()
        httpx.get(f"{url}{USERS}/1", headers={"traceparent": TRACEPARENT})
        wait_until(lambda: len(exporter.get_finished_spans()) == 2)


def test_failures() -> None:
    ours, exporter = tracing()
    settings = settings_for("postgresql://x@127.0.0.1:1/x", acquire_timeout_seconds=0.2)
    with serve(create_app(settings, tracing=ours)) as url:
        assert httpx.get(f"{url}{USERS}/1").status_code == 503
        assert httpx.get(f"{url}/ada@example.com").status_code == 404
        wait_until(lambda: len(exporter.get_finished_spans()) == 2)
    failed, unrouted = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["users_api.queue_seconds"] > 0.19  # type: ignore[operator]
    assert (unrouted.name, "url.path" in (unrouted.attributes or {})) == ("GET", False)


class Begun(SpanProcessor):
    """Keeps what each span is begun in."""

    def __init__(self) -> None:
        self.contexts: list[context.Context | None] = []

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        self.contexts.append(parent_context)


SAID = "sesame-ada@example.com"


@pytest.mark.parametrize(
    "headers",
    [
        {"baggage": SAID},
        {"baggage": f"a={SAID}é"},
        {"baggage": f"{SAID}=1"},
        {"baggage": f"{SAID}," * 300},
        {"baggage": SAID * 400},
        {"tracestate": SAID},
        {"tracestate": f"sesame={SAID},sesame={SAID}"},
        {"tracestate": f"{SAID}=1,a={SAID}=,{SAID}"},
        {"tracestate": ",".join(f"a{n}=sesame" for n in range(40))},
        {"traceparent": SAID},
        {"traceparent": f"01{TRACEPARENT[2:]}-{SAID * 30}"},
    ],
)
def test_what_cannot_be_read_of_a_trace_is_not_repeated_in_the_log(
    log: Log,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
) -> None:
    caplog.set_level(logging.DEBUG, "opentelemetry")
    ours, exporter = tracing()
    with serve(create_app(settings_for("postgresql://x@127.0.0.1:1/x"), tracing=ours)) as url:
        sent = {"traceparent": TRACEPARENT, **headers}
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        assert httpx.get(f"{url}/health", headers=raw).status_code == 200
        wait_until(exporter.get_finished_spans)
    assert not [line for line in log.lines if line["logger"].startswith("opentelemetry")]
    assert "sesame" not in str(log.lines)


def test_what_a_trace_brings_along() -> None:
    begun, exporter = Begun(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(begun)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "who=ada"}
    with serve(create_app(settings_for("postgresql://x@127.0.0.1:1/x"), tracing=Tracing(provider))) as url:
        assert httpx.get(f"{url}/health", headers=headers).status_code == 200
        wait_until(exporter.get_finished_spans)
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert (format_trace_id(span.context.trace_id), dict(span.context.trace_state)) == (TRACE, {"vendor": "1"})
    assert [baggage.get_all(each) for each in begun.contexts] == [{}]


# As the standard variables say


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_standard_variables_say_where_spans_go(
    directory: Path,
    database: str,
    collector: Collector,
) -> None:
    variables = {**on(database), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ours"}
    with served(cwd=directory, DRAIN_SECONDS="0", **variables) as (url, _):  # type: ignore[arg-type]
        httpx.get(f"{url}{USERS}/7", headers={"traceparent": TRACEPARENT})
    # What had not been sent when the server stopped was sent then.
    found = [
        (format_trace_id(int.from_bytes(span.trace_id)), span.name)
        for request in collector.received
        for spans in request.resource_spans
        if ("service.name", "ours") in [(each.key, each.value.string_value) for each in spans.resource.attributes]
        for scope in spans.scope_spans
        for span in scope.spans
    ]
    assert sorted(name for trace, name in found if trace == TRACE) == [f"GET {USERS}/{{id}}", "users/select_users"]


SEND_ONE = """
from api.telemetry.tracing import make_tracing
ours = make_tracing()
ours._tracer.start_span("sent").end()
ours._provider.shutdown()
"""


def test_several_exporters(collector: Collector) -> None:
    variables = {"OTEL_TRACES_EXPORTER": "otlp, console,", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    command = [sys.executable, "-c", SEND_ONE]
    said = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True)
    assert (json.loads(said.stdout)["name"], said.stderr) == ("sent", "")
    (received,) = collector.received
    assert [span.name for span in received.resource_spans[0].scope_spans[0].spans] == ["sent"]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
@pytest.mark.parametrize("entry", ["Authorization: Bearer sesame", "sesame", "=sesame", "a=é sesame"])
def test_a_header_for_the_collector_that_cannot_be_read_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, entry: str
) -> None:
    caplog.set_level(logging.DEBUG, "opentelemetry")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(variable, f"first=1,{entry}, , last=Bearer sesame")
    assert tracing_from_environment() is not None
    assert caplog.messages == [
        f"{variable}: a header cannot be read, and is left out: write name=value, with commas between, "
        "and percent-encode the values"
    ]


def test_a_header_for_the_collector_that_is_two_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20sesame%0Aa")
    assert tracing_from_environment() is None
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there are no traces: "
        "OTEL_EXPORTER_OTLP_HEADERS: take the line break out of the header"
    ]


def test_a_collector_that_is_down_holds_nothing_up(directory: Path, database: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    variables = {**on(database), "OTEL_EXPORTER_OTLP_ENDPOINT": nowhere, "GRACE_SECONDS": "5", "DRAIN_SECONDS": "0"}
    with served(cwd=directory, **variables) as (url, process):  # type: ignore[arg-type]
        assert httpx.get(f"{url}{USERS}/7").status_code == 404
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_traces_are_off_unless_a_variable_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_from_environment() is None
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    assert tracing_from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert tracing_from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert tracing_from_environment() is not None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing_from_environment() is None


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "the exporter otlp_proto_grpc is not installed"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "the exporter zipkin is not installed"),
        ("OTEL_TRACES_EXPORTER", "console, zipkin", "the exporter zipkin is not installed"),
    ],
)
def test_an_exporter_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(variable, value)
    assert tracing_from_environment() is None
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but there are no traces: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_BSP_MAX_QUEUE_SIZE", "0"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")]
)
def test_a_value_that_cannot_be_used_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(variable, value)
    assert tracing_from_environment() is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but there are no traces: " in caplog.text
    assert "integer" in caplog.text
    assert "pip install" not in caplog.text


def test_a_propagator_that_is_missing_is_named(directory: Path, database: str) -> None:
    said = directory / "log"
    into_the_log = ["sh", "-c", f'exec "$0" "$@" 2> {said}', str(USERS_API)]
    variables = {**on(database), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_PROPAGATORS": "b3"}
    with served(cwd=directory, program=into_the_log, DRAIN_SECONDS="0", **variables) as (url, _):  # type: ignore[arg-type]
        assert httpx.get(f"{url}{USERS}/7").status_code == 404
    assert "there are no traces: Propagator b3 not found" in said.read_text()


def test_without_the_extra_it_serves_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "api.telemetry.tracing")
    monkeypatch.delattr("api.telemetry.tracing")
    assert tracing_from_environment() is None
    assert "OTEL_TRACES_EXPORTER is set, but there are no traces" in caplog.text
    assert "pip install 'users-api[otel]'" in caplog.text


def test_a_start_imports_nothing_that_only_traces_or_tokens_need() -> None:
    code = (
        "import sys, api.app, api.cli.serve; sys.exit(bool({'opentelemetry', 'jwt', 'cryptography'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
