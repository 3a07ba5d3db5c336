"""The line between API and generator when one end is hostile, broken or slow: bounded, and never silent."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from app import link
from app.errors import InvalidRequest
from app.generator import Generation, Generator
from app.link import PATH, Gone, Link
from tests.generation.test_link import LAST, heard, linked, served
from worker.generation import server
from worker.generation.server import Say, pass_on

SOUP = {"choice": 0, "text": "soup " * 200}
TOO_LONG = "answer_too_long"


@asynccontextmanager
async def answered_by(path: Path, speak: Callable[[WebSocket], Awaitable[None]]) -> AsyncIterator[Link]:
    """A link to something that has heard the first order, and is no generator of ours."""

    async def stranger(line: WebSocket) -> None:
        await line.accept()
        await line.receive_text()
        await speak(line)

    async with served(path / "stranger.sock", WebSocketRoute(PATH, stranger)) as url:
        found = await Link.to(url)
        try:
            yield found
        finally:
            await found.close()


def message(*said: tuple[int, list[Any]]) -> str:
    return json.dumps(said, separators=(",", ":"))


async def last_of(connection: ClientConnection) -> None:
    while True:
        await connection.recv()


async def test_a_message_longer_than_any_line_is_not_read(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LONGEST", 100_000)

    async def boast(line: WebSocket) -> None:
        await line.send_text(message((0, [{"choice": 0, "text": "a" * 200_000}])))
        await line.receive()

    async with asyncio.timeout(20), answered_by(socket_folder, boast) as line:
        with pytest.raises(Gone):
            await heard(line, {})


@pytest.mark.parametrize("said", [[5], ["usage"], 5, None])
async def test_lines_that_are_none_end_the_link(socket_folder: Path, said: Any) -> None:
    async def babble(line: WebSocket) -> None:
        await line.send_text(message((0, said)))
        await line.receive()

    async with asyncio.timeout(20), answered_by(socket_folder, babble) as line:
        with pytest.raises(Gone):
            await heard(line, {})


@pytest.mark.parametrize("whole", [False, True])
async def test_what_is_said_without_end_is_cut_off_and_other_answers_go_on(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Of a stream nobody reads; of a whole answer, which is read at once and kept."""
    monkeypatch.setattr(link, "HELD", 2_000_000)
    stopped = asyncio.Event()

    async def answer(kind: str, say: Say) -> None:
        if kind == "short":
            await stopped.wait()
            say([SOUP, LAST])
            return
        try:
            while True:
                await say([SOUP]).wait()
                await asyncio.sleep(0)
        finally:
            stopped.set()

    async with asyncio.timeout(60), linked(socket_folder, answer) as line:
        other = asyncio.create_task(heard(line, "short"))
        async with aclosing(line.lines('"endless"', whole=whole)) as lines:
            last = await anext(lines)
            if not whole:
                await stopped.wait()
                assert line._held <= 2_000_000
            async for said in lines:
                last = said
        assert last is not None
        assert last["error"]["code"] == TOO_LONG
        assert await other == [SOUP, LAST]
        assert (line._held, line._answers) == (0, {})


async def test_a_stream_that_is_read_may_be_longer_than_what_is_held(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "HELD", 8_000_000)

    async def answer(count: int, say: Say) -> None:
        await pass_on(iter([SOUP] * count), say, 8)  # type: ignore[list-item]
        say([LAST])

    async with asyncio.timeout(60), linked(socket_folder, answer) as line:
        assert await heard(line, 3000) == [SOUP] * 3000 + [LAST]
        assert line._held == 0


async def test_whoever_leaves_is_not_counted_any_more(socket_folder: Path) -> None:
    async def answer(_: Any, say: Say) -> None:
        say([SOUP] * 9)
        await asyncio.Event().wait()

    async with asyncio.timeout(20), linked(socket_folder, answer) as line:
        for whole in (False, True):
            async with aclosing(line.lines("{}", whole=whole)) as lines:
                await anext(lines)
                assert line._held > 0
        assert (line._held, line._answers) == (0, {})


async def test_a_line_that_is_too_long_is_an_error_for_who_asked_alone(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LONGEST", 100_000)

    long = {"choice": 0, "text": "a" * 200_000, "logprobs": None, "finish_reason": "stop"}

    async def write(request: Generation, say: Say) -> None:
        say([long if request.prompts == ["long"] else SOUP, LAST])

    own = server.Server(None, None, 4)  # type: ignore[arg-type]  # neither engine nor models: `write` needs none
    monkeypatch.setattr(own, "_answer", write)
    async with (
        asyncio.timeout(20),
        served(socket_folder / "l.sock", WebSocketRoute(PATH, own.answers)) as url,
    ):
        generator = Generator(url)
        asked = [Generation(source="folder:m", name="m", prompts=[each]) for each in ("long", "short")]
        with pytest.raises(InvalidRequest) as refused:
            _ = [each async for each in generator.lines(asked[0])]
        assert refused.value.code == TOO_LONG
        assert [each async for each in generator.lines(asked[1])] == [SOUP, LAST["usage"]]
        await generator.close()


async def test_a_long_answer_comes_in_parts_and_others_between(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is read in one go, in which the API does nothing else."""
    long = {"choice": 0, "text": "soup " * 20_000}
    sent: list[Any] = []
    send = WebSocket.send_text

    async def counted(line: WebSocket, data: str) -> None:
        sent.append(data)
        await send(line, data)

    monkeypatch.setattr(WebSocket, "send_text", counted)
    begun = asyncio.Event()

    async def answer(kind: str, say: Say) -> None:
        if kind == "long":
            begun.set()
            await pass_on(iter([long] * 60), say, 1)  # type: ignore[list-item]
        else:
            await begun.wait()
            say([SOUP])
        say([LAST])

    async with asyncio.timeout(60), linked(socket_folder, answer) as line:
        short, whole = await asyncio.gather(heard(line, "short"), heard(line, "long"))
    assert (short, whole) == ([SOUP, LAST], [long] * 60 + [LAST])
    assert max(map(len, sent)) <= link.PART + 100
    assert next(place for place, text in enumerate(sent) if '{"usage"' in text) < 5, "the short one has ended"


@pytest.mark.parametrize("end", ["the generator", "the API"])
async def test_an_end_that_cannot_tell_hangs_up_and_says_why(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("out of order")

    async def answer(_: Any, say: Say) -> None:
        say([SOUP])
        await asyncio.Event().wait()

    async with asyncio.timeout(20), linked(socket_folder, answer) as line:
        if end == "the API":
            monkeypatch.setattr(ClientConnection, "send", fail)
        else:
            monkeypatch.setattr(WebSocket, "send_text", fail)
        with pytest.raises(Gone):
            await heard(line, {})
        assert not line.open
    if end == "the generator":
        assert "out of order" in caplog.text


async def test_an_api_that_reads_nothing_is_hung_up_on(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SILENCE", 0.5)
    ended = asyncio.Event()

    async def endless(_: Any, say: Say) -> None:
        try:
            while True:
                await say([SOUP]).wait()
        finally:
            ended.set()

    where = str(socket_folder / "link.sock"), f"ws://generator{PATH}"
    patience: dict[str, Any] = {"ping_interval": None, "close_timeout": 0.1}
    async with (
        asyncio.timeout(20),
        linked(socket_folder, endless),
        unix_connect(*where, proxy=None, **patience) as deaf,
    ):
        await deaf.send('{"id": 0, "generation": {}}')
        deaf.transport.pause_reading()
        await ended.wait()
        deaf.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await last_of(deaf)
