"""The line between API and generator, both ends real: whose lines are whose, who leaves, who is silent."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app import link
from app.catalogue import Source
from app.chunks import TextChunks
from app.completion import StreamedCompletion
from app.errors import TooLarge, Unavailable
from app.generator import Generation, Generator, Piece, Usage
from app.link import PATH, Gone, Link
from worker.generation.server import Caller, Say, Work

LAST = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}


@asynccontextmanager
async def served(path: Path, *routes: Any) -> AsyncIterator[str]:
    """An address at which these routes are."""
    application = Starlette(routes=list(routes))
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, timeout_graceful_shutdown=1))
    with socket.socket(socket.AF_UNIX) as listener:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        listener.bind(str(path))
        listener.listen()  # who comes before it has started waits
        running = asyncio.create_task(server._serve([listener]))  # without its signal handlers
        try:
            yield f"unix:{path}"
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def linked(path: Path, work: Work) -> AsyncIterator[Link]:
    async def answers(line: WebSocket) -> None:
        await Caller(line, work).serve()

    async with served(path / "link.sock", WebSocketRoute(PATH, answers)) as url:
        found = await Link.to(url)
        try:
            yield found
        finally:
            await found.close()


async def heard(by: Link, wanted: Any) -> list[Any]:
    return [line async for line in by.lines(json.dumps(wanted))]


async def test_each_answer_has_its_own_lines_in_order_and_many_come_in_one_message(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    all_asked = asyncio.Event()

    async def count(upto: int, say: Say) -> None:
        nonlocal asked
        asked += 1
        if asked == 64:
            all_asked.set()
        await all_asked.wait()
        for place in range(upto):
            say([{"choice": place}])
            await asyncio.sleep(0)
        say([LAST])

    messages = 0
    send = WebSocket.send_text

    async def counted(line: WebSocket, data: str) -> None:
        nonlocal messages
        messages += 1
        await send(line, data)

    monkeypatch.setattr(WebSocket, "send_text", counted)
    async with linked(socket_folder, count) as line:
        found = await asyncio.gather(*(heard(line, upto) for upto in range(64)))
    assert found == [[*({"choice": place} for place in range(upto)), LAST] for upto in range(64)]
    assert messages < 200, "of about 2,000 lines"


async def test_a_silent_answer_gives_signs_of_life_and_a_talking_one_none(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "HEARTBEAT", 0.5)

    async def load_then_talk(_: Any, say: Say) -> None:
        await asyncio.sleep(1.2)
        for place in range(20):
            say([{"choice": place}])
            await asyncio.sleep(0.01)
        say([LAST])

    heard_at: list[tuple[float, Any]] = []
    async with linked(socket_folder, load_then_talk) as line:
        at = time.monotonic()
        async for said in line.lines("{}"):
            before, at = at, time.monotonic()
            heard_at.append((at - before, said))
    assert heard_at[0][1] is None, "signs come before the first piece"
    assert min(silence for silence, said in heard_at if said is None) >= 0.45
    assert [said for _, said in heard_at if said] == [*({"choice": place} for place in range(20)), LAST]


@pytest.mark.parametrize("how", ["its reader", "the API"])
async def test_whoever_leaves_stops_the_work(socket_folder: Path, how: str) -> None:
    ended = asyncio.Event()

    async def never_done(_: Any, say: Say) -> None:
        say([{"choice": 0}])
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with linked(socket_folder, never_done) as line, asyncio.timeout(20):
        async with aclosing(line.lines("{}")) as lines:
            assert await anext(lines) == {"choice": 0}
            if how == "the API":
                await line.close()
                await ended.wait()
        await ended.wait()


async def test_whoever_waits_hears_that_the_generator_has_gone(socket_folder: Path) -> None:
    asked = asyncio.Event()

    async def silent(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        async with linked(socket_folder, silent) as line:
            waiting = asyncio.create_task(heard(line, {}))
            await asked.wait()
        with pytest.raises(Gone):
            await waiting
        assert not line.open
        with pytest.raises(Gone):
            await heard(line, {})


async def test_a_generator_that_comes_back_is_found_again(socket_folder: Path) -> None:
    async def answer(_: Any, say: Say) -> None:
        say([LAST])

    async def answers(line: WebSocket) -> None:
        await Caller(line, answer).serve()

    path = socket_folder / "again.sock"
    generator = Generator(f"unix:{path}")
    generation = Generation(source="folder:m", name="m")
    for _ in range(2):
        assert not await generator.answers()
        refused = await asyncio.gather(
            *(anext(generator.lines(generation)) for _ in range(8)), return_exceptions=True
        )
        assert {type(each) for each in refused} == {Unavailable}
        async with served(path, WebSocketRoute(PATH, answers)):
            assert await generator.answers()
            assert [line async for line in generator.lines(generation)] == [LAST["usage"]]
    await generator.close()


async def test_it_goes_nowhere_else_and_believes_no_other_server(socket_folder: Path) -> None:
    asked: list[str] = []

    def redirect(*_: Any) -> Response:
        return RedirectResponse("/elsewhere")

    async def elsewhere(line: WebSocket) -> None:
        asked.append("elsewhere")
        await line.accept()

    async def stranger(line: WebSocket) -> None:
        await line.accept()
        await line.send_text('{"something": "else"}')
        await line.receive()

    routes = [Route(PATH, redirect), WebSocketRoute("/elsewhere", elsewhere)]
    async with asyncio.timeout(20):
        async with served(socket_folder / "moved.sock", *routes) as url:
            with pytest.raises(Gone):
                await Link.to(url)
        async with served(socket_folder / "other.sock", WebSocketRoute(PATH, stranger)) as url:
            with pytest.raises(Gone):
                await heard(await Link.to(url), {})
    assert not asked


async def test_who_comes_while_it_hangs_up_on_a_stranger_does_not_wait(socket_folder: Path) -> None:
    over = asyncio.Event()

    async def deaf_stranger(line: ServerConnection) -> None:
        line.transport.pause_reading()
        await line.send("0")
        await over.wait()
        line.transport.abort()

    path = socket_folder / "deaf.sock"
    async with asyncio.timeout(20), unix_serve(deaf_stranger, str(path)):
        line = await Link.to(f"unix:{path}")
        try:
            for _ in range(2):
                with pytest.raises(Gone):
                    await heard(line, {})
        finally:
            over.set()


async def test_a_request_that_grows_too_long_is_refused_and_ends_no_other(socket_folder: Path) -> None:
    asked, grown = asyncio.Event(), asyncio.Event()

    async def answer(_: Any, say: Say) -> None:
        asked.set()
        await grown.wait()
        say([LAST])

    async def answers(line: WebSocket) -> None:
        await Caller(line, answer).serve()

    path = socket_folder / "grown.sock"
    generator = Generator(f"unix:{path}")
    async with asyncio.timeout(60), served(path, WebSocketRoute(PATH, answers)):
        other = asyncio.ensure_future(anext(generator.lines(Generation(source="folder:m", name="m"))))
        await asked.wait()
        schema = {"enum": [1e15] * 2_000_000}
        with pytest.raises(TooLarge):
            await anext(generator.lines(Generation(source="folder:m", name="m", json_schema=schema)))
        grown.set()
        assert await other == LAST["usage"]
        await generator.close()


NOT_ORDERS: dict[str, list[str | bytes]] = {
    "no JSON": ["x"],
    "no object": ["[]"],
    "no number": ["{}"],
    "bytes": [b'{"id": 1, "stop": true}'],
    "no name of anything": ['{"id": [], "generation": {}}'],
    "an abyss": ["[" * 100_000],
    "a number twice": ['{"id": 1, "generation": {}}'] * 2,
}


@pytest.mark.parametrize("orders", NOT_ORDERS.values(), ids=NOT_ORDERS)
async def test_a_stranger_on_the_generators_line_is_hung_up_on(
    socket_folder: Path, orders: list[str | bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(*_: Any) -> None:
        await asyncio.Event().wait()

    where = str(socket_folder / "link.sock"), f"ws://generator{PATH}"
    async with asyncio.timeout(20), linked(socket_folder, silent), unix_connect(*where, proxy=None) as line:
        for order in orders:
            await line.send(order)
        with pytest.raises(ConnectionClosed):
            await line.recv()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_page_of_another_site_cannot_use_the_generator(socket_folder: Path) -> None:
    where = str(socket_folder / "link.sock"), f"ws://generator{PATH}"
    async with asyncio.timeout(20), linked(socket_folder, lambda *_: asyncio.sleep(0)):
        with pytest.raises(InvalidStatus, match="403"):
            await unix_connect(*where, origin="http://elsewhere.example", proxy=None)


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
