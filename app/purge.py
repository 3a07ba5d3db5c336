"""Deleting what is marked as deleted: the row's mark first, the bytes after, the key cleared last.

Killed anywhere in between it finds the rest the next time: a row with `deleted_at` and a key still has bytes.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.lifecycle.claims import ENDED
from app.storage import Store
from app.tables import Checkpoint, File, Job, Model, Worker, now
from app.uploads.rows import Upload, UploadPart

BATCH = 100
# Held by a backup for as long as it takes (app.backup.snapshot), shared by whoever removes bytes.
REMOVAL_LOCK = 0x66740003
Deletable = type[File] | type[Checkpoint] | type[Model] | type[Upload]
DELETABLE: tuple[Deletable, ...] = (File, Checkpoint, Model, Upload)
WORKERS_FORGOTTEN_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class Doomed:
    """Bytes that are to go."""

    table: Deletable
    row_id: str
    key: str


async def expire_files(session: AsyncSession) -> None:
    """Mark some of the files whose time is over, save those that a job is still to read."""
    needed = exists().where(
        or_(Job.training_file == File.id, Job.validation_file == File.id), Job.status.not_in(ENDED)
    )
    over = File.expires_at < now, File.deleted_at.is_(None), ~needed
    # Who makes a job of one in its last moment holds its row until that job is there (app.job_inputs): it is
    # left for the next round, and the second look sees the jobs that came meanwhile.
    held = select(File.id).where(*over).limit(BATCH).with_for_update(skip_locked=True)
    ids = (await session.scalars(held)).all()
    await session.execute(
        update(File)
        .where(File.id.in_(ids), *over)
        .values(deleted_at=now)
        .execution_options(synchronize_session=False)
    )


async def expire_uploads(session: AsyncSession) -> None:
    """Mark uploads whose hour is over; one that is being completed in this moment is not waited for."""
    late = select(Upload.id).where(Upload.status == "pending", Upload.expires_at <= now)
    await session.execute(
        update(Upload)
        .where(Upload.id.in_(late.with_for_update(skip_locked=True)))
        .values(status="expired", deleted_at=now)
        .execution_options(synchronize_session=False)
    )


async def may_remove(session: AsyncSession) -> bool:
    """Whether bytes may be removed: not while a backup copies what its moment of the database speaks of."""
    lock = select(func.pg_try_advisory_xact_lock_shared(REMOVAL_LOCK))
    return bool((await session.execute(lock)).scalar_one())


async def doomed(session: AsyncSession) -> list[Doomed]:
    """Some of what is to go, by chance: a hundred that a disk refuses would else be asked for every time, and
    nothing behind them."""
    found: list[Doomed] = []
    for table in DELETABLE:
        rows = await session.execute(
            select(table.id, table.key)
            .where(table.deleted_at.is_not(None), table.key.is_not(None))
            .order_by(func.random())
            .limit(BATCH)
        )
        found += [Doomed(table, row.id, row.key) for row in rows]
    return found


def remove(store: Store, doomed: Doomed) -> None:
    """Raises OSError; asked again it goes on."""
    store.delete(doomed.key)
    if doomed.table is File:
        # What was encoded of it holds its texts too; the folder bears the ids of the files it was made of.
        for name in store.names("cache"):
            if doomed.row_id in name:
                store.delete(f"cache/{name}")


async def forget(session: AsyncSession, doomed: Doomed) -> None:
    """The bytes are gone: so is the key. A checkpoint that was saved again meanwhile has another one."""
    table = doomed.table
    await session.execute(
        update(table)
        .where(table.id == doomed.row_id, table.key == doomed.key, table.deleted_at.is_not(None))
        .values(key=None)
    )
    if table is Upload:
        await session.execute(delete(UploadPart).where(UploadPart.upload_id == doomed.row_id))


async def forget_workers(session: AsyncSession) -> None:
    """Rows of workers that were killed."""
    await session.execute(delete(Worker).where(Worker.seen_at < now - WORKERS_FORGOTTEN_AFTER))
