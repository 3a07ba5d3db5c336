"""How a job goes: its metrics in ranges, whole or thinned, its attempts, and everything as it comes."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from app import curve, wire
from app.access import needs
from app.auth import KnownCaller
from app.dependencies import CurrentSettings, OpenSession
from app.errors import InvalidRequest
from app.feed import ENDED_MARK, Feed, find_cursor
from app.owned import find_job
from app.tables import Attempt, JsonObject, Metric

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], dependencies=[needs("jobs")])
DEFAULT_LIMIT = 10_000  # steps: 2.5 MB of JSON


@router.get("/{job_id}/metrics")
async def list_metrics(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: Annotated[int, Query(ge=-1, le=2**62, description="Only steps beyond this one")] = -1,
    before: Annotated[int | None, Query(ge=0, le=2**62, description="Only steps below this one")] = None,
    limit: Annotated[
        int, Query(ge=1, le=100_000, description="At most so many; `has_more` tells whether any are left")
    ] = DEFAULT_LIMIT,
    every: Annotated[int, Query(ge=1, le=2**62, description="Only each n-th, and those that evaluated")] = 1,
    points: Annotated[
        int | None, Query(ge=10, le=10_000, description="The whole range, thinned to about so many")
    ] = None,
    peaks: Annotated[
        bool, Query(description="With `points`: false for steps at equal distances, which costs little")
    ] = True,
) -> JsonObject:
    """What each step measured, oldest first. `after` the last step of a page begins the next one.

    With `points` the whole range comes at once, thinned for drawing: of each stretch of steps the ones with
    the lowest and the highest loss, besides the first, the last, and all that were evaluated. That reads
    every step, a second for a million; `peaks=false` takes steps at equal distances instead, at once.

    Preference pairs (`dpo`) add means over pairs: `reward_chosen`, `reward_rejected`, `reward_margin` and
    `reward_accuracy`, and the same as `valid_reward_…` where it was evaluated.
    """
    await find_job(session, job_id, caller)
    if points is not None:
        if every != 1 or limit != DEFAULT_LIMIT:
            raise InvalidRequest("`points` goes without `limit` and `every`.", param="points")
        thin = curve.thinned if peaks else curve.spread
        return _steps(await thin(session, job_id, after, before, points), more=False)
    if not peaks:
        raise InvalidRequest("`peaks` goes with `points` alone.", param="peaks")
    query = curve.between(job_id, after, before)
    if every > 1:
        query = query.where((Metric.step % every == 0) | Metric.valid_loss.is_not(None))
    rows = (await session.scalars(query.limit(limit + 1))).all()
    return _steps(list(rows[:limit]), more=len(rows) > limit)


def _steps(rows: list[Metric], more: bool) -> JsonObject:
    return {"object": "list", "data": [wire.metric(row) for row in rows], "has_more": more}


@router.get("/{job_id}/attempts")
async def list_attempts(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    before: Annotated[int | None, Query(ge=0, le=2**62, description="Only numbers below this one")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> JsonObject:
    """Which workers had the job, newest first: when, on what, how fast, and what ended each attempt.
    `before` the number of the last one of a page begins the next.
    """
    await find_job(session, job_id, caller)
    query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch.desc())
    if before is not None:
        query = query.where(Attempt.epoch < before)
    rows = (await session.scalars(query.limit(limit + 1))).all()
    data = [wire.attempt(row) for row in rows[:limit]]
    return {"object": "list", "data": data, "has_more": len(rows) > limit}


@router.get("/{job_id}/events/stream", response_class=StreamingResponse)
async def stream_events(
    job_id: str,
    request: Request,
    session: OpenSession,
    settings: CurrentSettings,
    caller: KnownCaller,
    after: Annotated[
        str | None, Query(max_length=100, description="An id of this stream; `Last-Event-ID` goes before")
    ] = None,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> Response:
    """A job's events and metrics as server-sent events: first all that there are, then those that come.

    Each message is one JSON object: an event as in the list of events, a step (`object` is
    `fine_tuning.job.metric`, the rest as in the list of metrics), and at last, once the job has ended, the
    job itself. A step comes once; what an evaluation found is an event of its own.

    Each has an `id`, `<event>:<step>`: the last event and the last step so far. Sent back as `Last-Event-ID`
    (browsers do so by themselves) or as `after`, the stream goes on right behind it, on any process and after
    any restart, with nothing lost or sent twice; `after=:1000` asks for all events but only for steps beyond
    1,000. After the last message of all the answer is 204, at which browsers stop asking.
    Lines beginning with a colon keep the connection alive. After an hour it ends, to be asked for anew.
    """
    job = await find_job(session, job_id, caller)
    said = last_event_id or after or ""
    if said.endswith(ENDED_MARK):
        return Response(status_code=204)
    cursor = await find_cursor(session, job.id, said)
    feed: Feed = request.app.state.feed
    feed.refuse_more()
    return StreamingResponse(
        feed.follow(job.id, cursor, settings.organization),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )
