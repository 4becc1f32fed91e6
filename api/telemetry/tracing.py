"""Traces by OpenTelemetry: a span for each request, and one for each statement, linked to the requests that share it.

Imported only if tracing is enabled: `pip install 'users-api[otel]'` installs its packages.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points, version
from time import time_ns

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.util.re import parse_env_headers
from starlette.types import Scope

from api.context import RequestContext
from api.threads import in_daemon_thread

logger = logging.getLogger("api.telemetry")

_CLOSE_SECONDS = 2.0

_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_HEADERS_FORM = "write name=value, with commas between, and percent-encode the values"

# They log what they cannot parse: headers of any client, and the values of _HEADERS, which are mostly credentials.
for _name in ("opentelemetry.baggage", "opentelemetry.propagators", "opentelemetry.trace", "opentelemetry.util.re"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class Tracing:
    """Makes spans by a provider whose exporters, sampler and limits come from the OTEL_* variables."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("users-api", version("users-api"))

    def begin(self, request: RequestContext, scope: Scope) -> None:
        """Begin the span of a request, in its client's trace if it sent one."""
        # Baggage is left out, whatever OTEL_PROPAGATORS is: it costs time, and nothing here uses it.
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name != b"baggage"
        }
        request.span = self._tracer.start_span(
            scope["method"],
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.scheme": scope["scheme"],
                "users_api.request_id": request.id,
            },
        )
        request.trace_id = trace.format_trace_id(request.span.get_span_context().trace_id)

    def end(self, request: RequestContext, method: str, route: str | None, path: str | None) -> None:
        """End the span of a request."""
        span = request.span
        if span.is_recording():
            if route is not None:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            if path is not None:
                span.set_attribute("url.path", path)
            span.set_attribute("http.response.status_code", request.status)
            span.set_attribute("users_api.batch_seconds", request.batch)
            span.set_attribute("users_api.queue_seconds", request.queue)
            if request.status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()

    def statement(self, statement: str, outcome: str, seconds: float, served: Sequence[RequestContext]) -> None:
        """Make the span of a statement that has just ended, as a child of the first of its requests that is recorded.

        If several requests share it, it has a link to each of them, and each of them has one to it.
        """
        spans = [request.span for request in served if request.span is not None and request.span.is_recording()]
        if not spans:
            return
        end = time_ns()
        name = statement.removesuffix(".sql")
        attributes: dict[str, str | int] = {"db.system.name": "postgresql", "db.query.summary": name}
        links = []
        if len(served) > 1:
            attributes["db.operation.batch.size"] = len(served)
            links = [Link(span.get_span_context()) for span in spans]
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(spans[0]),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
            start_time=end - round(seconds * 1e9),
        )
        if outcome == "failed":
            span.set_status(StatusCode.ERROR)
        span.end(end)
        if links:
            for each in spans:
                each.add_link(span.get_span_context())

    async def close(self) -> None:
        """Send the remaining spans, and give up on a collector that does not respond in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await in_daemon_thread(self._provider.shutdown)


def make_tracing() -> Tracing:
    """Return tracing as the OTEL_* variables configure it.

    Raises LookupError if an exporter that they name is not installed, ValueError if a value cannot be used.
    """
    _check_headers()
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    # Make all of them first: a processor starts a thread that sends.
    exporters = [_make_exporter(name) for name in dict.fromkeys(filter(None, names)) or ("otlp",)]
    provider = TracerProvider(shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _make_exporter(name: str) -> SpanExporter:
    if name == "otlp":
        protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((os.environ[each] for each in protocols if os.environ.get(each)), "http/protobuf")
        name = f"otlp_proto_{protocol.partition('/')[0]}"
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise LookupError(f"the exporter {name} is not installed")
    exporter: SpanExporter = found[0].load()()
    return exporter


def _check_headers() -> None:
    """Warn of a header for the collector that cannot be read: name its variable, and keep its value out of the log.

    Raises ValueError if a header contains a line break.
    """
    variable = next((each for each in _HEADERS if os.environ.get(each)), None)
    if variable is None:
        return
    entries = [entry for entry in os.environ[variable].split(",") if entry.strip()]
    headers = [parse_env_headers(entry, liberal=True) for entry in entries]
    if not all(headers):
        logger.warning("%s: a header cannot be read, and is left out: %s", variable, _HEADERS_FORM)
    if any({"\r", "\n"} & set(value) for each in headers for value in each.values()):
        # Each attempt to send it would fail, with a message that contains it.
        raise ValueError(f"{variable}: take the line break out of the header")
