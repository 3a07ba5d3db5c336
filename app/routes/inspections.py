"""What training will make of a file, before any GPU is touched: preview and report."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from app import job_request
from app.access import needs
from app.audit import changes_nothing
from app.body import Body
from app.errors import InvalidRequest, NotFound
from app.inspection.desk import OpenDesk
from app.recipe import Recipe
from app.tables import JsonObject

router = APIRouter(tags=["data"], dependencies=[needs("files")])
PREVIEW_SECONDS = 60
Offset = Annotated[int, Field(ge=0, le=10**9, description="Rows to skip")]
Limit = Annotated[int, Field(ge=1, le=100, description="Rows to show")]


class PreviewRequest(Body):
    """Which rows, and how they would be trained."""

    model: str = Field(min_length=1, max_length=256, description="Base model, or one of yours")
    hyperparameters: dict[str, Any] = Field(
        {}, description="As in a job; max_length, excess_length and train_on_inputs matter here"
    )
    offset: Offset = 0
    limit: Limit = 5


class JobPreviewRequest(job_request.JobRequest):
    """A request to train, unchanged, and which rows of its training file to show."""

    offset: Offset = 0
    limit: Limit = 5


async def _look(
    desk: OpenDesk,
    file_id: str,
    asked: PreviewRequest | JobPreviewRequest,
    recipe: Recipe,
    method: job_request.Method | None = None,
) -> JsonObject:
    subject = await desk.subject(file_id, asked.model, recipe)
    if method is not None:
        job_request.refuse_other_shape(method, file_id, subject.file.shape, "training_file")
    found = await desk.inspector.ask(
        "preview", PREVIEW_SECONDS, **subject.question, offset=asked.offset, limit=asked.limit
    )
    return {
        "object": "file.preview",
        "file": file_id,
        "model": asked.model,
        "format": subject.file.format,
        "shape": subject.file.shape,
        "rows": subject.file.rows,
        "offset": asked.offset,
        **found,
    }


@router.post("/files/{file_id}/preview")
@changes_nothing
async def preview_file(file_id: str, body: PreviewRequest, desk: OpenDesk) -> JsonObject:
    """Some rows of a file as the model would be given them.

    Each row has its `line`, its `outcome` (`whole`, `split`, `truncated`, `dropped`, `refused`, `untrained`),
    its `windows` (the examples made of it, in tokens of the row, and which of them are `trained`) and what is
    `cut`; token by token `ids`, `pieces` (their text) and `learned` (1 where it carries loss). With the SDK:

    `client.post(f"/files/{file.id}/preview", body={"model": "tiny-gpt2", "limit": 3}, cast_to=object)`

    A model of the hub must have been fetched by a job before (400 `model_not_fetched`).
    """
    recipe = job_request.recipe(job_request.Method(type="supervised"), body.hyperparameters)
    return await _look(desk, file_id, body, recipe)


@router.post("/fine_tuning/jobs/preview")
@changes_nothing
async def preview_job(body: JobPreviewRequest, desk: OpenDesk) -> JsonObject:
    """The same for a request to train as it would be sent, with `offset` and `limit` beside it.

    No job is made of it.
    """
    method, given = job_request.merge(body)
    recipe = job_request.recipe(method, given)
    try:
        return await _look(desk, body.training_file, body, recipe, method)
    except (InvalidRequest, NotFound) as error:
        # What is missing is a field of this body, and so 400, as it is when the job is created.
        param = "training_file" if error.param == "file_id" else error.param
        raise InvalidRequest(error.message, param=param, code=error.code) from error


@router.get("/files/{file_id}/report")
async def file_report(
    file_id: str,
    desk: OpenDesk,
    model: Annotated[
        str | None, Query(max_length=256, description="Count its tokens; without it, characters")
    ] = None,
    validation_file: Annotated[
        str | None, Query(description="Look for its rows in this file: leakage")
    ] = None,
    max_length: Annotated[int | None, Query(ge=2, le=1_048_576, description="As in a job")] = None,
    excess_length: Annotated[
        Literal["split", "truncate", "drop", "error"], Query(description="As in a job")
    ] = "split",
    train_on_inputs: Annotated[bool, Query(description="As in a job")] = False,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for it")] = 20,
) -> JsonObject:
    """A file in figures and findings.

    `lengths` (mean, median, p95, max, a histogram), `tokens` and the share beyond `max_length`, `scripts`,
    and `findings`: each with a stable `code`, a `level`, how many rows (`count`), the first `lines`, what it
    means and what to do; never what stands there. `refuse_on` of a job takes these codes. With the SDK:

    `client.get(f"/files/{file.id}/report", options={"params": {"model": "tiny-gpt2"}}, cast_to=object)`

    It is made once and kept. A large file takes minutes: `status` is `in_progress` until then, ask again. Of
    a file beyond 16 MB every n-th row is encoded and the numbers of tokens are `estimated`.
    """
    recipe = Recipe(
        max_length=max_length or "auto", excess_length=excess_length, train_on_inputs=train_on_inputs
    )
    subject = await desk.subject(file_id, model, recipe, validation_file)
    report = await desk.reports.get(subject.key, subject.question, wait)
    return {
        "object": "file.report",
        "status": "in_progress" if report is None else "completed",
        "file": file_id,
        "validation_file": validation_file,
        "model": model,
        "bytes": subject.file.bytes,
        **(report or {}),
    }
