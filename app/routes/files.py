"""Files: upload (checked while it streams in), list, retrieve, content, delete."""

import asyncio
import errno
import re
import secrets
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import multipart, paging, wire
from app.auth import Caller, KnownCaller
from app.database import WAKE
from app.dataset import Checker, Format, Report, format_of
from app.dependencies import CurrentSettings, OpenSession, OpenStore
from app.errors import InvalidRequest, NotFound, StorageLow, TooLarge
from app.lifecycle.claims import ENDED
from app.storage import Upload
from app.tables import File, Job, JsonObject, now

router = APIRouter(prefix="/files", tags=["files"])
PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
EXPIRES_SECONDS = (3600, 2_592_000)
KEPT_PROBLEMS = 20  # lines of a bad file told in status_details


class _Incoming:
    """An upload on its way: written to the store and checked, chunk by chunk, off the event loop."""

    def __init__(self, upload: Upload, limit: int) -> None:
        self.upload, self.limit = upload, limit
        self.format: Format = "jsonl"
        self.checker = Checker("jsonl")

    def begin(self, filename: str) -> None:
        self.format = format_of(filename)
        self.checker = Checker(self.format)

    async def take(self, data: bytes) -> None:
        if self.upload.bytes + len(data) > self.limit:
            raise TooLarge(f"The file is larger than {self.limit:,} bytes.", param="file")
        try:
            await asyncio.to_thread(self._take, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageLow("The disk is full; the upload was not kept.") from error
            raise

    def _take(self, data: bytes) -> None:
        self.upload.write(data)
        self.checker.feed(data)


def _describe(report: Report) -> str | None:
    if not report.problems:
        return None
    told = [f"line {problem.line}: {problem.message}" for problem in report.problems[:KEPT_PROBLEMS]]
    more = report.problem_count - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


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
        if name not in ("purpose", "expires_after[anchor]", "expires_after[seconds]"):
            raise InvalidRequest(f"Unknown form field {name!r}.", param=name, code="unknown_parameter")
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    return purpose


@router.post("")
async def create_file(
    request: Request, session: OpenSession, store: OpenStore, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    """Upload a file as multipart/form-data with `purpose` and `file`.

    A file that cannot be trained on is kept with status `error`; `status_details` names lines and reasons.
    """
    # `session` takes a connection with its first statement, below: a slow upload holds none meanwhile.
    store.refuse_low_space(settings.min_free_bytes)
    file_id = f"file-{secrets.token_hex(12)}"
    key = f"files/{file_id}"
    with store.upload(key) as upload:
        incoming = _Incoming(upload, settings.max_file_bytes)
        form = await multipart.read_form(request, "file", incoming.begin, incoming.take)
        purpose, expires = _check_fields(form.fields), _expiry(form.fields)
        if upload.bytes == 0:
            raise InvalidRequest("The file is empty.", param="file", code="empty_file")
        report = incoming.checker.finish()
        bad = _describe(report) if purpose == "fine-tune" else None
        await asyncio.to_thread(upload.commit)
        row = File(
            id=file_id,
            owner=caller.owner,
            key=key,
            bytes=upload.bytes,
            sha256=upload.sha256,
            filename=form.filename or "upload",
            purpose=purpose,
            format=incoming.format,
            shape=report.shape,
            status="error" if bad else "processed",
            status_details=bad,
            problems=[asdict(problem) for problem in report.problems] if bad else None,
            rows=report.rows,
            expires_at=None if expires is None else now + expires,
        )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return wire.file(row)


def _visible(caller: Caller) -> tuple[ColumnElement[bool], ...]:
    return (
        File.owner == caller.owner,
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > func.now()),
    )


async def _find(session: AsyncSession, file_id: str, caller: Caller) -> File:
    row = await session.scalar(select(File).where(File.id == file_id, *_visible(caller)))
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
    query = select(File).where(*_visible(caller))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    rows, more = await paging.cut(session, query, File, after=after, limit=limit, order=order)
    return wire.page([wire.file(row) for row in rows], more)


@router.get("/{file_id}")
async def retrieve_file(file_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    return wire.file(await _find(session, file_id, caller))


@router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(
    file_id: str, session: OpenSession, store: OpenStore, caller: KnownCaller
) -> FileResponse:
    """The bytes as they were uploaded; ranges are served, the ETag is their SHA-256."""
    row = await _find(session, file_id, caller)
    if row.key is None:
        raise NotFound(f"The bytes of {file_id} are gone.", param="file_id")
    return FileResponse(
        store.path(row.key),
        media_type="application/octet-stream",
        headers={"etag": f'"{row.sha256}"'},
    )


@router.delete("/{file_id}")
async def delete_file(file_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """Delete a file; one that a job is still to read is refused (400 `file_in_use`)."""
    row = await _find(session, file_id, caller)
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
