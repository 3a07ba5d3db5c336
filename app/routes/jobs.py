"""Fine-tuning jobs: create, list, retrieve, cancel, pause, resume, events, checkpoints, metrics."""

import hashlib
import json
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import catalogue, paging, wire
from app.auth import Caller, KnownCaller
from app.body import Body
from app.database import run
from app.dependencies import CurrentSettings, OpenSession, OpenStore
from app.errors import InvalidRequest, NotFound
from app.hyperparameters import RecipeError
from app.lifecycle import wishes
from app.recipe import Recipe
from app.settings import Settings
from app.tables import Checkpoint, Event, File, Job, JsonObject, Metric

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])
Values = dict[str, Any]


class MethodOptions(Body):
    """What `method.<type>` holds."""

    hyperparameters: Values = Field({}, description="Any field of the recipe, or OpenAI's three")


class Method(Body):
    """How to train. Siblings for other types than `type` are ignored, as OpenAI does."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodOptions = MethodOptions()
    dpo: MethodOptions = MethodOptions()
    reinforcement: Values = Field({})


class JobRequest(Body):
    """A request to train."""

    model: str = Field(min_length=1, max_length=256, description="Base model, or one of yours")
    training_file: str = Field(description="Id of a file with purpose `fine-tune`")
    validation_file: str | None = Field(None, description="Id of a file to evaluate on")
    suffix: str | None = Field(
        None, min_length=1, max_length=64, pattern=r"^[\w.-]+$", description="Goes into the model's name"
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Reported; 42 when absent")
    metadata: dict[str, str] | None = Field(None, max_length=16)
    integrations: list[Values] | None = Field(None, max_length=5)
    method: Method | None = None
    hyperparameters: Values = Field({}, description="As `method.<type>.hyperparameters`; either will do")


def _merge(request: JobRequest) -> tuple[Method, Values]:
    """The method, and the hyperparameters of both places; the same one said twice must agree."""
    method = request.method or Method(type="supervised")
    if method.type == "reinforcement":
        raise InvalidRequest(
            "Reinforcement fine-tuning is not offered; use `supervised`.",
            param="method.type",
            code="unsupported_method",
        )
    options: MethodOptions = getattr(method, method.type)
    merged = {k: v for k, v in request.hyperparameters.items() if v is not None}
    for key, value in options.hyperparameters.items():
        if value is None:
            continue
        if merged.get(key, value) != value:
            raise InvalidRequest(
                f"`{key}` is given twice and differs: in `hyperparameters` and in `method`.",
                param=f"hyperparameters.{key}",
                code="contradictory_value",
            )
        merged[key] = value
    if request.seed is not None:
        if merged.get("seed", request.seed) != request.seed:
            raise InvalidRequest(
                "`seed` is given twice and differs.", param="seed", code="contradictory_value"
            )
        merged["seed"] = request.seed
    return method, merged


def _recipe(method: Method, given: Values) -> Recipe:
    if method.type == "reinforcement":
        raise InvalidRequest("Reinforcement fine-tuning is not offered.", param="method.type")
    try:
        return Recipe.from_request(given, method.type)
    except RecipeError as error:
        where = "method.type" if error.field == "method" else f"hyperparameters.{error.field}"
        raise InvalidRequest(error.message, param=where, code=error.code) from error


async def _usable(session: AsyncSession, file_id: str, param: str, caller: Caller) -> File:
    """The file, locked so that nobody deletes it before the job that reads it is there."""
    row = await session.scalar(
        select(File)
        .where(
            File.id == file_id,
            File.owner == caller.owner,
            File.deleted_at.is_(None),
            File.expires_at.is_(None) | (File.expires_at > func.now()),
        )
        .with_for_update(read=True)
    )
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
        raise InvalidRequest(f"{file_id} cannot be used: {row.status_details}", param=param, code=code)
    return row


def _check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidRequest(
                "metadata takes keys of at most 64 and values of at most 512 characters.", param="metadata"
            )


def _digest(request: JobRequest) -> str:
    body = request.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@router.post("")
async def create_job(
    body: JobRequest,
    session: OpenSession,
    store: OpenStore,
    settings: CurrentSettings,
    caller: KnownCaller,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> JsonObject:
    """Queue a job. The answer is a promise: the row is written, whatever dies afterwards.

    With an `Idempotency-Key` the same request makes one job however often it is sent.
    """
    method, given = _merge(body)
    recipe = _recipe(method, given)
    _check_metadata(body.metadata)
    if body.integrations:
        raise InvalidRequest("No integration is offered yet; leave it out.", param="integrations")
    store.refuse_low_space(settings.min_free_bytes)
    source = await run(session, catalogue.find_for_job, body.model, caller.owner, settings)
    await _usable(session, body.training_file, "training_file", caller)
    if body.validation_file is not None:
        await _usable(session, body.validation_file, "validation_file", caller)
    values = {
        "id": f"ftjob-{secrets.token_hex(12)}",
        "owner": caller.owner,
        "idempotency_key": idempotency_key,
        "request_sha256": _digest(body),
        "model": body.model,
        "source": source.source,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "suffix": body.suffix,
        "seed": recipe.seed,
        "job_metadata": body.metadata,
        "method": {"type": method.type},
        "hyperparameters": given,
        "recipe": recipe.model_dump(mode="json"),
        "integrations": body.integrations,
        "max_attempts": settings.max_attempts,
    }
    row = await run(session, wishes.create, values)
    return wire.job(row, settings.organization)


async def find_job(session: AsyncSession, job_id: str, caller: Caller) -> Job:
    """Raises NotFound, also for somebody else's job."""
    row = await session.scalar(select(Job).where(Job.id == job_id, Job.owner == caller.owner))
    if row is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", param="job_id", code="job_not_found")
    return row


