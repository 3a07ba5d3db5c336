"""The lines of an answer on their way out, over the bare ASGI interface: what matters is when."""

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from starlette.responses import Response
from starlette.types import Message

from app.catalogue import Source
from app.chunks import TextChunks
from app.completion import StreamedCompletion
from app.generator import Piece, Usage
from worker.generation import server
from worker.generation.server import Reply, Say


async def listen(reply: Response, leave: asyncio.Event) -> list[tuple[float, bytes]]:
    """The bodies that it sends to a client who stays until `leave`, each with the silence before it."""
    bodies: list[tuple[float, bytes]] = []
    at = time.monotonic()

    async def send(message: Message) -> None:
        nonlocal at
        if message["type"] == "http.response.body":
            before, at = at, time.monotonic()
            bodies.append((at - before, message["body"]))

    async def receive() -> Message:
        await leave.wait()
        return {"type": "http.disconnect"}

    await reply({"type": "http"}, receive, send)
    return bodies


async def test_a_silent_answer_gives_signs_of_life_and_a_talking_one_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "HEARTBEAT", 0.05)

    async def load_then_talk(say: Say) -> None:
        await asyncio.sleep(0.2)
        for place in range(20):
            await say([{"choice": place}])
            await asyncio.sleep(0.01)

    heard = await listen(Reply(load_then_talk), asyncio.Event())
    bodies = [body for _, body in heard]
    assert bodies[0] == b"\n", "signs come before the first piece"
    assert min(silence for silence, body in heard if body == b"\n") >= 0.045
    assert [body for body in bodies if body != b"\n"] == [
        *(b'{"choice": %d}\n' % place for place in range(20)),
        b"",
    ]


async def test_whoever_leaves_stops_the_work() -> None:
    leave, ended = asyncio.Event(), asyncio.Event()

    async def never_done(say: Say) -> None:
        await say([{"choice": 0}])
        leave.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await listen(Reply(never_done), leave)
    assert ended.is_set()


async def test_a_stream_begins_with_the_first_sign_of_life() -> None:
    """While a model loads: a client who is patient with ten seconds of silence hears of it before."""
    loaded = asyncio.Event()
    piece: Piece = {"choice": 0, "text": "soup", "logprobs": None, "finish_reason": "stop"}

    async def lines() -> AsyncGenerator[Piece | Usage | None]:
        yield None
        await loaded.wait()
        yield piece
        yield {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}

    source = Source("m", "folder:m", "m", "local", datetime.now(UTC))
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))
        if bodies[-1] == b": waiting\n\n":
            loaded.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    stream = StreamedCompletion(TextChunks(source), lines(), include_usage=False)
    async with asyncio.timeout(20):
        await stream({"type": "http"}, receive, send)
    said = [each for each in bodies if each]
    assert said[0] == b": waiting\n\n"
    assert b'"soup"' in said[1]
    assert said[2:] == [b"data: [DONE]\n\n"]
