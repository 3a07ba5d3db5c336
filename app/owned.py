"""Rows by their id, for their owner alone: somebody else's is as unknown as one that never was."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import NotFound
from app.tables import Job


async def find_job(session: AsyncSession, job_id: str, caller: Caller) -> Job:
    """Raises NotFound."""
    row = await session.scalar(select(Job).where(Job.id == job_id, Job.owner == caller.owner))
    if row is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", param="job_id", code="job_not_found")
    return row
