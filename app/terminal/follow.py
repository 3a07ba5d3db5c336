"""A job's event stream, followed to its end whatever happens to the connection or the service.

Each message's id is where to go on: sent back as `Last-Event-ID`, nothing is lost or told twice.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

from app.terminal.outcome import Failure, Refused, Unreachable

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

LONGEST_OUTAGE = 600.0  # seconds without any answer after which following is given up
FIRST_WAIT = 0.5  # seconds; doubled up to
LONGEST_WAIT = 5.0
ENDED = ":end"  # how the id of the last message of all ends
BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Message:
    """`body` None: a sign of life, or, with `lost`, that the service is away and is being asked again."""

    body: "JsonObject | None" = None
    lost: bool = False


def follow(api: "Api", job_id: str, after: str = "") -> Iterator[Message]:
    """Everything beyond `after`; ends after the job's last message. Raises Refused, Unreachable."""
    cursor, wait, last_heard = after, FIRST_WAIT, time.monotonic()
    while True:
        heard = False
        try:
            headers = {"last-event-id": cursor} if cursor else {}
            with api.stream(
                "GET", f"/v1/fine_tuning/jobs/{job_id}/events/stream", headers=headers
            ) as response:
                if response.status_code == 204:
                    return
                for message_id, message in _read(response):
                    cursor, last_heard, heard = message_id or cursor, time.monotonic(), True
                    yield message
            if cursor.endswith(ENDED):
                return
            # Ended by the service, after an hour or at its stop: asked anew, told where we are.
            problem: Failure = Unreachable(f"{api.url} ends the stream without a word: try again.")
        except (Refused, Unreachable) as refusal:  # a proxy answers in its own way while the service is away
            if isinstance(refusal, Refused) and refusal.status not in BUSY:
                raise
            problem = refusal
        except httpx2.TransportError as broken:
            problem = api.lost(broken)
        if heard:
            wait = FIRST_WAIT
        if time.monotonic() - last_heard > LONGEST_OUTAGE:
            raise problem
        yield Message(lost=True)
        time.sleep(wait)
        wait = min(LONGEST_WAIT, 2 * wait)


def _read(response: httpx2.Response) -> Iterator[tuple[str, Message]]:
    """Messages with their ids. The service writes one `id` and one `data` line for each."""
    message_id = ""
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name and value:
            yield "", Message()
        elif name == "id":
            message_id = value
        elif name == "data":
            yield message_id, Message(json.loads(value))
