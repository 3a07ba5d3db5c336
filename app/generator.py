"""The generator process, as the API sees it: one request in, lines out.

A line is `{"choice", "text", "logprobs", "finish_reason"}` (a further piece of one choice; the whole of it
when not streaming), `{"usage": …}` (the last one), or `{"status", "error": …}` (instead of all that would
follow). How they travel: app/link.py.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Literal, TypedDict, final

from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidRequest, NotFound, ServiceError, TooLarge, TooMany, Unavailable
from app.link import LONGEST, Gone, Line, Link


class Generation(BaseModel):
    """What to generate, all ranges checked. Prompts are texts or token ids; an empty one is a new document.

    `base` is the source of the model that this one was trained from, where it was trained here; `seal` what
    its folder is known by (app/seal.py).

    With `messages` the assistant's next turn is written instead; with `json_schema`, JSON that keeps to it.

    `best_of` candidates are written for each prompt and the `n` likeliest given. With `fit`, `max_tokens` is
    lowered to what the context has room for; otherwise asking for more is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    name: str
    base: str | None = None
    seal: str | None = None
    prompts: list[str | list[int]] = Field(default_factory=list)
    messages: list[dict[str, Any]] | None = None
    json_schema: dict[str, Any] | None = None
    stream: bool = False
    echo: bool = False
    n: int = 1
    best_of: int = 1
    max_tokens: int = 16
    fit: bool = False
    logprobs: int | None = None
    stop: list[str] = Field(default_factory=list)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    seed: int | None = None


@final
class Logprobs(TypedDict):
    """Of completions: four lists of equal length, one entry a token; `text_offset` counts characters of the
    choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(TypedDict):
    """A token that a place could have had; `bytes` because it may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


@final
class TokenLogprob(TopLogprob):
    """Of chat: a token, and the likeliest ones of its place."""

    top_logprobs: list[TopLogprob]


@final
class Piece(TypedDict):
    """A further piece of a choice; `choice` = prompt number times n + number of the choice."""

    choice: int
    text: str
    logprobs: Logprobs | list[TokenLogprob] | None
    finish_reason: Literal["stop", "length"] | None


@final
class Usage(TypedDict):
    """Tokens read, tokens written (end tokens and all candidates of `best_of` included), and their sum."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Generator:
    """A client of one generator, for the life of the API."""

    def __init__(self, url: str) -> None:
        """`url` is `http://host:port` or `unix:/path/of/socket`."""
        self.url = url
        self._linking: asyncio.Task[Link] | None = None

    async def close(self) -> None:
        if self._linking is not None:
            self._linking.cancel()
            with suppress(Gone, asyncio.CancelledError):
                await (await self._linking).close()

    async def answers(self) -> bool:
        """Whether it is there, within two seconds."""
        try:
            async with asyncio.timeout(2.0):
                await (await self._linked()).answers()
        except (Gone, TimeoutError):
            return False
        return True

    async def lines(self, generation: Generation) -> AsyncGenerator[Piece | Usage | None]:
        """Pieces, then the usage; None is a sign of life. Closing the iterator stops the generation.

        Raises ServiceError: what the generator says, Unavailable where it is not there, InvalidRequest for an
        answer that is too long, or TooLarge: numbers such as 1e15 are written out, so a schema of them grows
        to four times what was sent.
        """
        wanted = generation.model_dump_json(exclude_defaults=True)
        if len(wanted.encode()) > LONGEST:
            raise TooLarge(f"Written out, this takes more than {LONGEST:,} bytes.", code="body_too_large")
        try:
            link = await self._linked()
            async with aclosing(link.lines(wanted, whole=not generation.stream)) as lines:
                async for line in lines:
                    yield None if line is None else _read(line)
        except Gone as error:
            raise away() from error

    async def _linked(self) -> Link:
        """One link for all, another where it is over; all wait for the one being made. Raises Gone."""
        if self._linking is None or _over(self._linking):
            self._linking = asyncio.create_task(Link.to(self.url))
        return await asyncio.shield(self._linking)


def _over(linking: asyncio.Task[Link]) -> bool:
    return linking.done() and (linking.cancelled() or bool(linking.exception()) or not linking.result().open)


def _read(line: Line) -> Piece | Usage:
    if "error" in line:
        raise _trouble(line["status"], line["error"])
    result: Piece | Usage = line.get("usage", line)
    return result


def _trouble(status: int, error: dict[str, str | None]) -> ServiceError:
    kinds: dict[int, type[ServiceError]] = {
        kind.status: kind for kind in (InvalidRequest, NotFound, TooMany, Unavailable)
    }
    message = error["message"] or "The generator failed."
    return kinds.get(status, ServiceError)(message, param=error["param"], code=error["code"])


def away() -> Unavailable:
    """What is said of a generator that is not there."""
    return Unavailable(
        "The generator is not answering; it may be starting. Try again.", code="generator_unavailable"
    )
