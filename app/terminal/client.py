"""The public API as the command line calls it: JSON in, JSON out, refusals as one sentence.

Whatever can be said twice without harm is said again when the line breaks or the service is busy: every GET,
and a POST that carries an Idempotency-Key or is marked `repeatable`.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlsplit

import httpx2

from app.terminal.outcome import Failure, Refused, Unreachable

JsonObject = dict[str, Any]
TRIES = 5
FIRST_WAIT = 0.5  # seconds; doubled each time
LONGEST_WAIT = 30.0  # seconds that a `retry-after` may ask for
PATIENCE = httpx2.Timeout(
    60.0, connect=5.0
)  # seconds; the longest answer that is waited for, a report, takes 20
STREAM_SILENCE = 45.0  # seconds; the service says something every 15
BUSY = (429, 500, 502, 503, 504)
NEVER_ACTED = (429,)  # nothing was done, so that anything may be asked again


def path(*parts: str) -> str:
    """`/v1/…` of these parts, each quoted: a name with `?` or `..` names only itself."""
    return "/v1/" + "/".join(quote(part, safe=":") for part in parts)


def on_loopback(url: str) -> bool:
    """Whether the URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Api:
    """One service and one key. `url` is its address without `/v1`."""

    def __init__(
        self, url: str, key: str | None, *, timeout: httpx2.Timeout = PATIENCE, tries: int = TRIES
    ) -> None:
        self.url, self._tries = url, tries
        self.date: str | None = None  # by the service's clock, when it was last asked how it is
        self._reached = False
        self._http = httpx2.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            # A proxy of the environment must not be handed what is said to this machine itself.
            trust_env=not on_loopback(url),
            # Loading the authorities' certificates takes longer than a request; plain HTTP needs none.
            verify=url.startswith("https:"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, where: str, **params: Any) -> JsonObject:
        """Raises Refused, Unreachable."""
        given = {name: value for name, value in params.items() if value is not None}
        return _json(self._send("GET", where, repeatable=True, params=given))

    def post(
        self,
        where: str,
        body: object = None,
        *,
        idempotency_key: str | None = None,
        repeatable: bool = False,
    ) -> JsonObject:
        """Raises Refused, Unreachable."""
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        repeatable = repeatable or idempotency_key is not None
        given: dict[str, Any] = {} if body is None else {"json": body}
        return _json(self._send("POST", where, repeatable=repeatable, headers=headers, **given))

    def upload(self, fields: Mapping[str, str], name: str, file: Any) -> JsonObject:
        """Send a file. Not tried again: the first try may have made one. Raises Refused, Unreachable."""
        patient = httpx2.Timeout(None, connect=5.0)  # the answer comes when all of it has been looked at
        sent = self._send(
            "POST",
            path("files"),
            repeatable=False,
            data=dict(fields),
            files={"file": (name, file)},
            timeout=patient,
        )
        return _json(sent)

    def send_part(self, where: str, data: BinaryIO) -> JsonObject:
        """A part of an upload, sent again where the line breaks: the service knows a repeated one by its
        bytes and the count of tries. Raises Refused, Unreachable."""
        return _json(self._send("POST", where, repeatable=True, files={"data": ("data", data)}))

    def complete(self, where: str, body: JsonObject) -> JsonObject:
        """Have a file made of an upload's parts, however long that takes. Raises Refused, Unreachable."""
        patient = httpx2.Timeout(None, connect=5.0)
        return _json(self._send("POST", where, repeatable=True, json=body, timeout=patient))

    def delete(self, where: str) -> JsonObject:
        """Raises Refused, Unreachable."""
        return _json(self._send("DELETE", where, repeatable=False))

    def pages(self, where: str, limit: int, **params: Any) -> Iterator[JsonObject]:
        """Every item of a list, page by page."""
        after: str | None = None
        while True:
            page = self.get(where, limit=limit, after=after, **params)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = page["data"][-1]["id"]

    def ready(self) -> JsonObject:
        """What the service says of itself, be it that it cannot do anything. Raises Unreachable."""
        try:
            response = self._http.get("/readyz")
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self.lost(error) from None
        self.date = response.headers.get("date")
        return _json(response)

    @contextmanager
    def stream(
        self, method: str, where: str, *, patient: bool = False, **options: Any
    ) -> Iterator[httpx2.Response]:
        """An answer whose body is read bit by bit. What httpx2 raises is left to the caller, who knows how to
        go on. `patient`: a service that is busy is asked again, before there is any answer. Raises Refused.
        """
        timeout = httpx2.Timeout(STREAM_SILENCE, connect=5.0)
        wait = FIRST_WAIT
        for tried in range(self._tries if patient else 1):
            if tried:
                time.sleep(wait)
                wait *= 2
            with self._http.stream(method, where, timeout=timeout, **options) as response:
                self._reached = True
                if response.is_success:
                    yield response
                    return
                response.read()
                refusal = _refusal(response, self.url)
                wait = max(wait, _asked_wait(response))
                if not _may_try_again(response, repeatable=True):
                    break
        raise refusal

    def lost(self, error: Exception) -> Unreachable:
        """What to tell when the line is gone for good."""
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and not self._reached:
            start = "start it with `finetuned up`, or name" if on_loopback(self.url) else "name"
            return Unreachable(f"Nothing answers at {self.url}: {start} another address with --url.")
        what = str(error) or type(error).__name__
        return Unreachable(f"{self.url} stopped answering ({what}): try again.")

    def _send(self, method: str, where: str, *, repeatable: bool, **options: Any) -> httpx2.Response:
        wait = FIRST_WAIT
        headers = options.pop("headers", {})
        for tried in range(self._tries):
            if tried:
                headers = {**headers, "x-stainless-retry-count": str(tried)}
            try:
                response = self._http.request(method, where, headers=headers, **options)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                # A service that was never there is not waited for.
                again = repeatable and self._reached and tried < self._tries - 1
                if not again:
                    raise self.lost(error) from None
            else:
                self._reached = True
                if response.is_success:
                    return response
                again = _may_try_again(response, repeatable) and tried < self._tries - 1
                if not again:
                    raise _refusal(response, self.url)
                wait = max(wait, _asked_wait(response))
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")


def _may_try_again(response: httpx2.Response, repeatable: bool) -> bool:
    if response.headers.get("x-should-retry") == "false":
        return False
    return response.status_code in (BUSY if repeatable else NEVER_ACTED)


def _asked_wait(response: httpx2.Response) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0


def _json(response: httpx2.Response) -> JsonObject:
    try:
        found = response.json()
    except (ValueError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise Unreachable(
            f"What answers at {response.url.host} is no finetuned: it sent no JSON. Check --url."
        )
    return found


def _refusal(response: httpx2.Response, url: str) -> Failure:
    try:
        error = json.loads(response.content)["error"]
        message, param, code = str(error["message"]), error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        status = f"HTTP {response.status_code}"
        return Unreachable(
            f"What answers at {url} is no finetuned, or a proxy before it ({status}). Check --url."
        )
    if param and str(param) not in message:
        message = f"{param}: {message}"
    if response.status_code == 401:
        message += " Name the right one by --key-file or FINETUNED_API_KEY."
    return Refused(message, response.status_code, param, code)
