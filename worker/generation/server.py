"""The generator's side of the line: answers over a WebSocket (see app/link.py), and GET /health."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.errors import InvalidRequest, ServiceError, TooMany
from app.generator import Generation, Piece, away
from app.link import LONGEST, PART, PATH, SILENCE, too_long
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

# Pieces that are written down in one go. One with log-probabilities may be a megabyte.
HANDFUL = 64

Line: TypeAlias = Mapping[str, Any]
# The event is set while there is room for more; who has much to say waits for it.
Say: TypeAlias = Callable[[Sequence[Line]], asyncio.Event]
Work: TypeAlias = Callable[[Any, Say], Coroutine[Any, Any, None]]

as_json = json.JSONEncoder(separators=(",", ":")).encode


class Caller:
    """One API on the line: the answers that it waits for, by its numbers, and what it has yet to be told.

    Lines of all its answers go in one message, as many as there are when the last one is out, up to PART
    bytes or one line: so the engine waits for the interpreter's lock once in a step, not once an answer.
    """

    def __init__(self, socket: WebSocket, work: Work) -> None:
        self._socket, self._work = socket, work
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._lines: deque[tuple[int, str]] = deque()
        self._length = 0  # characters
        self._said = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def serve(self) -> None:
        """Until it has gone; whatever was being written for it ends with the next step."""
        if "origin" in self._socket.headers:
            # Of a browser, which lets the page of any site open one to a port of its own machine and listen.
            await self._socket.close()
            return
        await self._socket.accept()
        both = [asyncio.create_task(self._hear()), asyncio.create_task(self._tell())]
        try:
            ended, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()  # what nobody foresaw is uvicorn's to log
        finally:
            tasks = [*both, *self._answers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self) -> None:
        try:
            while True:
                self._take(await self._socket.receive_json())
        except WebSocketDisconnect:
            pass
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            log.warning("what came is no order (%s): the line is closed", type(error).__name__)

    def _take(self, order: dict[str, Any]) -> None:
        number = order["id"]
        if "generation" in order:
            if number in self._answers:
                raise ValueError("a number given twice")
            task = asyncio.create_task(self._work(order["generation"], partial(self._say, number)))
            self._answers[number] = task
            task.add_done_callback(lambda _: self._answers.pop(number))
        elif number in self._answers:  # else its last line was on its way
            self._answers[number].cancel()

    def _say(self, number: int, lines: Sequence[Line]) -> asyncio.Event:
        for line in lines:
            text = as_json(line)
            if len(text) > LONGEST:
                raise too_long()
            self._lines.append((number, text))
            self._length += len(text)
        self._said.set()
        if self._length > PART:
            self._room.clear()
        return self._room

    async def _tell(self) -> None:
        try:
            while True:
                await self._said.wait()
                self._said.clear()
                while self._lines:
                    async with asyncio.timeout(SILENCE):
                        await self._socket.send_text(self._part())
                    if self._length <= PART:
                        self._room.set()
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            log.warning("nothing was read for %d s: the line is closed", SILENCE)

    def _part(self) -> str:
        """What waits, as much of it as goes in a message."""
        part: list[str] = []
        length = 0
        while self._lines and (not part or length + len(self._lines[0][1]) <= PART):
            number, text = self._lines.popleft()
            part.append(f"[{number},[{text}]]")
            length += len(text)
        self._length -= length
        return f"[{','.join(part)}]"


class Server:
    """One engine and its models, for as many requests at a time as `queue` allows."""

    def __init__(self, engine: Engine, models: LoadedModels, queue: int) -> None:
        self._engine = engine
        self._models = models
        self._queue = queue
        self._answering = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving = False

    @cached_property
    def _post(self) -> Post:
        return Post(asyncio.get_running_loop())

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "answering": self._answering, "models": self._models.listed()})

    async def answers(self, socket: WebSocket) -> None:
        await Caller(socket, self._work).serve()

    async def finish(self, patience: float) -> None:
        """Begin nothing more, and wait so many seconds for what is being answered."""
        self._leaving = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._idle.wait()
        await asyncio.sleep(PAUSE)  # for the last lines

    def close(self) -> None:
        self._engine.close()
        self._models.close()

    async def _work(self, generation: Any, say: Say) -> None:
        self._answering += 1
        self._idle.clear()
        try:
            if self._leaving:
                raise away()
            if self._answering > self._queue:
                raise TooMany(f"{self._queue} completions are waiting or running; try again in a moment.")
            await self._answer(_parse(generation), say)
        except ServiceError as error:
            say([{"status": error.status, **error.body()}])
        except Exception:
            log.exception("a request failed")
            refusal = ServiceError("The generator failed at this request.", code="internal_error")
            say([{"status": refusal.status, **refusal.body()}])
        finally:
            self._answering -= 1
            if not self._answering:
                self._idle.set()

    async def _answer(self, request: Generation, say: Say) -> None:
        async with self._models.borrow(request.source, request.name, request.base, request.seal) as model:
            answer = await asyncio.to_thread(Answer, request, model)  # a long prompt takes a while to encode
            heard: Mail[tuple[int, Sequence[Event]]] = Mail()
            tickets = self._engine.submit(model, answer.asks, self._post.sinks(heard))
            try:
                pause, handful = 0.0, HANDFUL if request.logprobs is None else 1
                while True:
                    for place, events in joined(await heard.take(pause)):
                        await pass_on(answer.hear(place, events, tickets[place]), say, handful)
                    if answer.done:
                        await pass_on(answer.results(), say, handful)
                        say([{"usage": answer.usage}])
                        return
                    # The first piece goes out at once.
                    pause = min(LONGEST_PAUSE, max(PAUSE, self._answering / PIECES))
            finally:
                for ticket in tickets:
                    ticket.cancel()


async def pass_on(pieces: Iterator[Piece], say: Say, handful: int) -> None:
    while some := list(islice(pieces, handful)):
        await say(some).wait()


def joined(mail: Sequence[tuple[int, Sequence[Event]]]) -> list[tuple[int, Sequence[Event]]]:
    """The events of each place as one batch: who falls behind writes fewer and longer pieces."""
    if len(mail) == 1:
        return list(mail)
    joined: dict[int, list[Event]] = {}
    for place, events in mail:
        joined.setdefault(place, []).extend(events)
    return list(joined.items())


def _parse(generation: Any) -> Generation:
    try:
        return Generation.model_validate(generation)
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
        WebSocketRoute(PATH, server.answers),
        Route("/health", server.health),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.finish = server.finish
    return app
