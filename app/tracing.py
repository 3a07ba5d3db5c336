"""Traces by OpenTelemetry, from the POST of a job to its model: where OTEL_EXPORTER_OTLP_ENDPOINT is set.

The SDK is an extra (`finetuned[telemetry]`); without it, or without the endpoint, nothing here does anything.
The POST's context lies in the job's row as a W3C `traceparent`, so that whichever worker claims the job goes
on with that trace. Spans carry ids and numbers of ours, never names, texts or keys.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Settings

log = structlog.get_logger()
PARENT = "traceparent"
Facts = dict[str, str | int | float]


class Tracing:
    """One process's tracer; it sends what has ended every few seconds, in a thread of its own."""

    def __init__(self, settings: Settings, program: str) -> None:
        self._provider = _provider(settings, program)
        self._tracer: Tracer = (self._provider or trace.NoOpTracerProvider()).get_tracer("finetuned")
        self._words = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, parent: str | None = None, **facts: str | int | float) -> Iterator[Span]:
        """A span around what is done within; an exception marks it as failed."""
        with self._tracer.start_as_current_span(
            name, context=self._context(parent), attributes=facts
        ) as span:
            yield span

    def past(self, name: str, parent: str | None, began: float, **facts: str | int | float) -> None:
        """A span from `began`, in seconds since 1970, to now."""
        start = int(began * 1e9)
        span = self._tracer.start_span(name, self._context(parent), attributes=facts, start_time=start)
        span.end(max(start, time.time_ns()))

    def parent(self) -> str | None:
        """The present span as others may name it; None where nothing is recorded."""
        carrier: dict[str, str] = {}
        self._words.inject(carrier)
        return carrier.get(PARENT)

    def _context(self, parent: str | None) -> Any:
        """Of a header or a row; what is no `traceparent` begins a trace of its own."""
        return self._words.extract({PARENT: parent}) if parent else None

    def close(self) -> None:
        """Sends what waits; a receiver that hangs is waited for a few seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(settings: Settings, program: str) -> Any:
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no_telemetry", reason="pip install 'finetuned[telemetry]'")
        return None
    provider = TracerProvider(
        resource=Resource.create({"service.name": "finetuned", "service.namespace": program})
    )
    url = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=url, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider
