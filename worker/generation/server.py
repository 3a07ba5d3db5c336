"""The generator's HTTP side: POST /generate answers lines of JSON (see app/generator.py), GET /health."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

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

Say = Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]]


class Reply(Response):
    """The lines of one answer, sent by the task that makes them: one that would only pass them on costs as
    much again, and all of it while the engine waits for the interpreter's lock."""

    media_type = "application/x-ndjson"

    def __init__(self, work: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._work = work
        self._said = 0  # how often

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(lines: Sequence[Mapping[str, Any]]) -> None:
            self._said += 1
            body = "".join(json.dumps(line) + "\n" for line in lines).encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        work = asyncio.ensure_future(self._work(say))
        gone = asyncio.create_task(_leave(receive))
        try:
            done: set[asyncio.Future[Any]] = set()
            while not done:
                before = self._said
                done, _ = await asyncio.wait(
                    {work, gone}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and self._said == before:
                    await send({"type": "http.response.body", "body": b"\n", "more_body": True})
        finally:
            # Also when the client has gone: whatever was being written for it ends with the next step.
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})


async def _leave(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


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
        body = await request.body()
        return Reply(lambda say: self._work(body, say))

    def close(self) -> None:
        self._engine.close()
        self._models.close()

    async def _work(self, body: bytes, say: Say) -> None:
        self._answering += 1
        try:
            if self._answering > self._queue:
                raise TooMany(f"{self._queue} completions are waiting or running; try again in a moment.")
            last = await self._answer(_parse(body), say)
        except ServiceError as error:
            last = [{"status": error.status, **error.body()}]
        except Exception:
            log.exception("a request failed")
            refusal = ServiceError("The generator failed at this request.", code="internal_error")
            last = [{"status": refusal.status, **refusal.body()}]
        finally:
            self._answering -= 1
        await say(last)  # a reader who is slow to take it holds nobody's place

    async def _answer(self, request: Generation, say: Say) -> list[Mapping[str, Any]]:
        """Says all but the last pieces, which are returned with the usage."""
        async with self._models.borrow(request.source, request.name, request.base, request.seal) as model:
            answer = await asyncio.to_thread(Answer, request, model)  # a long prompt takes a while to encode
            heard: Mail[tuple[int, Sequence[Event]]] = Mail()
            tickets = self._engine.submit(model, answer.asks, self._post.sinks(heard))
            try:
                pause = 0.0
                while True:
                    pieces: list[Mapping[str, Any]] = []
                    for place, events in joined(await heard.take(pause)):
                        pieces += answer.hear(place, events, tickets[place])
                    if answer.done:
                        return [*pieces, *answer.results(), {"usage": answer.usage}]
                    if pieces:
                        await say(pieces)
                    # The first piece goes out at once.
                    pause = min(LONGEST_PAUSE, max(PAUSE, self._answering / PIECES))
            finally:
                for ticket in tickets:
                    ticket.cancel()


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
