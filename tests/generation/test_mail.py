"""The way from the engine's thread to a task: nothing lost, in order, together where it can be."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from worker.generation.mail import Mail, Post
from worker.generation.request import Ended, Event, Scored, Written
from worker.generation.server import joined

Heard = tuple[int, Sequence[Event]]
LONG = 1_000.0  # seconds: a test that waits so long fails by its time limit


def written(token: int) -> Written:
    return Written(0, Scored(token))


async def test_all_arrives_in_order_whatever_the_threads_do() -> None:
    post = Post(asyncio.get_running_loop())
    mails: list[Mail[Heard]] = [Mail() for _ in range(4)]

    def speak() -> None:
        sinks = [post.sinks(mail)(place) for place, mail in enumerate(mails)]
        for token in range(500):
            for sink in sinks:
                sink([written(token)])

    thread = threading.Thread(target=speak)
    thread.start()
    for place, mail in enumerate(mails):
        heard: list[Heard] = []
        while len(heard) < 500:
            heard += await mail.take()
        assert heard == [(place, [written(token)]) for token in range(500)]
    thread.join()


async def test_a_step_of_many_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    knocks: list[Any] = []
    mails: list[Mail[Heard]] = [Mail() for _ in range(64)]
    sleeping = [asyncio.create_task(mail.take()) for mail in mails]
    await asyncio.sleep(0)
    with monkeypatch.context() as watched:
        watched.setattr(loop, "call_soon_threadsafe", knocks.append)
        post = Post(loop)
        for mail in mails:
            post.sinks(mail)(0)([written(1)])
            post.sinks(mail)(0)([written(2)])
    (wake,) = knocks
    wake()
    both = [(0, [written(1)]), (0, [written(2)])]
    assert await asyncio.gather(*sleeping) == [both] * 64


async def test_nobody_knocks_for_a_reader_who_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    knocks: list[Any] = []
    mail: Mail[Heard] = Mail()
    post = Post(loop)
    gathering = asyncio.create_task(mail.take(pause=LONG))
    await asyncio.sleep(0.01)
    with monkeypatch.context() as watched:
        watched.setattr(loop, "call_soon_threadsafe", knocks.append)
        post.sinks(mail)(0)([written(1)])
    assert knocks == []
    end = [Ended(0, "length")]
    post.sinks(mail)(0)(end)
    assert await gathering == [(0, [written(1)]), (0, end)]


async def test_a_pause_gathers_what_comes_and_ends_with_the_last_word() -> None:
    mail: Mail[Heard] = Mail()
    post = Post(asyncio.get_running_loop())
    sink = post.sinks(mail)(0)
    waiting = asyncio.create_task(mail.take(pause=LONG))
    for token in range(3):
        sink([written(token)])
        await asyncio.sleep(0.01)
    assert not waiting.done()
    sink([written(3), Ended(0, "length")])
    heard = await waiting
    assert joined(heard) == [(0, [*map(written, range(4)), Ended(0, "length")])]


async def test_who_falls_behind_hears_each_place_in_one_piece() -> None:
    mail = [(0, [written(1)]), (1, [written(7)]), (0, [written(2)])]
    assert joined(mail) == [(0, [written(1), written(2)]), (1, [written(7)])]
