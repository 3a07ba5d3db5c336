"""A completion on its way to the client: whole as JSON, or chunk by chunk as server-sent events.

Both wait for the generator while they are sent, not while the route runs: the route's database connection is
given back before, however long the model writes.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.answers import answer
from app.chunks import Chunks
from app.errors import ServiceError
from app.generator import Piece, Usage
from app.link import PART
from app.tables import JsonObject

Lines = AsyncGenerator[Piece | Usage | None]

# Line ends to some readers of event streams, though not by the standard.
LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class _Awaited(Response):
    """A response that is known only once the generator has spoken; a client who leaves before stops it."""

    def __init__(self, chunks: Chunks, lines: Lines) -> None:
        super().__init__()
        self.chunks = chunks
        self.lines = lines

    async def respond(self) -> Response:
        """Raises ServiceError."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.lines):
            response = await unless_gone(receive, self._respond_or_refuse())
            if response is not None:
                await response(scope, receive, send)

    async def _respond_or_refuse(self) -> Response:
        try:
            return await self.respond()
        except ServiceError as error:
            return answer(error)


class _Parts(Response):
    """JSON in parts, each given away when the one before is: what is long is not copied again."""

    media_type = "application/json"

    def __init__(self, parts: list[bytes]) -> None:
        length = sum(map(len, parts))
        super().__init__(headers={"content-length": str(length)})
        self._parts = parts if length > PART else [b"".join(parts)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        *most, last = self._parts
        for part in most:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": last})


class WholeCompletion(_Awaited):
    """All choices in one JSON object."""

    async def respond(self) -> Response:
        choices: list[tuple[int, bytes]] = []
        usage: Usage | None = None
        async for line in self.lines:
            if line is None:
                continue
            if "choice" in line:
                # Each when it comes, and so between other requests: 128 with their log-probabilities, 27 MB,
                # read and written all together kept those waiting for 0.8 s.
                choices.append((line["choice"], _as_json(self.chunks.choice(line))))
            else:
                usage = line
        frame = _as_json(self.chunks.whole(usage))
        parts = [frame[:-1] + b',"choices":[']
        for place, (_, choice) in enumerate(sorted(choices)):
            parts += [b"," if place else b"", choice]
        return _Parts([*parts, b"]}"])


class StreamedCompletion(_Awaited):
    """Chunks of partial text. The first line of the generator is awaited, so that refusals are plain 4xx, but
    no longer than it is silent: while a model loads, the client hears that somebody is there."""

    def __init__(self, chunks: Chunks, lines: Lines, include_usage: bool) -> None:
        super().__init__(chunks, lines)
        self._include_usage = include_usage

    async def respond(self) -> Response:
        return StreamingResponse(
            self._events(await anext(self.lines)),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def _events(self, first: Piece | Usage | None) -> AsyncIterator[str]:
        opening = map(self._event, self.chunks.opening())
        line = first
        try:
            while True:
                if line is None:
                    # A comment: a client's, or a proxy's, patience with silence never ends.
                    yield ": waiting\n\n"
                else:
                    for event in (*opening, *self._events_of(line)):
                        yield event
                line = await anext(self.lines)
        except StopAsyncIteration:
            yield "data: [DONE]\n\n"
        except ServiceError as error:
            yield data_event(error.body())  # without [DONE]: this is not a complete answer

    def _events_of(self, line: Piece | Usage) -> Iterator[str]:
        if "choice" in line:
            yield from map(self._event, self.chunks.parts(line))
        elif self._include_usage:
            yield data_event({**self.chunks.chunk([]), "usage": line})

    def _event(self, choice: JsonObject) -> str:
        chunk = self.chunks.chunk([choice])
        return data_event({**chunk, "usage": None} if self._include_usage else chunk)


def _as_json(body: JsonObject) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def data_event(body: JsonObject) -> str:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(LINE_ENDS)}\n\n"


async def unless_gone(receive: Receive, work: "asyncio._CoroutineLike[Response]") -> Response | None:
    """The outcome of `work`, or None when the client disconnects before there is one."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
