"""From the engine's thread to the tasks of the event loop, with few knocks however much there is to tell."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from worker.generation.request import Ended, Event, Failed, Sink

T = TypeVar("T")


class Mail(Generic[T]):
    """What one task has yet to read, all of it at once. For one loop and one reader; items may be added by
    other threads, which then knock on the loop if they are told to."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._idle = False

    def add(self, item: T) -> bool:
        """Of any thread; whether the reader sleeps until it is woken."""
        self._items.append(item)
        return self._idle

    def wake(self) -> None:
        self._arrived.set()

    async def take(self, pause: float = 0) -> list[T]:
        """Everything that has come, at least one item.

        Lets up to `pause` seconds pass first, so that more comes together; being woken ends them.
        """
        if pause > 0:
            await self._sleep(pause)
        while True:
            self._arrived.clear()
            # First say so, then look: whoever adds first adds, then looks whether it was said.
            self._idle = True
            if self._items:
                break
            await self._arrived.wait()
        self._idle = False
        return [self._items.popleft() for _ in range(len(self._items))]

    async def _sleep(self, most: float) -> None:
        """Until woken, or for so many seconds. A timer that wakes is a third of `asyncio.timeout`."""
        timer = self._loop.call_later(most, self._arrived.set)
        try:
            await self._arrived.wait()
        finally:
            timer.cancel()


class Post:
    """Carries what the engine's thread says to the loop.

    Waking a loop costs a system call and the interpreter's lock, which the engine then waits for: so it
    knocks only for readers who sleep or must not, and once for all of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sleeping: deque[Mail[tuple[int, Sequence[Event]]]] = deque()
        self._called = False

    def sinks(self, mail: Mail[tuple[int, Sequence[Event]]]) -> Callable[[int], Sink]:
        """Receivers that may be called from the engine's thread."""
        return lambda place: lambda events: self._send(mail, place, events)

    def _send(self, mail: Mail[tuple[int, Sequence[Event]]], place: int, events: Sequence[Event]) -> None:
        if not (mail.add((place, events)) or isinstance(events[-1], Ended | Failed)):
            return
        self._sleeping.append(mail)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop has closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._called = False  # before they are woken: what comes now calls again
        while self._sleeping:
            self._sleeping.popleft().wake()
