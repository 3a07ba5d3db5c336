"""How many bytes a key may store, counted inside the transaction that stores more."""

from sqlalchemy import func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import InvalidRequest
from app.keyring import ApiKey
from app.tables import Checkpoint, File, Job, Model
from app.uploads.rows import Upload


async def storage_used(session: AsyncSession, key_id: str) -> int:
    """Bytes of what a key has stored or announced: files, pending uploads, and what its jobs have made."""
    parts = (
        select(func.sum(File.bytes)).where(File.key_id == key_id, File.deleted_at.is_(None)),
        select(func.sum(Upload.bytes)).where(Upload.key_id == key_id, Upload.status == "pending"),
        *(
            select(func.sum(table.bytes))
            .join(Job, Job.id == table.job_id)
            .where(Job.key_id == key_id, table.deleted_at.is_(None))
            for table in (Model, Checkpoint)
        ),
    )
    total = sum((func.coalesce(part.scalar_subquery(), 0) for part in parts), start=literal(0))
    return int((await session.execute(select(total))).scalar_one())


async def take_storage(session: AsyncSession, caller: Caller, more: int) -> None:
    """Raises InvalidRequest where `more` bytes are too many for the caller's key. Holds the key's row until
    the commit, so that requests at the same moment are counted one after the other."""
    if caller.storage_bytes is None:
        return
    await session.execute(select(ApiKey.id).where(ApiKey.id == caller.key_id).with_for_update(key_share=True))
    used = await storage_used(session, caller.key_id)
    if used + more > caller.storage_bytes:
        raise storage_full(caller.storage_bytes, used, more)


def storage_full(limit: int, used: int, more: int | None) -> InvalidRequest:
    wanted = "the rest of this file" if more is None else f"{more:,} more"
    return InvalidRequest(
        f"This key may store {limit:,} bytes and has {used:,}; {wanted} would be too much."
        " Delete files, models or jobs' checkpoints first.",
        code="storage_limit_exceeded",
    )
