"""Fine-tuning jobs: create, list, retrieve, cancel, pause, resume, events, checkpoints."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app import dry_run, job_inputs, job_list, job_request, paging, priority, quota, reckoning, wire
from app.access import needs
from app.audit import about
from app.auth import Caller, KnownCaller
from app.database import run
from app.dependencies import CurrentSettings, ForShowing, OpenSession, OpenStore, OpenTracing, Shown
from app.errors import NotAllowed
from app.inspection import refusals
from app.inspection.desk import Desk, OpenDesk
from app.lifecycle import wishes
from app.owned import find_job
from app.tables import Checkpoint, Event, Job, JsonObject

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], dependencies=[needs("jobs")])
# The official SDK counts its tries of one request.
RetryCount = Annotated[int, Header(ge=0, include_in_schema=False)]


async def _bodies(session: AsyncSession, rows: Sequence[Job], shown: Shown) -> list[JsonObject]:
    """Jobs as they are sent, the queued ones with their place in the queue."""
    settings, standing = shown
    places = await standing.of(session, [row.id for row in rows if row.status == "queued"])
    return [wire.job(row, settings.organization, places.get(row.id)) for row in rows]


async def _heed_findings(
    desk: Desk, body: job_request.JobRequest, idempotency_key: str | None, digest: str, repeated: bool
) -> None:
    """Refuse what `refuse_on` names, in transactions of its own: the request's holds none of it meanwhile."""
    codes = body.refuse_on or []
    refusals.check_codes(codes)
    recipe = job_request.recipe(*job_request.merge(body))
    async with desk.database.transaction(desk.caller.owner) as session:
        promised = await run(
            session, wishes.created_before, desk.caller.owner, idempotency_key, digest, repeated=repeated
        )
    if promised is not None:
        return
    given = body.model, body.training_file, body.validation_file
    await refusals.refuse_now(desk, codes, *given, recipe)


