"""Answering `dry_run`: what is looked up, what is counted in a process of its own, what is left unknown."""

import asyncio
import json
from pathlib import Path

from app import catalogue, forecast, job_inputs, job_request, rehearsal, weights
from app.database import run
from app.errors import InvalidRequest
from app.inspection import subject
from app.inspection.desk import Desk
from app.lifecycle.offers import MISSED
from app.recipe import Recipe
from app.rehearsal import Look, warning
from app.tables import File, JsonObject

COUNT_SECONDS = 60
UNKNOWN = dict.fromkeys(
    (
        "recipe", "exact", "examples", "validation_examples", "total_tokens", "trained_tokens",
        "steps_per_epoch", "total_steps", "counts", "too_long_share", "parameters", "memory",
        "estimated_seconds", "estimated_basis", "estimated_start", "estimated_finish",
    )
)  # fmt: skip


async def answer(desk: Desk, body: job_request.JobRequest) -> JsonObject:
    """Raises InvalidRequest for what would be refused as a job; what would fail as one is a warning."""
    method, given = job_request.merge(body)
    recipe = job_request.recipe(method, given)
    job_request.refuse_what_is_not_offered(body, desk.settings.integrations)
    async with desk.database.transaction(desk.caller.owner) as session:
        source = await job_inputs.source(session, body, desk.caller, desk.settings)
        given_by = method, desk.caller
        train = await job_inputs.usable(session, body.training_file, "training_file", *given_by, hold=False)
        held = None
        if body.validation_file is not None:
            held = await job_inputs.usable(
                session, body.validation_file, "validation_file", *given_by, hold=False
            )
        past = await run(session, forecast.past)
        start = await run(session, forecast.start_of_next, MISSED * desk.settings.heartbeat)
    found: JsonObject = {
        "object": "fine_tuning.job.dry_run",
        "model": source.name,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "hyperparameters": given,
        **UNKNOWN,
    }
    try:
        folder = await asyncio.to_thread(catalogue.locate, source.source, desk.settings, desk.store)
        size = await asyncio.to_thread(weights.measure, folder)
    except (OSError, ValueError, KeyError, json.JSONDecodeError):
        told = (
            f"The model {source.name!r} is not here yet, so nothing can be counted with it; a job would fetch"
            " it first."
        )
        return found | {"warnings": [warning("warn", "model_not_fetched", told, "model")]}
    try:
        look = Look(
            await _count(desk, train, folder, recipe),
            None if held is None else await _count(desk, held, folder, recipe),
        )
    except InvalidRequest as error:
        param = {"file_id": "training_file", "max_length": "hyperparameters.max_length"}
        name = param.get(error.param or "", error.param)
        return found | {"warnings": [warning("error", error.code or "invalid_file", error.message, name)]}
    return found | rehearsal.rehearse(recipe, source.source, look, size, past, start)


async def _count(desk: Desk, row: File, folder: Path, recipe: Recipe) -> JsonObject:
    question = {
        **await asyncio.to_thread(subject.of_file, row, desk.store),
        "folder": str(folder),
        "rows": row.rows,
        "recipe": recipe.model_dump(mode="json"),
    }
    return await desk.inspector.ask("count", COUNT_SECONDS, **question)
