"""Many clients of an OpenAI-compatible server at once, with as little work of their own as possible.

They share the processors with the server under test, so they speak HTTP over bare sockets, look at the clock
when bytes arrive, and read the JSON only after the last byte of all.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 600.0  # seconds for one answer


@dataclass(frozen=True)
class Question:
    """One request: streamed and greedy, so that all can be compared, unless `options` say otherwise."""

    prompt: str
    max_tokens: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reply:
    """What came back; `arrivals` are the times (monotonic, seconds) of the reads that brought its bytes."""

    status: int = 0
    began: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    body: bytes = b""

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON documents of the stream."""
        lines = (
            line.removeprefix(b"data: ") for line in self.body.split(b"\n") if line.startswith(b"data: ")
        )
        return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]

    @property
    def text(self) -> str:
        return "".join(
            choice.get("text") or "" for event in self.events for choice in event.get("choices", [])
        )

    @property
    def tokens(self) -> int:
        """By the server's own count. Raises ValueError for an answer without it: it was cut or refused."""
        counts = [event["usage"]["completion_tokens"] for event in self.events if event.get("usage")]
        if not counts:
            raise ValueError(f"status {self.status}, no usage: {self.body[-300:]!r}")
        return int(counts[-1])

    @property
    def first(self) -> float:
        """Seconds to the first piece of the answer."""
        return self.arrivals[0] - self.began

    @property
    def silence(self) -> float:
        """The longest time between two reads, in seconds."""
        return max((b - a for a, b in pairwise(self.arrivals)), default=0.0)

    @property
    def per_token(self) -> float:
        """Mean seconds of a token after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.tokens - 1)


class Server:
    """Where to ask, and what to send beside the question."""

    def __init__(self, url: str, headers: dict[str, str], options: dict[str, Any]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._options = options

    def request(self, question: Question) -> bytes:
        body = json.dumps(
            {
                "prompt": question.prompt,
                "max_tokens": question.max_tokens,
                "temperature": 0,
                "stream": True,
                **self._options,
                **question.options,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{self._headers}\r\n"
        )
        return head.encode() + body


async def ask(
    server: Server, question: Question, leave_after: int | None = None, patience: float = PATIENCE
) -> Reply:
    """Ask and listen to the end, or hang up after so many reads.

    Raises OSError where the server is not there or hangs up first, TimeoutError after `patience` seconds.
    """
    reply = Reply(began=time.monotonic())
    async with asyncio.timeout(patience):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            writer.write(server.request(question))
            if leave_after == 0:
                await writer.drain()
                return reply
            head = await reader.readuntil(b"\r\n\r\n")
            reply.status = int(head.split(b" ", 2)[1])
            raw = bytearray()
            while leave_after is None or len(reply.arrivals) < leave_after:
                read = await reader.read(1 << 16)
                if not read:
                    break
                reply.arrivals.append(time.monotonic())
                raw += read
            reply.body = unchunk(bytes(raw)) if b"chunked" in head.lower() else bytes(raw)
        finally:
            writer.close()
    return reply


def unchunk(raw: bytes) -> bytes:
    """The body of a chunked answer, as far as it arrived."""
    parts, at = [], 0
    while (end := raw.find(b"\r\n", at)) > at:
        size = int(raw[at:end], 16)
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


async def crowd(server: Server, questions: Sequence[Question], clients: int) -> list[Reply]:
    """`clients` at a time, each with its next question as soon as its last one is answered."""
    waiting = iter(enumerate(questions))
    replies: dict[int, Reply] = {}

    async def client() -> None:
        for place, question in waiting:
            replies[place] = await ask(server, question)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [replies[place] for place in range(len(questions))]
