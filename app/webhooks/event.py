"""What a webhook says: the end of a job, and no more than its id, as OpenAI's SDK unwraps it."""

import json
import secrets
from datetime import datetime
from typing import Literal, get_args

# No other type of a job: the SDK would read it as an event of something else.
EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
TYPES: tuple[EventType, ...] = get_args(EventType)


def new_id() -> str:
    """The id of an event: the `webhook-id` of each of its deliveries, however often it is sent."""
    return f"evt_{secrets.token_hex(16)}"


def body(event_id: str, event_type: str, at: datetime, job_id: str) -> str:
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(at.timestamp()),
        "type": event_type,
        "data": {"id": job_id},
    }
    return json.dumps(event, separators=(",", ":"))
