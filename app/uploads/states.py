"""What becomes of an upload: pending, then completed, cancelled or expired, once and for ever.

Each change is made under the row's lock. An upload that has ended has `deleted_at`, by which the dispatcher
knows that its parts are to go (app/purge.py).
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import case, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.database import WAKE
from app.errors import InvalidRequest, NotFound
from app.tables import File, now
from app.uploads.rows import Upload, UploadPart

LIFE = timedelta(hours=1)
# How long an upload has at least when its file begins to be made: 8 GiB take minutes to read and to check.
COMPOSING = timedelta(minutes=30)
MAX_PARTS = 10_000
# Parts that a client sends again need room beside the first; more than this is not an accident.
SPARE = 2


async def find(session: AsyncSession, upload_id: str, caller: Caller, *, lock: bool = False) -> Upload:
    """Raises NotFound, also for somebody else's."""
    query = select(Upload).where(Upload.id == upload_id, Upload.owner == caller.owner)
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(f"No such upload: {upload_id}", param="upload_id", code="upload_not_found")
    return row


async def status(session: AsyncSession, upload: Upload) -> str:
    """`expired` from its second on, whenever the sweep comes by."""
    late = case((Upload.expires_at <= now, "expired"), else_=Upload.status)
    if upload.status != "pending":
        return upload.status
    found: str = (await session.execute(select(late).where(Upload.id == upload.id))).scalar_one()
    return found


async def refuse_ended(session: AsyncSession, upload: Upload, verb: str) -> None:
    """Raises InvalidRequest unless the upload is pending."""
    found = await status(session, upload)
    if found != "pending":
        raise InvalidRequest(
            f"Upload {upload.id} is {found} and cannot be {verb}.",
            param="upload_id",
            code="invalid_upload_state",
        )


async def outlive_composing(session: AsyncSession, upload: Upload) -> None:
    """Under the lock of one that is pending: its parts do not go while they are read."""
    await session.execute(
        update(Upload)
        .where(Upload.id == upload.id)
        .values(expires_at=func.greatest(Upload.expires_at, now + COMPOSING))
        .execution_options(synchronize_session=False)
    )


async def add_part(session: AsyncSession, upload: Upload, part: UploadPart) -> None:
    """Under the upload's lock. Raises InvalidRequest for more parts or bytes than an upload may have."""
    await refuse_ended(session, upload, "added to")
    count, held = (
        await session.execute(
            select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(
                UploadPart.upload_id == upload.id
            )
        )
    ).one()
    if count >= MAX_PARTS:
        raise InvalidRequest(
            f"An upload has at most {MAX_PARTS:,} parts; send larger ones.",
            param="data",
            code="too_many_parts",
        )
    if held + part.bytes > SPARE * upload.bytes:
        raise InvalidRequest(
            f"The upload was to have {upload.bytes:,} bytes; its parts have {held:,}, and this one"
            f" {part.bytes:,} more.",
            param="data",
            code="too_many_bytes",
        )
    session.add(part)


async def same_part(session: AsyncSession, upload: Upload, sha256: str) -> UploadPart | None:
    """A part with the same bytes: what the first try of a repeated request made."""
    query = select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.sha256 == sha256)
    found: UploadPart | None = await session.scalar(query.limit(1))
    return found


async def in_order(session: AsyncSession, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts that `part_ids` names. Raises InvalidRequest for another upload's, and for a wrong total."""
    rows = await session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))
    known = {row.id: row for row in rows}
    unknown = next((part_id for part_id in part_ids if part_id not in known), None)
    if unknown is not None:
        raise InvalidRequest(
            f"{unknown[:64]!r} is no part of upload {upload.id}.", param="part_ids", code="part_not_found"
        )
    parts = [known[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in parts)
    if total != upload.bytes:
        raise InvalidRequest(
            f"These parts have {total:,} bytes, the upload was to have {upload.bytes:,}.",
            param="part_ids",
            code="wrong_size",
        )
    return parts


def digest(part_ids: Sequence[str], md5: str | None) -> str:
    """By which a repeated request to complete is known."""
    return hashlib.sha256(json.dumps([list(part_ids), md5]).encode()).hexdigest()


def completed_before(upload: Upload, request_sha256: str, tries: int) -> bool:
    """Whether the first try of this very request has done it: then a repetition is answered alike."""
    return tries > 0 and upload.status == "completed" and upload.request_sha256 == request_sha256


async def complete(session: AsyncSession, upload: Upload, file: File | None, request_sha256: str) -> None:
    """Under the upload's lock: its file is there, its parts may go. Raises InvalidRequest without a file."""
    await refuse_ended(session, upload, "completed")
    if file is None:
        raise InvalidRequest("The parts of this upload are lost; start again.", code="parts_lost")
    session.add(file)
    await session.flush()
    await session.refresh(file)
    await _end(session, upload, status="completed", file_id=file.id, request_sha256=request_sha256)


async def cancel(session: AsyncSession, upload: Upload) -> None:
    """Under the upload's lock. Raises InvalidRequest unless it is pending."""
    await refuse_ended(session, upload, "cancelled")
    await _end(session, upload, status="cancelled")


async def _end(session: AsyncSession, upload: Upload, **values: str) -> None:
    await session.execute(update(Upload).where(Upload.id == upload.id).values(deleted_at=now, **values))
    session.sync_session.info[WAKE] = True
    await session.refresh(upload)
