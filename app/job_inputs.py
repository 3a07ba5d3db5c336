"""What a job is made from: its files and its model, found for their owner, held until the job is there."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app import catalogue, job_request
from app.auth import Caller
from app.database import run
from app.errors import InvalidRequest
from app.guard import everybody
from app.settings import Settings
from app.tables import Checkpoint, File, Model


async def usable(
    session: AsyncSession,
    file_id: str,
    param: str,
    method: job_request.Method,
    caller: Caller,
    *,
    hold: bool,
) -> File:
    """The file; held, nobody deletes it before this transaction is over. Raises InvalidRequest."""
    query = select(File).where(
        File.id == file_id,
        File.owner == caller.owner,
        File.deleted_at.is_(None),
        File.expires_at.is_(None) | (File.expires_at > func.now()),
    )
    row = await session.scalar(query.with_for_update(read=True) if hold else query)
    code = f"invalid_{param}"
    if row is None:
        raise InvalidRequest(f"No such file: {file_id!r}", param=param, code=code)
    if row.purpose != "fine-tune":
        raise InvalidRequest(
            f"{file_id} has purpose `{row.purpose}`; upload it with purpose `fine-tune`.",
            param=param,
            code=code,
        )
    if row.status != "processed":
        raise InvalidRequest(f"{file_id} cannot be used: {_why(row)}", param=param, code=code)
    job_request.refuse_other_shape(method, file_id, row.shape, param)
    return row


def _why(file: File) -> str:
    """Its first problem; twenty of them in one sentence help nobody, and the file has them as a list."""
    if not file.problems:
        return str(file.status_details)
    first, *others = file.problems
    return f"line {first['line']}: {first['message']}" + ("; its `problems` tell more." if others else "")


async def source(
    session: AsyncSession, body: job_request.JobRequest, caller: Caller, settings: Settings
) -> catalogue.Source:
    """The model to begin with. Raises InvalidRequest."""
    if body.from_checkpoint is not None:
        given = body.from_checkpoint, body.model, caller.owner
        return await run(session, catalogue.find_checkpoint, *given)
    return await run(session, catalogue.find_for_job, body.model, caller.owner, settings)


async def hold_model(session: AsyncSession, found: catalogue.Source) -> None:
    """Lock a model that was trained here, so that nobody deletes it before the job is there."""
    key = found.source.removeprefix("store:")
    if key == found.source:
        return
    if not await run(session, _hold, key):
        raise InvalidRequest(f"The model {found.name!r} is gone.", param="model", code="model_not_found")


def _hold(session: Session, key: str) -> bool:
    """Whether what was saved under that key is there; held, if it is."""
    with everybody(session):  # it may be another owner's, who permitted it
        for table in (Model, Checkpoint):
            held = select(table.id).where(table.key == key, table.deleted_at.is_(None))
            if session.scalar(held.with_for_update(read=True)) is not None:
                return True
    return False