def _filtered(query: Select[Job], request: Request) -> Select[Job]:
    """`metadata[key]=value` selects by pairs, `metadata=null` those without any."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            query = query.where(Job.job_metadata.is_(None))
        elif name.startswith("metadata[") and name.endswith("]"):
            wanted[name[len("metadata[") : -1]] = value
    return query.where(Job.job_metadata.contains(wanted)) if wanted else query


@router.get("")
async def list_jobs(
    request: Request,
    session: OpenSession,
    settings: CurrentSettings,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> JsonObject:
    """The caller's jobs, newest first."""
    query = _filtered(select(Job).where(Job.owner == caller.owner), request)
    rows, more = await paging.cut(session, query, Job, after=after, limit=limit)
    return wire.page([wire.job(row, settings.organization) for row in rows], more)


@router.get("/{job_id}")
async def retrieve_job(
    job_id: str, session: OpenSession, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    return wire.job(await find_job(session, job_id, caller), settings.organization)


async def _wish(
    verb: Any, job_id: str, session: AsyncSession, settings: Settings, caller: Caller
) -> JsonObject:
    await find_job(session, job_id, caller)
    await run(session, verb, job_id, caller.owner)
    session.expire_all()
    return wire.job(await find_job(session, job_id, caller), settings.organization)


@router.post("/{job_id}/cancel")
async def cancel_job(
    job_id: str, session: OpenSession, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    """End a job. A running one saves a checkpoint first, which stays; takes a heartbeat to be noticed."""
    return await _wish(wishes.cancel, job_id, session, settings, caller)


@router.post("/{job_id}/pause")
async def pause_job(
    job_id: str, session: OpenSession, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    """Set a job aside; a running one saves a checkpoint and goes on from it when resumed."""
    return await _wish(wishes.pause, job_id, session, settings, caller)


@router.post("/{job_id}/resume")
async def resume_job(
    job_id: str, session: OpenSession, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    """Queue a paused job again; it goes on where it was, bit for bit."""
    return await _wish(wishes.resume, job_id, session, settings, caller)


@router.get("/{job_id}/events")
async def list_events(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> JsonObject:
    """Everything that happened to a job, newest first."""
    await find_job(session, job_id, caller)
    query = select(Event).where(Event.job_id == job_id)
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
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    rows, more = await paging.cut(session, query, Checkpoint, after=after, limit=limit)
    return wire.page([wire.checkpoint(row) for row in rows], more)


@router.get("/{job_id}/metrics")
async def list_metrics(
    job_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: Annotated[int, Query(ge=-1, description="Only steps beyond this one")] = -1,
    limit: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="At most so many; default all")
    ] = None,
    every: Annotated[int, Query(ge=1, description="Only each n-th step, and those that evaluated")] = 1,
) -> JsonObject:
    """What each step measured, oldest first, every step unless asked otherwise."""
    await find_job(session, job_id, caller)
    query = select(Metric).where(Metric.job_id == job_id, Metric.step > after).order_by(Metric.step)
    if every > 1:
        query = query.where((Metric.step % every == 0) | Metric.valid_loss.is_not(None))
    if limit is not None:
        query = query.limit(limit + 1)
    rows = (await session.scalars(query)).all()
    more = limit is not None and len(rows) > limit
    return {
        "object": "list",
        "data": [wire.metric(row) for row in (rows[:limit] if more else rows)],
        "has_more": more,
    }
