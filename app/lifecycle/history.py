"""A job's events: every change of state leaves one, in the transaction that made it."""

import secrets
from typing import Any, Literal

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.tables import Event

Level = Literal["info", "warn", "error"]


def note(
    session: Session,
    job_id: str,
    level: Level,
    code: str,
    message: str,
    data: dict[str, Any] | None = None,
    *,
    kind: Literal["message", "metrics"] = "message",
) -> None:
    """A line of the job's history; a `metrics` line carries numbers in `data`."""
    session.execute(
        insert(Event).values(
            id=f"ftevent-{secrets.token_hex(12)}",
            job_id=job_id,
            level=level,
            type=kind,
            code=code,
            message=message,
            data=data,
        )
    )
