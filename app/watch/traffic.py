"""What one API process counts of its own work: requests, generations, webhooks sent, its loops.

These figures are this process's: Prometheus scrapes each process and sums over them. Labels are routes'
templates, methods and words of ours, so that no id and no name of a user gets into them.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NotFound, ServiceError, TooMany, Unavailable
from app.generator import Generation, Piece, Usage

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ELSEWHERE = "none"  # the route of what no route answers: refused at the gate, unknown
FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

Lines = AsyncGenerator[Piece | Usage | None]


class Traffic:
    """The counters of one API process, in a registry of its own: tests run several in one interpreter."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def made(kind: type[Any], name: str, meaning: str, *labels: str, **more: Any) -> Any:
            return kind(f"finetuned_{name}", meaning, labels, registry=self.registry, **more)

        self.requests: Counter = made(
            Counter, "http_requests", "Answered requests", "method", "route", "status"
        )
        self.answered: Histogram = made(
            Histogram,
            "http_response_start_seconds",
            "From a request's arrival to the first byte of its answer",
            "method",
            "route",
            buckets=FAST,
        )
        self.streams: Gauge = made(Gauge, "http_requests_in_progress", "Requests and streams under way")
        self.generations: Counter = made(
            Counter, "generations", "Generations asked of our own generators, by how they ended", "outcome"
        )
        self.generating: Gauge = made(Gauge, "generations_in_progress", "Generations waiting or running")
        self.generated: Histogram = made(
            Histogram, "generation_seconds", "Time of a whole generation, waiting included", buckets=SLOW
        )
        self.first_piece: Histogram = made(
            Histogram,
            "generation_first_token_seconds",
            "Of streamed generations: time to the first text, waiting included",
            buckets=SLOW,
        )
        self.tokens: Counter = made(
            Counter, "generation_tokens", "Tokens of generations that ended well", "kind"
        )
        self.webhooks: Counter = made(
            Counter, "webhook_attempts", "Attempts to deliver a webhook, by what came of them", "outcome"
        )
        for outcome in ("complete", "refused", "full", "away", "failed", "left"):
            self.generations.labels(outcome)
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        for outcome in ("delivered", "pending", "failed", "lost"):
            self.webhooks.labels(outcome)

    async def measure(self, generation: Generation, lines: Lines) -> Lines:
        """The same lines, counted."""
        began = time.monotonic()
        heard = False
        outcome = "left"  # closed by whoever reads: the client is gone
        with self.generating.track_inprogress():
            try:
                async with aclosing(lines):
                    async for line in lines:
                        if line is not None and "choice" in line and generation.stream and not heard:
                            heard = True
                            self.first_piece.observe(time.monotonic() - began)
                        elif line is not None and "total_tokens" in line:
                            outcome = "complete"
                            self._count(line)
                        yield line
            except ServiceError as error:
                outcome = _outcome(error)
                raise
            except GeneratorExit:
                raise
            except Exception:
                outcome = "failed"
                raise
            finally:
                self.generations.labels(outcome).inc()
                if outcome == "complete":
                    self.generated.observe(time.monotonic() - began)

    def _count(self, usage: Usage) -> None:
        self.tokens.labels("prompt").inc(usage["prompt_tokens"])
        self.tokens.labels("completion").inc(usage["completion_tokens"])


def _outcome(error: ServiceError) -> str:
    if isinstance(error, TooMany):
        return "full"
    if isinstance(error, Unavailable):
        return "away"
    return "refused" if error.status < 500 or isinstance(error, NotFound) else "failed"


class Requests:
    """Middleware, outermost: counts every answer, also those of the gate and of crashes."""

    def __init__(self, app: ASGIApp, traffic: Traffic, service: FastAPI) -> None:
        self.app, self.traffic, self._service = app, traffic, service
        self._templates: dict[Callable[..., Any], str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        traffic = self.traffic
        method = scope["method"] if scope["method"] in METHODS else "OTHER"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = self._template(scope)
                traffic.requests.labels(method, route, str(message["status"])).inc()
                traffic.answered.labels(method, route).observe(time.monotonic() - began)
            await send(message)

        with traffic.streams.track_inprogress():
            await self.app(scope, receive, counted)

    def _template(self, scope: Scope) -> str:
        """`/v1/files/{file_id}`: from the endpoint, since a scope's own route knows no prefix."""
        if self._templates is None:
            self._templates = {
                route.endpoint: route.path
                for route in iter_route_contexts(self._service.routes)
                if route.endpoint is not None and route.path is not None
            }
        return self._templates.get(scope.get("endpoint"), ELSEWHERE)  # type: ignore[arg-type]
