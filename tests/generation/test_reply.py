"""The lines of an answer on their way out, over the bare ASGI interface: what matters is when."""

import asyncio

import pytest
from starlette.types import Message

from worker.generation import server
from worker.generation.server import Reply, Say


async def listen(reply: Reply, leave: asyncio.Event) -> list[bytes]:
    """The bodies that it sends to a client who stays until `leave`."""
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])

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

    bodies = await listen(Reply(load_then_talk), asyncio.Event())
    begun = bodies.index(b'{"choice": 0}\n')
    assert begun >= 1, "signs come before the first piece"
    assert set(bodies[:begun]) == {b"\n"}
    assert bodies[begun:] == [b'{"choice": %d}\n' % place for place in range(20)] + [b""]


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
