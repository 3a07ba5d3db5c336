"""A job's events: every change of state leaves one, in the transaction that made it."""

import secrets
from typing import Literal

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.tables import Event, JsonObject

Level = Literal["info", "warn", "error"]


def note(
    session: Session, job_id: str, level: Level, code: str, message: str, data: JsonObject | None = None
) -> None:
    """A line of the job's history."""
    session.execute(
        insert(Event).values(
            id=f"ftevent-{secrets.token_hex(12)}",
            job_id=job_id,
            level=level,
            code=code,
            message=message,
            data=data,
        )
    )
