"""How many bytes are kept, of what and whose, and how many there is room for."""

import asyncio
import shutil
from contextlib import nullcontext

from fastapi import APIRouter
from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import quota
from app.access import needs
from app.auth import KnownCaller
from app.database import run
from app.dependencies import CurrentSettings, OpenSession
from app.guard import everybody
from app.tables import Checkpoint, File, Job, JsonObject, Model

router = APIRouter(prefix="/storage", tags=["machines"], dependencies=[needs("files")])
Sums = Select[str, int, int]


def _kept() -> dict[str, Sums]:
    """By kind: owner, number and bytes of all that is not deleted."""

    def sums(owner: InstrumentedAttribute[str], table: type[File] | type[Checkpoint] | type[Model]) -> Sums:
        query = select(owner, func.count(), func.coalesce(func.sum(table.bytes), 0))
        return query.where(table.deleted_at.is_(None)).group_by(owner)

    return {
        "files": sums(File.owner, File),
        "checkpoints": sums(Job.owner, Checkpoint).join(Job, Job.id == Checkpoint.job_id),
        "models": sums(Model.owner, Model),
    }


def _by_owner(session: Session, owner: str | None) -> dict[str, JsonObject]:
    """Of one owner, or of all of them."""
    found: dict[str, JsonObject] = {}
    with everybody(session) if owner is None else nullcontext():  # an admin is shown all of them
        for kind, query in _kept().items():
            column = query.selected_columns[0]
            rows = session.execute(query if owner is None else query.where(column == owner))
            for name, count, used in rows:
                found.setdefault(name, _nothing())[kind] = {"count": int(count), "bytes": int(used)}
    for use in found.values():
        use["bytes"] = sum(use[kind]["bytes"] for kind in _kept())
    return found


def _nothing() -> JsonObject:
    return {**{kind: {"count": 0, "bytes": 0} for kind in _kept()}, "bytes": 0}


@router.get("")
async def storage_use(session: OpenSession, settings: CurrentSettings, caller: KnownCaller) -> JsonObject:
    """Bytes that the caller keeps, by kind; what their key may store; how full the disk is.

    `key` has the key's `limit_bytes` (null: none) and what counts against it. `disk` is the one that holds
    the home folder; with less than `least_free_bytes` free, new files and jobs are refused. For a key with
    `admin:read` `owners` has the same of every owner.
    """
    everybodys = caller.may("admin:read")
    found = await run(session, _by_owner, None if everybodys else caller.owner)
    disk = await asyncio.to_thread(shutil.disk_usage, settings.home)
    used = await quota.storage_used(session, caller.key_id)
    answer: JsonObject = {
        "object": "storage",
        "owner": caller.owner,
        **found.get(caller.owner, _nothing()),
        "key": {"used_bytes": used, "limit_bytes": caller.storage_bytes},
        "disk": {
            "total_bytes": disk.total,
            "free_bytes": disk.free,
            "least_free_bytes": settings.min_free_bytes,
        },
    }
    if everybodys:
        answer["owners"] = [{"owner": name, **use} for name, use in sorted(found.items())]
    return answer
