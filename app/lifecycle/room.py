"""How many jobs of one API key may run at a time: those beyond it wait, and keep nobody else waiting."""

from functools import cache

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session, aliased

from app.keyring import ApiKey
from app.tables import Job


def has_room(session: Session, job_id: str) -> bool:
    """Whether the key of a queued job may have one more running. Holds the key's row until the claim is
    committed, so that claims at the same moment are counted one after the other; the job's row first, as
    everybody does, or two claims could wait for each other."""
    queued = select(Job.key_id).where(Job.id == job_id, Job.status == "queued")
    key_id = session.scalar(queued.with_for_update())
    if key_id is None:
        return True
    limit = session.scalar(
        select(ApiKey.running_jobs)
        .where(ApiKey.id == key_id, ApiKey.running_jobs.is_not(None))
        .with_for_update(key_share=True)
    )
    running = select(func.count()).where(Job.key_id == key_id, Job.status == "running")
    return limit is None or (session.scalar(running) or 0) < limit


@cache  # the dispatcher asks every second, and an alias is dear to make
def held_back() -> ColumnElement[bool]:
    """Whether a job's key has as many running as it may: the job waits, and nobody is told of it."""
    other = aliased(Job)
    full = (
        select(ApiKey.id)
        .join(other, and_(other.key_id == ApiKey.id, other.status == "running"))
        .where(ApiKey.running_jobs.is_not(None))
        .group_by(ApiKey.id)
        .having(func.count() >= ApiKey.running_jobs)
    )
    # One list for the whole statement, and not a count for each of ten thousand rows.
    return func.coalesce(Job.key_id, "").in_(full)