@router.post("")
async def create_job(
    request: Request,
    body: job_request.JobRequest,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    shown: ForShowing,
    caller: KnownCaller,
    desk: OpenDesk,
    tracing: OpenTracing,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Queue a job. The answer is a promise: the row is written, whatever dies afterwards.

    With an `Idempotency-Key` the same request makes one job however often it is sent; so do the repetitions
    that the official SDK sends by itself.

    With `dry_run` nothing is made: the answer (`fine_tuning.job.dry_run`) tells the recipe with every `auto`
    resolved, examples, tokens and steps, what is cut, memory needed and at hand, seconds and start where
    earlier jobs were measured, and warnings. What is not known is null.

    `method` is `{"type": "supervised"}` or, for a file of preference pairs,
    `{"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}`; a file of another shape is refused.

    `refuse_on` names findings of the files' report (docs/data.md): where one is made, there is no job
    (400 `refused_finding`); where that takes long to know, the job fails before its first step.
    """
    if body.priority == "high" and not caller.may(priority.HIGH_SCOPE):
        told = f"`priority` high asks for a key with the scope `{priority.HIGH_SCOPE}`; leave it out."
        raise NotAllowed(told, param="priority")
    if body.dry_run:
        about(session, None)
        return await dry_run.answer(desk, body)
    digest, repeated = job_request.digest(body), x_stainless_retry_count > 0
    if body.refuse_on:
        await _heed_findings(desk, body, idempotency_key, digest, repeated)
    # First of all: what has been promised stands, even if its file is deleted or the disk is full by now.
    before = await run(
        session, wishes.created_before, caller.owner, idempotency_key, digest, repeated=repeated
    )
    if before is not None:
        about(session, None)
        return (await _bodies(session, [before], shown))[0]
    method, given = job_request.merge(body)
    recipe = job_request.recipe(method, given)
    job_request.refuse_what_is_not_offered(body, settings.integrations)
    store.refuse_low_space(settings.min_free_bytes)
    await quota.take_storage(session, caller, 1)  # a model has more; how much more is known at its end
    source = await job_inputs.source(session, body, caller, settings)
    await job_inputs.hold_model(session, source)
    train = await job_inputs.usable(session, body.training_file, "training_file", method, caller, hold=True)
    if body.validation_file is not None:
        await job_inputs.usable(session, body.validation_file, "validation_file", method, caller, hold=True)
    requires = body.requires or job_request.Requires()
    size = await asyncio.to_thread(reckoning.size, source.source, settings, store)
    kind = await run(session, reckoning.kind)
    values = {
        "id": f"ftjob-{secrets.token_hex(12)}",
        "owner": caller.owner,
        "key_id": caller.key_id,
        "request_id": request.state.request_id,
        "idempotency_key": idempotency_key,
        "request_sha256": digest,
        "model": source.name,
        "source": source.source,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "suffix": body.suffix,
        "seed": recipe.seed,
        "job_metadata": body.metadata,
        "method": {"type": method.type},
        "hyperparameters": given,
        "recipe": recipe.model_dump(mode="json"),
        "refuse_on": body.refuse_on,
        "max_attempts": settings.max_attempts,
        "priority": priority.NUMBERS[body.priority],
        "labels": sorted(set(requires.labels)),
        "least_memory_bytes": requires.memory_bytes,
        "memory_bytes": requires.memory_bytes or reckoning.memory(recipe, size, train.bytes, kind),
    }
    parent = request.headers.get("traceparent")
    with tracing.span("create_job", parent, job_id=values["id"], request_id=values["request_id"]):
        row = await run(session, wishes.create, {**values, "traceparent": tracing.parent()})
    about(session, row.id if row.id == values["id"] else None)
    return (await _bodies(session, [row], shown))[0]


@router.get("")
async def list_jobs(
    request: Request,
    session: OpenSession,
    shown: ForShowing,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    status: Annotated[list[job_list.Status] | None, Query(description="Only these; may be repeated")] = None,
    search: Annotated[
        str | None, Query(max_length=200, description="In the id, the base model or the new one's name")
    ] = None,
    points: Annotated[
        int | None, Query(ge=2, le=100, description="Add `loss_curve` to each: so many [step, loss]")
    ] = None,
) -> JsonObject:
    """The caller's jobs, newest first."""
    ever = select(Job).where(Job.owner == caller.owner)
    query = job_list.filtered(ever, request, status, search)
    rows, more = await paging.cut(session, query, Job, after=after, limit=limit, ever=ever)
    bodies = await _bodies(session, rows, shown)
    if points is not None:
        curves = await job_list.curves(session, rows, points)
        bodies = [{**body, "loss_curve": curves.get(body["id"], [])} for body in bodies]
    return wire.page(bodies, more)


@router.get("/{job_id}")
async def retrieve_job(
    job_id: str, session: OpenSession, shown: ForShowing, caller: KnownCaller
) -> JsonObject:
    return (await _bodies(session, [await find_job(session, job_id, caller)], shown))[0]


async def _wish(
    verb: Callable[[Session, str, str], None],
    job_id: str,
    session: AsyncSession,
    shown: Shown,
    caller: Caller,
    tries: int,
) -> JsonObject:
    job = await find_job(session, job_id, caller)
    # The first try, whose answer was lost, may have done it: told so, nobody has to find out.
    if tries and wishes.is_fulfilled(job, verb):
        about(session, None)
    else:
        await run(session, verb, job_id, caller.owner)
    session.expire_all()
    return (await _bodies(session, [await find_job(session, job_id, caller)], shown))[0]


@router.post("/{job_id}/cancel")
async def cancel_job(
    job_id: str,
    session: OpenSession,
    shown: ForShowing,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """End a job. A running one saves a checkpoint first, which stays; takes a heartbeat to be noticed."""
    return await _wish(wishes.cancel, job_id, session, shown, caller, x_stainless_retry_count)


@router.post("/{job_id}/pause")
async def pause_job(
    job_id: str,
    session: OpenSession,
    shown: ForShowing,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Set a job aside; a running one saves a checkpoint and goes on from it when resumed."""
    return await _wish(wishes.pause, job_id, session, shown, caller, x_stainless_retry_count)


@router.post("/{job_id}/resume")
async def resume_job(
    job_id: str,
    session: OpenSession,
    shown: ForShowing,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Queue a paused job again; it goes on where it was, bit for bit."""
    return await _wish(wishes.resume, job_id, session, shown, caller, x_stainless_retry_count)


@router.get("/{job_id}/events")
async def list_events(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    code: Annotated[str | None, Query(max_length=64, description="Only events of this code")] = None,
    type: Annotated[  # noqa: A002  # its name in the answer
        Literal["message", "metrics"] | None, Query(description="Only what happened, or only numbers")
    ] = None,
) -> JsonObject:
    """Everything that happened to a job, newest first."""
    await find_job(session, job_id, caller)
    query = select(Event).where(Event.job_id == job_id)
    if code is not None:
        query = query.where(Event.code == code)
    if type is not None:
        query = query.where(Event.type == type)
    rows, more = await paging.cut(session, query, Event, after=after, limit=limit)
    return wire.page([wire.event(row) for row in rows], more)


@router.get("/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> JsonObject:
    """The checkpoints that are kept, newest first; each one's name can be used as a model at once."""
    await find_job(session, job_id, caller)
    ever = select(Checkpoint).where(Checkpoint.job_id == job_id)
    query = ever.where(Checkpoint.deleted_at.is_(None))
    rows, more = await paging.cut(session, query, Checkpoint, after=after, limit=limit, ever=ever)
    return wire.page([wire.checkpoint(row) for row in rows], more)
