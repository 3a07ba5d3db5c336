"""Pins: a checkpoint that stays however old it gets and however many newer ones there are."""

from fastapi import APIRouter
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app import wire
from app.access import needs
from app.auth import KnownCaller
from app.dependencies import OpenSession
from app.errors import NotFound
from app.owned import find_job
from app.tables import Checkpoint, JsonObject

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], dependencies=[needs("jobs")])
PATH = "/{job_id}/checkpoints/{checkpoint_id}/pin"


async def _set(session: AsyncSession, job_id: str, checkpoint_id: str, pinned: bool) -> JsonObject:
    """One statement: either the pin comes first, or retention has marked the row and there is none."""
    row = await session.scalar(
        update(Checkpoint)
        .where(Checkpoint.id == checkpoint_id, Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .values(pinned=pinned)
        .returning(Checkpoint)
    )
    if row is None:
        raise NotFound(
            f"No such checkpoint of this job: {checkpoint_id}",
            param="checkpoint_id",
            code="checkpoint_not_found",
        )
    return wire.checkpoint(row)


@router.post(PATH)
async def pin_checkpoint(
    job_id: str, checkpoint_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """Keep a checkpoint, given by its id (`ftckpt_…`), beside those that `save_total_limit` and the
    service's retention keep. Its bytes count as stored. Answers the checkpoint, `"pinned": true`."""
    await find_job(session, job_id, caller)
    return await _set(session, job_id, checkpoint_id, True)


@router.delete(PATH)
async def unpin_checkpoint(
    job_id: str, checkpoint_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """Take the pin back: the checkpoint goes when the next one is saved, or when retention comes by."""
    await find_job(session, job_id, caller)
    return await _set(session, job_id, checkpoint_id, False)
