"""Uploads: a large file in parts, which may come in any order and side by side."""

import asyncio
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal
from weakref import WeakValueDictionary

from fastapi import APIRouter, Header, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from app import multipart, quota, wire
from app.access import needs
from app.audit import about
from app.auth import Caller, KnownCaller
from app.body import Body
from app.database import Database
from app.dependencies import CurrentSettings, OpenInspector, OpenSession, OpenStore
from app.errors import InvalidRequest, TooLarge
from app.incoming import EXPIRES_SECONDS, Incoming, disk_full_told
from app.storage import Store
from app.tables import File, JsonObject, now
from app.uploads import states
from app.uploads.compose import PartsGone, compose, folder_key, part_key
from app.uploads.rows import Upload, UploadPart

router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=[needs("files")])
MAX_PART_BYTES = 64 * 1024 * 1024  # what the SDK cuts a file into
# By owner too, or somebody else could tell by waiting that there is such an upload.
_composing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
RetryCount = Annotated[int, Header(ge=0, include_in_schema=False)]


class ExpiresAfter(Body):
    """When the file that comes of it is to go."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRES_SECONDS[0], le=EXPIRES_SECONDS[1])


class UploadRequest(Body):
    """A file that is to come."""

    bytes: int = Field(ge=1, description="Of the whole file; the parts must have exactly so many")
    filename: str = Field(min_length=1, max_length=255, description="`.txt` is plain text, all else JSONL")
    mime_type: str = Field(max_length=128, pattern=r"^[ -~]*$", description="Kept, not judged")
    purpose: Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]
    expires_after: ExpiresAfter | None = Field(None, description="From when the file is complete")


class CompleteRequest(Body):
    """The parts in their order."""

    part_ids: list[str] = Field(
        min_length=1, max_length=states.MAX_PARTS, description="The order of the parts"
    )
    md5: str | None = Field(None, pattern=r"^[0-9a-fA-F]{32}$", description="Of the whole file, in hex")


async def _shown(session: AsyncSession, row: Upload) -> JsonObject:
    body: JsonObject = {
        "id": row.id,
        "object": "upload",
        "bytes": row.bytes,
        "created_at": wire.seconds(row.created_at),
        "expires_at": wire.seconds(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": await states.status(session, row),
        "mime_type": row.mime_type,
        "file": None,
    }
    if row.file_id is not None:
        file = await session.get(File, row.file_id)
        body["file"] = wire.file(file) if file is not None and file.deleted_at is None else None
    return body


@router.post("")
async def create_upload(
    body: UploadRequest,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    caller: KnownCaller,
) -> JsonObject:
    """Announce a file that comes in parts: up to 64 MiB each, all of them within the hour.

    The SDK's `client.uploads.upload_file_chunked` does all of it: create, parts, complete.
    """
    if body.bytes > settings.max_file_bytes:
        raise TooLarge(f"A file may have {settings.max_file_bytes:,} bytes.", param="bytes")
    # Parts and the file made of them lie side by side for a while.
    store.refuse_low_space(settings.min_free_bytes + 2 * body.bytes)
    upload_id = f"upload_{secrets.token_hex(12)}"
    row = Upload(
        id=upload_id,
        owner=caller.owner,
        key_id=caller.key_id,
        key=folder_key(upload_id),
        bytes=body.bytes,
        filename=body.filename,
        mime_type=body.mime_type,
        purpose=body.purpose,
        file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
        status="pending",
        expires_at=now + states.LIFE,
    )
    await quota.take_storage(session, caller, body.bytes)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    about(session, row.id)
    return await _shown(session, row)


@router.get("/{upload_id}")
async def retrieve_upload(upload_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """How an upload stands. OpenAI has no such call."""
    return await _shown(session, await states.find(session, upload_id, caller))


@router.post("/{upload_id}/parts")
async def create_part(
    upload_id: str,
    request: Request,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Some bytes of the file: multipart/form-data with the field `data`, at most 64 MiB.

    Parts may be sent in any order and side by side; `complete` puts them into theirs.
    """
    database: Database = request.app.state.database
    async with database.transaction(caller.owner) as early:  # not while the bytes come in
        await states.refuse_ended(early, await states.find(early, upload_id, caller), "added to")
    store.refuse_low_space(settings.min_free_bytes)
    part = UploadPart(id=f"part_{secrets.token_hex(12)}", upload_id=upload_id)
    key = part_key(upload_id, part.id)
    try:
        await _receive(request, store, key, part)
        upload = await states.find(session, upload_id, caller, lock=True)
        first = await states.same_part(session, upload, part.sha256) if x_stainless_retry_count else None
        if first is None:
            await states.add_part(session, upload, part)
            await session.flush()
            await session.refresh(part)
    except BaseException:
        await asyncio.to_thread(store.delete, key)
        raise
    if first is not None:
        await asyncio.to_thread(store.delete, key)
    about(session, f"{upload_id}/{part.id}" if first is None else None)
    shown = first or part
    return {
        "id": shown.id,
        "object": "upload.part",
        "created_at": wire.seconds(shown.created_at),
        "upload_id": upload_id,
    }


