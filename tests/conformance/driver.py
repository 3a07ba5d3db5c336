"""The official SDK, synchronous and asynchronous, unmodified; every answer validated strictly."""

import asyncio
from collections.abc import Awaitable
from operator import attrgetter
from typing import Any, Protocol

import httpx2
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Call(Protocol):
    """`call("files.create", …)` is `client.files.create(…)`, whichever client it is."""

    answers: list[httpx2.Response]

    def __call__(self, name: str, /, *given: Any, **named: Any) -> Any: ...


def strictly(answer: httpx2.Response, got: Any) -> Any:
    """What the SDK made of an answer, once the answer has passed as JSON of exactly that class.

    The SDK itself builds objects without looking: a string passes for a number, and what is missing is None.
    """
    if isinstance(got, BaseModel) and answer.headers["content-type"].startswith("application/json"):
        type(got).model_validate_json(answer.text, strict=True)
    assert answer.headers["x-request-id"].startswith("req_")
    return got


class Synchronous:
    """Calls `OpenAI`."""

    def __init__(self, url: str, key: str) -> None:
        self.answers: list[httpx2.Response] = []
        http = httpx2.Client(event_hooks={"response": [self._keep]}, timeout=30)
        self.client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)

    def _keep(self, answer: httpx2.Response) -> None:
        answer.read()
        self.answers.append(answer)

    def __call__(self, name: str, /, *given: Any, **named: Any) -> Any:
        got = attrgetter(name)(self.client)(*given, **named)
        return strictly(self.answers[-1], got)

    def every(self, name: str, /, *given: Any, **named: Any) -> list[Any]:
        """All items of all pages."""
        return list(attrgetter(name)(self.client)(*given, **named))

    def close(self) -> None:
        self.client.close()


class Asynchronous:
    """Calls `AsyncOpenAI`, on a loop of its own."""

    def __init__(self, url: str, key: str) -> None:
        self.answers: list[httpx2.Response] = []
        self._runner = asyncio.Runner()
        http = httpx2.AsyncClient(event_hooks={"response": [self._keep]}, timeout=30)
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)

    async def _keep(self, answer: httpx2.Response) -> None:
        await answer.aread()
        self.answers.append(answer)

    def __call__(self, name: str, /, *given: Any, **named: Any) -> Any:
        got = self._runner.run(_await(attrgetter(name)(self.client)(*given, **named)))
        return strictly(self.answers[-1], got)

    def every(self, name: str, /, *given: Any, **named: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in attrgetter(name)(self.client)(*given, **named)]

        return self._runner.run(collect())

    def close(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


async def _await(coming: Awaitable[Any]) -> Any:
    return await coming
