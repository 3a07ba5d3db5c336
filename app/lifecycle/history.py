"""A job's events: every change of state leaves one, in the transaction that made it."""

import secrets
from typing import Any, Literal

from sqlalchemy import literal, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from app.tables import Event, Job

Level = Literal["info", "warn", "error"]


def new_id() -> str:
    return f"ftevent-{secrets.token_hex(12)}"


def note(
    session: Session,
    job_id: str,
    level: Level,
    code: str,
    message: str,
    data: dict[str, Any] | None = None,
    *,
    kind: Literal["message", "metrics"] = "message",
    event_id: str | None = None,
) -> None:
    """A line of the job's history; a `metrics` line carries numbers in `data`. Under an `event_id` of the
    caller's it is written once, however often that is tried: the answer to a commit may be lost.

    It takes the lock on the job's row before `seq` is drawn, and most callers hold it already: so the events
    of one job become visible in the order of their numbers, and a reader who asks for what comes after the
    last one it saw (app.feed) misses none.
    """
    held = select(Job.id).where(Job.id == job_id).with_for_update(key_share=True).subquery()
    facts: list[Any] = [
        literal(event_id or new_id()),
        held.c.id,
        literal(level),
        literal(kind),
        literal(code),
        literal(message),
        literal(data, JSONB(none_as_null=True)),
    ]
    columns = ["id", "job_id", "level", "type", "code", "message", "data"]
    line = insert(Event).from_select(columns, select(*facts))
    session.execute(line.on_conflict_do_nothing(index_elements=["id"]))
