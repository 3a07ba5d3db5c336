"""One connection to a generator, a WebSocket, which all that an API process asks of it shares.

With an HTTP request for each, an answer of 56 tokens among 64 took the API 7.1 ms of a processor, and takes
5.4 so: whatever is ready for all answers goes in one message.

From here: `{"id", "generation"}` begins an answer, `{"id", "stop"}` ends it before its time. From there:
`[[id, [line, …]], …]`, lines of several answers as app/generator.py has them. A message is read in one go, in
which the API does nothing else: so what is long comes in several, of PART bytes or one line.
"""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, TypeAlias

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from app.errors import InvalidRequest
from app.limits import MAX_JSON_BYTES

PATH = "/answers"
# Bytes of a generation: of a body with its defaults resolved. The generator hangs up on who sends much more,
# and all answers of that API would end with it. The API hangs up on a longer message too, which an honest
# generator does not send: a choice of 1,024 tokens is one line, 1.6 MB with 20 log-probabilities for each.
LONGEST = 2 * MAX_JSON_BYTES
PART = 256 * 1024  # read in 4 ms
# Bytes of memory for what has come of all answers and was not passed on, whoever reads slowly and whatever a
# generator says. In chat the longest, 128 choices of 1,024 tokens with 20 log-probabilities each, is 205 MB.
HELD = 512 * 1024 * 1024
PARSED = (
    8  # times its text is what a line takes that waits: log-probabilities 2.6 to 4.4, lists of nothing more
)
# Seconds: to connect; between signs of life, and without one before the generator is held to be gone.
CONNECT = 5.0
HEARTBEAT = 5.0
SILENCE = 30.0

# At the level `debug` the library writes every frame down: what people ask, and what they are answered.
FRAMES = logging.getLogger(f"{__name__}.frames")
FRAMES.setLevel(logging.INFO)

Line: TypeAlias = dict[str, Any]


class Gone(Exception):
    """The generator cannot be reached, or left in the middle."""


def too_long() -> InvalidRequest:
    """What is said of an answer that no line can carry, or no API hold; not 5xx, which the SDK asks again."""
    return InvalidRequest(
        "The answer is too long to be passed on: ask for fewer choices or log-probabilities.",
        code="answer_too_long",
    )


class _Direct(connect):
    """Only addresses from the settings are ever connected to: no server decides where a request goes."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class _Answer:
    """An answer on its way: what has come and nobody has read, each with its memory; None: it is gone."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.said: asyncio.Queue[tuple[list[Line], int] | None] = asyncio.Queue()
        self.held = 0  # bytes

    def end(self, error: InvalidRequest) -> None:
        """Nothing of it but the error is there to be read."""
        while not self.said.empty():
            self.said.get_nowait()
        self.said.put_nowait(([{"status": error.status, **error.body()}], 0))


class Link:
    """For one event loop. `Link.to` connects one; once it is not `open` any more, another is needed."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._answers: dict[int, _Answer] = {}
        self._held = 0  # bytes, of all of them
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self.open = True
        self._hearing = asyncio.create_task(self._hear())
        self._telling = asyncio.create_task(self._tell())

    @classmethod
    async def to(cls, url: str) -> "Link":
        """A link to `http://host:port` or `unix:/path/of/socket`. Raises Gone."""
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        address = "ws://generator" if socket else "ws" + url.removeprefix("http").rstrip("/")
        where: dict[str, Any] = {"unix": True, "path": socket} if socket else {}
        try:
            connection = await _Direct(
                address + PATH,
                **where,
                logger=FRAMES,
                proxy=None,
                compression=None,
                max_size=LONGEST + 1024,  # with its number
                open_timeout=CONNECT,
                ping_interval=HEARTBEAT,
                ping_timeout=SILENCE - HEARTBEAT,
                close_timeout=1.0,
            )
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            raise Gone from error
        return cls(connection)

    async def close(self) -> None:
        self._telling.cancel()
        await self._connection.close()
        await asyncio.gather(self._hearing, self._telling, return_exceptions=True)

    async def answers(self) -> None:
        """Returns when it has given a sign of life. Raises Gone."""
        try:
            await (await self._connection.ping())
        except ConnectionClosed as error:
            raise Gone from error

    async def lines(self, generation: str, whole: bool = False) -> AsyncGenerator[Line | None]:
        """What is said of a generation (JSON), up to the line that ends it; None where nothing was said for
        HEARTBEAT seconds. Closing the iterator stops the generation. Raises Gone.

        With `whole`, the reader keeps all of it until it is complete.
        """
        number, answer = next(self._numbers), _Answer(whole)
        if not self.open:
            raise Gone
        self._answers[number] = answer
        self._orders.put_nowait(f'{{"id": {number}, "generation": {generation}}}')
        ended = False
        try:
            while not ended:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        said = await answer.said.get()
                except TimeoutError:
                    yield None
                    continue
                if said is None:
                    ended = True
                    raise Gone
                lines, size = said
                for line in lines:
                    ended = "usage" in line or "error" in line
                    yield line
                    if ended:
                        break
                self._keep(answer, (size // PARSED if answer.whole else 0) - size)
        finally:
            self._keep(answer, -answer.held)
            if self._answers.pop(number, None) and not ended:
                self._stop(number)

    def _stop(self, number: int) -> None:
        self._orders.put_nowait(f'{{"id": {number}, "stop": true}}')

    def _keep(self, answer: _Answer, size: int) -> None:
        size = max(size, -answer.held)
        answer.held += size
        self._held += size

    async def _tell(self) -> None:
        try:
            with suppress(ConnectionClosed):
                while True:
                    await self._connection.send(await self._orders.get())
        finally:
            await self._connection.close()  # or whoever waits would wait for ever

    async def _hear(self) -> None:
        """Hands out what comes, until the connection is over, however it ends."""
        try:
            async for message in self._connection:
                self._hand_out(message)
        except (ConnectionClosed, ValueError, TypeError, RecursionError):
            pass  # all but the first: of something that is no generator
        finally:
            self.open = False  # who comes while it is being closed is told by nobody else
            self._telling.cancel()
            for answer in self._answers.values():
                answer.said.put_nowait(None)
            await self._connection.close()

    def _hand_out(self, message: str | bytes) -> None:
        said: list[tuple[_Answer, list[Line]]] = []
        for number, lines in json.loads(message):
            if not all(isinstance(line, dict) for line in lines):
                raise TypeError("no lines")
            if answer := self._answers.get(number):
                said.append((answer, lines))
        for answer, lines in said:
            size = PARSED * len(message) // len(said)
            self._keep(answer, size)
            answer.said.put_nowait((lines, size))
        while self._held > HELD:
            number, answer = max(self._answers.items(), key=lambda each: each[1].held)
            del self._answers[number]
            self._keep(answer, -answer.held)
            answer.end(too_long())
            self._stop(number)
