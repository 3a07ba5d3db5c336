"""From the engine's thread to the tasks of the event loop, with one knock a step however many are waiting."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from worker.generation.request import Ended, Event, Failed, Sink

T = TypeVar("T")


class Mail(Generic[T]):
    """What one task has yet to read, all of it at once. For one loop, and one reader."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = asyncio.Event()
        self._urgent = asyncio.Event()
        self._ended = False

    def put(self, item: T, urgent: bool = False) -> None:
        self._items.append(item)
        self._arrived.set()
        if urgent:
            self._urgent.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._arrived.set()
        self._urgent.set()

    async def take(self, pause: float = 0) -> list[T]:
        """Everything that has come, at least one item; nothing once it has ended.

        Waits `pause` seconds first, so that more comes together, unless something urgent is there.
        """
        if pause > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._urgent.wait()
        await self._arrived.wait()
        items, self._items = self._items, []
        if not self._ended:
            self._arrived.clear()
            self._urgent.clear()
        return items


class Post:
    """Carries what the engine's thread says to the loop.

    Waking a loop costs a system call and the interpreter's lock; a step of 64 would pay that 64 times.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bag: deque[tuple[Mail[tuple[int, Sequence[Event]]], int, Sequence[Event]]] = deque()
        self._called = False

    def sinks(self, mail: Mail[tuple[int, Sequence[Event]]]) -> Callable[[int], Sink]:
        """Receivers that may be called from the engine's thread."""
        return lambda place: lambda events: self._send(mail, place, events)

    def _send(self, mail: Mail[tuple[int, Sequence[Event]]], place: int, events: Sequence[Event]) -> None:
        self._bag.append((mail, place, events))
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop has closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # before the bag is emptied: what comes now calls again
        while self._bag:
            mail, place, events = self._bag.popleft()
            mail.put((place, events), urgent=isinstance(events[-1], Ended | Failed))
