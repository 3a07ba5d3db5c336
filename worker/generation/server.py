"""The generator's HTTP side: POST /generate answers lines of JSON (see app/generator.py), GET /health."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.errors import InvalidRequest, ServiceError, TooMany
from app.generator import HEARTBEAT, Generation
from worker.generation.answer import Answer
from worker.generation.engine import Engine, Stepper
from worker.generation.loaded import LoadedModels, Locate
from worker.generation.mail import Mail, Post
from worker.generation.model import Precision, default_device
from worker.generation.request import Event

log = logging.getLogger(__name__)

# A piece of an answer costs generator, API and reader two milliseconds on a busy machine, as much as writing
# four tokens costs the engine with a small model. Twenty a second are a steady flow to any reader; where many
# read at once, each has fewer and longer ones: about PIECES a second for all of them, but 2.5 for each.
PAUSE = 0.05  # seconds between two pieces of one answer
PIECES = 80
LONGEST_PAUSE = 0.4

Put = Callable[[Mapping[str, Any]], None]


class Server:
    """One engine and its models, for as many requests at a time as `queue` allows."""

    def __init__(self, engine: Engine, models: LoadedModels, queue: int) -> None:
        self._engine = engine
        self._models = models
        self._queue = queue
        self._answering = 0

    @cached_property
    def _post(self) -> Post:
        return Post(asyncio.get_running_loop())

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "answering": self._answering, "models": self._models.listed()})

    async def generate(self, request: Request) -> Response:
        """Always 200: the first line may be an error. So signs of life go out while a model loads."""
        return StreamingResponse(self._lines(await request.body()), media_type="application/x-ndjson")

    def close(self) -> None:
        self._engine.close()
        self._models.close()

    async def _lines(self, body: bytes) -> AsyncIterator[bytes]:
        lines: Mail[Mapping[str, Any]] = Mail()
        work = asyncio.create_task(self._work(body, lines.put))
        work.add_done_callback(lambda _: lines.end())
        try:
            while True:
                try:
                    ready = await lines.take(patience=HEARTBEAT)
                except TimeoutError:
                    yield b"\n"
                    continue
                if not ready:
                    return
                yield "".join(json.dumps(line) + "\n" for line in ready).encode()
        finally:
            # Also when the client has gone: whatever was being written for it ends with the next step.
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, body: bytes, put: Put) -> None:
        self._answering += 1
        try:
            if self._answering > self._queue:
                raise TooMany(f"{self._queue} completions are waiting or running; try again in a moment.")
            await self._answer(_parse(body), put)
        except ServiceError as error:
            put({"status": error.status, **error.body()})
        except Exception:
            log.exception("a request failed")
            refusal = ServiceError("The generator failed at this request.", code="internal_error")
            put({"status": refusal.status, **refusal.body()})
        finally:
            self._answering -= 1

    async def _answer(self, request: Generation, put: Put) -> None:
        async with self._models.borrow(request.source, request.name, request.base, request.seal) as model:
            answer = await asyncio.to_thread(Answer, request, model)  # a long prompt takes a while to encode
            heard: Mail[tuple[int, Sequence[Event]]] = Mail()
            tickets = self._engine.submit(model, answer.asks, self._post.sinks(heard))
            try:
                pause = 0.0
                while not answer.done:
                    for place, events in joined(await heard.take(pause)):
                        for piece in answer.hear(place, events, tickets[place]):
                            put(piece)
                    # The first piece goes out at once.
                    pause = min(LONGEST_PAUSE, max(PAUSE, self._answering / PIECES))
            finally:
                for ticket in tickets:
                    ticket.cancel()
            for piece in answer.results():
                put(piece)
            put({"usage": answer.usage})


def joined(mail: Sequence[tuple[int, Sequence[Event]]]) -> list[tuple[int, Sequence[Event]]]:
    """The events of each place as one batch: who falls behind writes fewer and longer pieces."""
    if len(mail) == 1:
        return list(mail)
    joined: dict[int, list[Event]] = {}
    for place, events in mail:
        joined.setdefault(place, []).extend(events)
    return list(joined.items())


def _parse(body: bytes) -> Generation:
    try:
        return Generation.model_validate_json(body)
    except ValidationError as error:
        # Only an API of another version gets here: ours sends what it has checked.
        raise InvalidRequest(f"The generator does not understand this: {error.errors()[0]['msg']}") from error


def create_app(
    locate: Locate,
    memory_bytes: int,
    queue: int,
    device: torch.device | None = None,
    precision: Precision = "auto",
) -> Starlette:
    """`locate` turns a source into a folder; `memory_bytes` is the budget of loaded models."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    models = LoadedModels(locate, memory_bytes, device or default_device(), precision)
    server = Server(Stepper(), models, queue)
    routes = [
        Route("/generate", server.generate, methods=["POST"]),
        Route("/health", server.health),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
