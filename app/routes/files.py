"""Files: upload (checked while it streams in), list, retrieve, content, delete."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import download, multipart, paging, quota, wire
from app.access import needs
from app.audit import about
from app.auth import Caller, KnownCaller
from app.database import WAKE, Database
from app.dependencies import CurrentSettings, OpenInspector, OpenSession, OpenStore
from app.errors import InvalidRequest, NotFound
from app.incoming import EXPIRES_SECONDS, PURPOSES, Incoming
from app.layout import is_column
from app.lifecycle.claims import ENDED
from app.tables import File, Job, JsonObject

router = APIRouter(prefix="/files", tags=["files"], dependencies=[needs("files")])

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]", "format")


def _expiry(fields: dict[str, str]) -> timedelta | None:
    given = {key: value for key, value in fields.items() if key.startswith("expires_after")}
    if not given:
        return None
    if given.get("expires_after[anchor]") != "created_at":
        raise InvalidRequest("expires_after.anchor must be `created_at`.", param="expires_after.anchor")
    low, high = EXPIRES_SECONDS
    text = given.get("expires_after[seconds]", "")
    if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
        raise InvalidRequest(
            f"expires_after.seconds must be a whole number from {low} to {high}.",
            param="expires_after.seconds",
        )
    return timedelta(seconds=int(text))


def _check_fields(fields: dict[str, str]) -> str:
    for name in fields:
        if name not in FIELDS and not is_column(name):
            raise InvalidRequest(f"Unknown form field {name!r}.", param=name, code="unknown_parameter")
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    return purpose


@router.post("")
async def create_file(
    request: Request,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    inspector: OpenInspector,
    caller: KnownCaller,
) -> JsonObject:
    """Upload a file as multipart/form-data with `purpose` and `file`.

    Its name tells the format: `.txt`, `.csv`, `.tsv`, `.parquet`, anything else is JSON Lines; the field
    `format` overrules it. Where the rows have other names than ours, `columns` says which is which:

    `client.files.create(file=open("reviews.csv", "rb"), purpose="fine-tune",
    extra_body={"columns": {"prompt": "question", "completion": "answer"}})`

    A file that cannot be trained on is kept with status `error`; `status_details` names lines and reasons,
    and `problems` has them as a list of line, key and message.
    """
    # `session` takes a connection with its first statement, below: a slow upload holds none meanwhile.
    store.refuse_low_space(settings.min_free_bytes)
    form, known = multipart.Form(), dict[str, str]()
    async with Incoming(store, settings.max_file_bytes, inspector) as incoming:
        await _heed_quota(request, caller, incoming)

        def begin(filename: str) -> None:
            known.update(form.fields)
            incoming.begin(filename, known)

        await multipart.read_form(request, "file", begin, incoming.take, form)
        _refuse_late(form.fields, known)
        purpose, expires = _check_fields(form.fields), _expiry(form.fields)
        row = await incoming.finish(caller, purpose, expires)
        await quota.take_storage(session, caller, row.bytes)
        session.add(row)
        await session.flush()
        await session.refresh(row)
    about(session, row.id)
    return wire.file(row)


def _refuse_late(fields: dict[str, str], known: dict[str, str]) -> None:
    """What says how to read the file must come before it."""
    for name in fields.keys() - known.keys():
        if name == "format" or is_column(name):
            raise InvalidRequest("Send this field before the file.", param=name)


async def _heed_quota(request: Request, caller: Caller, incoming: Incoming) -> None:
    """Stop receiving where the key's storage ends: a look ahead, the count that counts comes with the row."""
    if caller.storage_bytes is None:
        return
    database: Database = request.app.state.database
    async with database.transaction(caller.owner) as session:
        used = await quota.storage_used(session, caller.key_id)
    left = max(0, caller.storage_bytes - used)
    if left == 0:
        raise quota.storage_full(caller.storage_bytes, used, None)
    if left < incoming.limit:
        incoming.limit = left
        incoming.refusal = quota.storage_full(caller.storage_bytes, used, None)


async def find_file(session: AsyncSession, file_id: str, caller: Caller) -> File:
    row = await session.scalar(select(File).where(File.id == file_id, *File.visible(caller.owner)))
    if row is None:
        raise NotFound(f"No such file: {file_id}", param="file_id", code="file_not_found")
    return row


@router.get("")
async def list_files(
    session: OpenSession,
    caller: KnownCaller,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> JsonObject:
    """The caller's files, newest first."""
    query = select(File).where(*File.visible(caller.owner))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    ever = select(File).where(File.owner == caller.owner)
    rows, more = await paging.cut(session, query, File, after=after, limit=limit, order=order, ever=ever)
    return wire.page([wire.file(row) for row in rows], more)


@router.get("/{file_id}")
async def retrieve_file(file_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    return wire.file(await find_file(session, file_id, caller))


@router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(
    file_id: str, request: Request, session: OpenSession, store: OpenStore, caller: KnownCaller
) -> Response:
    """The bytes as they were uploaded; ranges are served, the ETag is their SHA-256."""
    row = await find_file(session, file_id, caller)
    if row.key is None:
        raise NotFound(f"The bytes of {file_id} are gone.", param="file_id")
    return await download.send(request, store, row.key, row.bytes, row.sha256)


@router.delete("/{file_id}")
async def delete_file(file_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """Delete a file; one that a job is still to read is refused (400 `file_in_use`)."""
    row = await find_file(session, file_id, caller)
    # The row's lock keeps a job from being made of it between the look and the deletion.
    await session.refresh(row, with_for_update=True)
    user = await session.scalar(
        select(Job.id).where(
            or_(Job.training_file == file_id, Job.validation_file == file_id), Job.status.not_in(ENDED)
        )
    )
    if user is not None:
        raise InvalidRequest(
            f"Job {user} still needs this file; cancel it or wait for its end.",
            param="file_id",
            code="file_in_use",
        )
    row.deleted_at = datetime.now(UTC)
    session.sync_session.info[WAKE] = True
    return {"id": file_id, "object": "file", "deleted": True}
