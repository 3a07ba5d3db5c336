"""Models that another OpenAI-compatible server (vLLM, say) answers for: the request goes there as it came.

Only addresses from the settings are ever asked, and redirects are not followed: no request decides where a
connection leads to.
"""

import json
from collections.abc import AsyncIterator, Mapping

import httpx2
import structlog
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.answers import answer
from app.completion import data_event, unless_gone
from app.errors import ServiceError, Unavailable
from app.settings import Upstream
from app.tables import JsonObject

log = structlog.get_logger()

# Seconds of silence before a server counts as gone: as long as the SDK waits.
SILENCE = 600.0
KEPT_HEADERS = ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "cache-control")


class Upstreams:
    """The servers by model name; one client for the life of the API."""

    def __init__(self, known: Mapping[str, Upstream]) -> None:
        self._known = known
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(SILENCE, connect=5.0),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=False,
        )

    def __contains__(self, model: str) -> bool:
        return model in self._known

    async def close(self) -> None:
        await self._client.aclose()

    def answer(self, model: str, path: str, body: JsonObject) -> Response:
        """What the model's server says to this body, byte for byte."""
        upstream = self._known[model]
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if upstream.key is not None:
            headers["authorization"] = f"Bearer {upstream.key.get_secret_value()}"
        content = json.dumps(body | {"model": upstream.model or model}, ensure_ascii=False)
        request = self._client.build_request(
            "POST", f"{upstream.url.rstrip('/')}/{path}", content=content.encode(), headers=headers
        )
        return _Proxied(self._client, request, stream=body.get("stream") is True)


class _Proxied(Response):
    """A response that the other server is still to give; a client who leaves before stops it."""

    def __init__(self, client: httpx2.AsyncClient, request: httpx2.Request, stream: bool) -> None:
        super().__init__()
        self._client, self._request, self._stream = client, request, stream
        self._answer: httpx2.Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await unless_gone(receive, self._respond())
            if response is not None:
                await response(scope, receive, send)
        finally:
            if self._answer is not None:
                await self._answer.aclose()

    async def _respond(self) -> Response:
        try:
            got = self._answer = await self._client.send(self._request, stream=True)
        except httpx2.HTTPError as error:
            log.warning("upstream_away", url=str(self._request.url), error=type(error).__name__)
            return answer(_away())
        if got.status_code in (401, 403, 404) or got.is_redirect:
            # Our settings are at fault, not the caller's key or model.
            log.warning("upstream_refuses", url=str(self._request.url), status=got.status_code)
            return answer(_away())
        headers = {name: got.headers[name] for name in KEPT_HEADERS if name in got.headers}
        return StreamingResponse(self._bytes(got), got.status_code, headers=headers)

    async def _bytes(self, got: httpx2.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in got.aiter_raw():
                yield chunk
        except httpx2.HTTPError:
            if not (self._stream and got.status_code == 200):
                raise
            yield b"\n\n" + data_event(_away().body()).encode()


def _away() -> ServiceError:
    return Unavailable(
        "The server that this model is served from is not answering. Try again.", code="upstream_unavailable"
    )
