"""Who trains: the workers that have been heard of, their devices, and what they are busy with."""

from contextlib import nullcontext

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import wire
from app.access import needs
from app.auth import KnownCaller
from app.database import run
from app.dependencies import CurrentSettings, OpenSession
from app.guard import everybody
from app.lifecycle.offers import MISSED
from app.tables import Job, JsonObject, Worker, now

router = APIRouter(prefix="/workers", tags=["machines"], dependencies=[needs("jobs")])


@router.get("")
async def list_workers(session: OpenSession, settings: CurrentSettings, caller: KnownCaller) -> JsonObject:
    """Every worker, those that were heard of last first; forgotten a day after they fell silent.

    `alive` says whether it was heard of within the last few heartbeats, `busy` how many of its `slots` are
    taken, `labels` what jobs may ask of it, `devices` what GPUs it has (`name`, `memory_bytes`, `used_bytes`;
    empty: it trains on its processors; null: it has not said). `jobs` are the caller's own that it holds, or
    everybody's for a key with `admin:read`.
    """
    is_late = (Worker.seen_at < now - MISSED * settings.heartbeat).label("is_late")
    workers = (await session.execute(select(Worker, is_late).order_by(Worker.seen_at.desc()))).all()
    held = await run(session, _held, None if caller.may("admin:read") else caller.owner)
    shown = [_shown(row, not late, held.get(row.id, [])) for row, late in workers]
    return {"object": "list", "data": shown, "has_more": False}


def _held(session: Session, owner: str | None) -> dict[str, list[str]]:
    """The running jobs of an owner, or of everybody, by their worker."""
    running = select(Job.id, Job.worker).where(Job.status == "running").order_by(Job.seq)
    if owner is not None:
        running = running.where(Job.owner == owner)
    held: dict[str, list[str]] = {}
    with everybody(session) if owner is None else nullcontext():  # an admin is shown all of them
        for job_id, worker in session.execute(running):
            held.setdefault(worker or "", []).append(job_id)
    return held


def _shown(row: Worker, alive: bool, jobs: list[str]) -> JsonObject:
    return {
        "id": row.id,
        "object": "worker",
        "host": row.host,
        "version": row.version,
        "slots": row.slots,
        "busy": row.busy,
        "draining": row.draining,
        "alive": alive,
        "labels": row.labels,
        "devices": row.devices,
        "jobs": jobs,
        "started_at": wire.seconds(row.started_at),
        "seen_at": wire.seconds(row.seen_at),
    }
