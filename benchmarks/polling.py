"""Clients that poll, with as little work of their own as possible: they share the processors with servers."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

PATIENCE = 60.0  # seconds for the last answers


@dataclass
class Polled:
    """What came back: seconds of each answer, how many of each status, one body."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    body: bytes = b""
    lasted: float = 0.0

    @property
    def throughput(self) -> float:
        return len(self.seconds) / self.lasted

    def percentile(self, share: float) -> float:
        """Seconds within which such a share of the answers came."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


class _Poller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, or after `pause`."""

    def __init__(self, request: Callable[[], bytes], found: Polled, until: float, pause: float) -> None:
        self._request, self._found, self._until, self._pause = request, found, until, pause
        self._buffer = bytearray()
        self._length = -1
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._ask()

    def _ask(self) -> None:
        if time.perf_counter() >= self._until:
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._length < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            at = head.index(b"content-length: ") + 16
            self._length = end + 4 + int(head[at : (head + b"\r\n").index(b"\r\n", at)])
        if len(self._buffer) < self._length:
            return
        self._found.seconds.append(time.perf_counter() - self._began)
        self._found.statuses[int(self._buffer[9:12])] += 1
        self._found.body = bytes(self._buffer).partition(b"\r\n\r\n")[2]
        self._buffer.clear()
        self._length = -1
        if self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._ask)
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._found.statuses[0] += 1
        if not self.ended.done():
            self.ended.set_result(None)


async def poll(
    port: int, request: Callable[[], bytes], clients: int, seconds: float, pause: float = 0.0
) -> Polled:
    """So many connections that ask and ask; each pauses between an answer and its next question."""
    found = Polled()
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    pollers = []
    for _ in range(clients):
        made = await loop.create_connection(
            lambda: _Poller(request, found, began + seconds, pause), "127.0.0.1", port
        )
        pollers.append(made[1])
    async with asyncio.timeout(seconds + PATIENCE):
        await asyncio.gather(*(poller.ended for poller in pollers))
    found.lasted = time.perf_counter() - began
    return found


def get(path: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
