"""The generator process, as the API sees it: one request in, lines of JSON out.

A line is `{"choice", "text", "logprobs", "finish_reason"}` (a further piece of one choice; the whole of it
when not streaming), `{"usage": …}` (the last one), or `{"status", "error": …}` (instead of all that would
follow). An empty line is a sign of life.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, TypedDict, final

import httpx2
from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidRequest, NotFound, ServiceError, TooMany, Unavailable

# Seconds between signs of life, and without one before the generator is held to be gone.
HEARTBEAT = 5.0
SILENCE = 30.0


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
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._client = httpx2.AsyncClient(
            base_url="http://generator" if socket else url,
            # No limit here: the generator's queue is the one that says 429.
            transport=httpx2.AsyncHTTPTransport(uds=socket, limits=httpx2.Limits(max_connections=None)),
            timeout=httpx2.Timeout(SILENCE, connect=5.0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def answers(self) -> bool:
        """Whether it is there, within two seconds."""
        try:
            answer = await self._client.get("/health", timeout=2.0)
        except httpx2.HTTPError:
            return False
        return answer.status_code == 200

    async def lines(self, generation: Generation) -> AsyncGenerator[Piece | Usage | None]:
        """Pieces, then the usage; None is a sign of life. Closing the iterator stops the generation.

        Raises ServiceError: what the generator says, or Unavailable where it is not there.
        """
        body = generation.model_dump_json(exclude_defaults=True)
        try:
            async with self._client.stream("POST", "/generate", content=body) as response:
                if response.status_code != 200:
                    raise away()
                complete = False
                async with aclosing(response.aiter_lines()) as lines:  # type: ignore[type-var]
                    async for line in lines:
                        read = _read(line)
                        complete = complete or (read is not None and "total_tokens" in read)
                        yield read
                if not complete:
                    raise away()
        except httpx2.HTTPError as error:
            raise away() from error


def _read(line: str) -> Piece | Usage | None:
    if not line:
        return None
    read = json.loads(line)
    if "error" in read:
        raise _trouble(read["status"], read["error"])
    result: Piece | Usage = read.get("usage", read)
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
