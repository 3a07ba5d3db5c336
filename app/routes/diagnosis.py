"""What is wrong with a job, in words, and what would help."""

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import curve
from app.access import needs
from app.auth import KnownCaller
from app.dependencies import OpenSession
from app.diagnosis.course import Course, Point
from app.diagnosis.rules import diagnose
from app.owned import find_job
from app.tables import Event, Job, JsonObject, Metric

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], dependencies=[needs("jobs")])
POINTS = 1_000  # of a curve; more would not change what is seen in it
SAMPLINGS = 100


@router.get("/{job_id}/diagnosis")
async def diagnose_job(job_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """The troubles that a job's curves show: under-fitting, over-fitting, slow training, divergence, a
    warm-up longer than the run, too few steps, a model that never stops. `findings` is empty where nothing
    is wrong, and before there is anything to judge.

    Each finding has one sentence (`says`), `evidence` (the points of a curve to look at), and `remedies`:
    each says what it is and holds the `hyperparameters` to change in a new job.
    """
    job = await find_job(session, job_id, caller)
    findings = diagnose(await _course(session, job))
    return {
        "object": "fine_tuning.job.diagnosis",
        "job_id": job.id,
        "step": job.step,
        "findings": [finding.wire() for finding in findings],
    }


async def _course(session: AsyncSession, job: Job) -> Course:
    rows = await curve.spread(session, job.id, -1, None, POINTS)
    facts = await session.scalar(
        select(Event.data).where(Event.job_id == job.id, Event.code == "prepared").order_by(Event.seq.desc())
    )
    samplings = await session.scalars(
        select(Event.data)
        .where(Event.job_id == job.id, Event.code == "sampled")
        .order_by(Event.seq.desc())
        .limit(SAMPLINGS)
    )
    return Course(
        recipe=job.recipe | (job.resolved or {}),
        total_steps=job.total_steps or 0,
        loss=_points(rows, "loss"),
        valid_loss=_points(rows, "valid_loss"),
        speed=_points(rows, "tokens_per_second"),
        ended_shares=[Point(data["step"], data["ended_share"]) for data in reversed(samplings.all()) if data],
        prepared=facts or {},
        finished=job.status == "succeeded",
        error_code=job.error_code,
    )


def _points(rows: list[Metric], name: str) -> list[Point]:
    return [Point(row.step, value) for row in rows if (value := getattr(row, name)) is not None]
