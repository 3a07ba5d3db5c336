"""One POST to somebody else's server, from which we want a status and nothing else."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import httpx2

from app.webhooks import address
from app.webhooks.address import Forbidden, Network, Resolve, Target

ANSWER_BYTES = 64 * 1024  # of an answer's body, read out of courtesy and thrown away
ANSWER_SECONDS = 1.0
ADDRESSES = 4  # of one name, tried in turn until one accepts a connection
LONGEST_WISH = 86_400  # seconds that a receiver's retry-after can ask for


@dataclass(frozen=True)
class Outcome:
    """How a POST ended: with a status, or with words that may be shown to whoever registered the URL."""

    status_code: int | None
    error: str | None
    seconds: float
    retry_after: timedelta = timedelta(0)

    @property
    def delivered(self) -> bool:
        return self.error is None


class Post:
    """Sends; one for the life of the API. `resolve` is given by tests that bring names of their own."""

    def __init__(self, allow: Sequence[Network], timeout: timedelta, resolve: Resolve | None = None) -> None:
        self._allow, self._timeout = tuple(allow), timeout.total_seconds()
        self._resolver = address.Resolver()
        self._resolve = resolve or self._resolver
        # Made once: reading the system's certificates takes longer than a delivery.
        self._ssl: ssl.SSLContext = httpx2.create_ssl_context()

    def close(self) -> None:
        self._resolver.close()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """POST these bytes, once. From looking up the name to the answer's status it has the timeout."""
        begin = time.monotonic()
        status, wish, error = None, timedelta(0), None
        try:
            status, wish = await self._post(address.parse(url, self._allow), headers, body)
            error = _complaint(status)
        except TimeoutError:
            error = f"No answer within {self._timeout:g} s."
        except Forbidden as refusal:
            error = f"Not sent: {refusal}"
        except OSError as failure:
            error = f"Its name cannot be looked up: {failure.strerror or type(failure).__name__}."
        except (httpx2.HTTPError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:300].rstrip(": ")
        return Outcome(status, error, time.monotonic() - begin, wish)

    async def _post(self, target: Target, headers: Mapping[str, str], body: bytes) -> tuple[int, timedelta]:
        # A client for each: a connection kept for an address may have been opened under another name's
        # certificate. No proxy of the environment, since it would look the name up itself.
        transport = httpx2.AsyncHTTPTransport(verify=self._ssl, trust_env=False)
        async with httpx2.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=self._timeout
        ) as client:
            async with asyncio.timeout(self._timeout):
                answer = await self._reach(client, target, headers, body)
            with contextlib.suppress(httpx2.HTTPError, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await _drain(answer)
            await answer.aclose()
        return answer.status_code, _retry_after(answer)

    async def _reach(
        self, client: httpx2.AsyncClient, target: Target, headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        literal = address.literal(target.host)
        found = [literal] if literal else map(ip_address, await self._resolve(target.host, target.port))
        failure: Exception = OSError("it has no address")
        for place in address.permit(target, list(found), self._allow)[:ADDRESSES]:
            request = client.build_request(
                "POST",
                target.url.copy_with(host=str(place)),
                headers={**headers, "host": target.url.netloc.decode(), "connection": "close"},
                content=body,
                # The name, not the address, is what the certificate must bear.
                extensions={"sni_hostname": target.host.rstrip(".")},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error  # nothing has been sent yet
        raise failure


def _complaint(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"It answered {status}; redirects are not followed, so register the final URL."
    return f"It answered {status}."


def _retry_after(answer: httpx2.Response) -> timedelta:
    wish = answer.headers.get("retry-after", "")
    seconds = int(wish) if wish.isascii() and wish.isdigit() and len(wish) < 10 else 0
    return timedelta(seconds=min(seconds, LONGEST_WISH))


async def _drain(answer: httpx2.Response) -> None:
    """Some of the body, as it comes: never unpacked, never kept."""
    seen = 0
    async with contextlib.aclosing(answer.aiter_raw()) as parts:
        async for part in parts:
            seen += len(part)
            if seen > ANSWER_BYTES:
                return