async def _receive(request: Request, store: Store, key: str, part: UploadPart) -> None:
    """The bytes of a part are on disk under `key`. Raises InvalidRequest, TooLarge, StorageLow."""
    try:
        with store.upload(key) as target:

            async def take(data: bytes) -> None:
                if target.bytes + len(data) > MAX_PART_BYTES:
                    raise TooLarge(f"A part has at most {MAX_PART_BYTES:,} bytes.", param="data")
                with disk_full_told():
                    await asyncio.to_thread(target.write, data)

            form = await multipart.read_form(request, "data", lambda _: None, take)
            for name in form.fields:
                raise InvalidRequest(
                    f"Unknown form field {name[:64]!r}.", param=name[:64], code="unknown_parameter"
                )
            if target.bytes == 0:
                raise InvalidRequest("The part is empty.", param="data", code="empty_part")
            part.bytes, part.sha256 = target.bytes, target.sha256
            with disk_full_told():
                await asyncio.to_thread(target.commit)
    except FileNotFoundError as error:  # cancelled meanwhile, and the folder of its parts is gone
        raise InvalidRequest(
            "The upload has ended and cannot be added to.", param="upload_id", code="invalid_upload_state"
        ) from error


@router.post("/{upload_id}/complete")
async def complete_upload(
    upload_id: str,
    body: CompleteRequest,
    request: Request,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    inspector: OpenInspector,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Make a file of the parts, in the order of `part_ids`; it is checked like any other that is uploaded.

    The parts must have exactly the bytes that were announced, and `md5`, where it is given. What is refused
    leaves the upload pending: complete it again with the right parts.
    """
    database: Database = request.app.state.database
    wanted = states.digest(body.part_ids, body.md5)
    # A large file takes minutes, and the SDK asks again after ten: the second try waits for the first here,
    # instead of making the same file beside it. In another process it would; only one of them is kept.
    async with _composing.setdefault((caller.owner, upload_id), asyncio.Lock()):
        async with database.transaction(caller.owner) as early:  # not while the file is made
            # Locked, so as to see what the first try is about to commit.
            upload = await states.find(early, upload_id, caller, lock=True)
            if states.completed_before(upload, wanted, x_stainless_retry_count):
                about(session, None)
                return await _shown(early, upload)
            await states.refuse_ended(early, upload, "completed")
            parts = await states.in_order(early, upload, body.part_ids)
            await states.outlive_composing(early, upload)
        store.refuse_low_space(settings.min_free_bytes + upload.bytes)
        async with Incoming(store, upload.bytes, inspector) as incoming:
            file = await _composed(store, upload, parts, body.md5, incoming, caller)
            row = await states.find(session, upload_id, caller, lock=True)
            if states.completed_before(row, wanted, x_stainless_retry_count):
                await incoming.discard()
                about(session, None)
            else:
                await states.complete(session, row, file, wanted)
        return await _shown(session, row)


async def _composed(
    store: Store,
    upload: Upload,
    parts: Sequence[UploadPart],
    md5: str | None,
    incoming: Incoming,
    caller: Caller,
) -> File | None:
    """The file that the parts make; None where the upload has ended meanwhile, and its parts with it."""
    expires = upload.file_expires_seconds
    try:
        await compose(store, upload, parts, md5, incoming)
    except PartsGone:
        return None
    return await incoming.finish(
        caller, upload.purpose, None if expires is None else timedelta(seconds=expires)
    )


@router.post("/{upload_id}/cancel")
async def cancel_upload(
    upload_id: str,
    session: OpenSession,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Give an upload up; its parts are removed."""
    row = await states.find(session, upload_id, caller, lock=True)
    if x_stainless_retry_count and row.status == "cancelled":
        about(session, None)
    else:
        await states.cancel(session, row)
    return await _shown(session, row)
