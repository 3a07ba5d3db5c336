"""Deleting what is marked as deleted: the row's mark first, the bytes after, the key cleared last.

Killed anywhere in between it finds the rest the next time: a row with `deleted_at` and a key still has bytes.
"""

import shutil
import time
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.storage import Store
from app.tables import Checkpoint, File, Model, now

BATCH = 100
# What nobody refers to is old enough to be nobody's: no upload and no training step takes so long.
ABANDONED_AFTER = 24 * 3600.0  # seconds
Deletable = type[File] | type[Checkpoint] | type[Model]
DELETABLE: tuple[Deletable, ...] = (File, Checkpoint, Model)


async def expire_files(session: AsyncSession) -> None:
    """Mark files whose time is over."""
    await session.execute(
        update(File).where(File.expires_at < now, File.deleted_at.is_(None)).values(deleted_at=now)
    )


async def doomed(session: AsyncSession) -> list[tuple[Deletable, str, str]]:
    """(table, row id, key) of bytes that are to go."""
    found: list[tuple[Deletable, str, str]] = []
    for table in DELETABLE:
        rows = await session.execute(
            select(table.id, table.key)
            .where(table.deleted_at.is_not(None), table.key.is_not(None))
            .limit(BATCH)
        )
        found += [(table, row.id, row.key) for row in rows]
    return found


async def forget(session: AsyncSession, table: Deletable, row_id: str) -> None:
    """The bytes are gone: so is the key."""
    await session.execute(update(table).where(table.id == row_id).values(key=None))


def sweep_temporary(store: Store) -> None:
    """Remove what a killed process left under a temporary name a day ago."""
    for folder in ("files", "models"):
        for path in (store.root / folder).glob(".*"):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
