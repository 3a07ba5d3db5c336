"""One connection to a generator, a WebSocket, which all that an API process asks of it shares.

With an HTTP request for each, an answer of 56 tokens among 64 took the API 7.1 ms of a processor, and takes
5.4 so: whatever is ready for all answers goes in one message.

From here: `{"id", "generation"}` begins an answer, `{"id", "stop"}` ends it before its time. From there:
`[[id, [line, …]], …]`, lines of several answers as app/generator.py has them.
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

from app.limits import MAX_JSON_BYTES

PATH = "/answers"
# Bytes of a generation: of a body with its defaults resolved. The generator hangs up on who sends much more,
# and all answers of that API would end with it.
LONGEST = 2 * MAX_JSON_BYTES
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


class _Direct(connect):
    """Only addresses from the settings are ever connected to: no server decides where a request goes."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class Link:
    """For one event loop. `Link.to` connects one; once it is not `open` any more, another is needed."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._mail: dict[int, asyncio.Queue[Line | None]] = {}  # of answers on their way; None: gone
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
                max_size=None,  # all candidates of an answer with their log-probabilities may be one line
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

    async def lines(self, generation: str) -> AsyncGenerator[Line | None]:
        """What is said of a generation (JSON), up to the line that ends it; None where nothing was said for
        HEARTBEAT seconds. Closing the iterator stops the generation. Raises Gone."""
        number, mail = next(self._numbers), asyncio.Queue[Line | None]()
        if not self.open:
            raise Gone
        self._mail[number] = mail
        self._orders.put_nowait(f'{{"id": {number}, "generation": {generation}}}')
        ended = False
        try:
            while not ended:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        line = await mail.get()
                except TimeoutError:
                    yield None
                    continue
                if line is None:
                    ended = True
                    raise Gone
                ended = "usage" in line or "error" in line
                yield line
        finally:
            del self._mail[number]
            if not ended:
                self._orders.put_nowait(f'{{"id": {number}, "stop": true}}')

    async def _tell(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._connection.send(await self._orders.get())

    async def _hear(self) -> None:
        """Hands out what comes, until the connection is over, however it ends."""
        try:
            async for message in self._connection:
                for number, lines in json.loads(message):
                    if mail := self._mail.get(number):
                        for line in lines:
                            mail.put_nowait(line)
        except (ConnectionClosed, ValueError, TypeError, RecursionError):
            pass  # all but the first: of something that is no generator
        finally:
            self.open = False  # who comes while it is being closed is told by nobody else
            self._telling.cancel()
            for mail in self._mail.values():
                mail.put_nowait(None)
            await self._connection.close()
